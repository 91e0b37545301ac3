//! Path matching. The query never takes part; case counts unless the route says otherwise.

use weft_http::{Method, RequestHead};

use crate::matcher::{FullRegex, eq};

/// `RouteMatch.path_specifier`.
#[derive(Debug, Clone)]
pub enum PathMatch {
    Prefix {
        prefix: Box<[u8]>,
        ignore_case: bool,
    },
    Exact {
        path: Box<[u8]>,
        ignore_case: bool,
    },
    /// The path itself or anything below it; the text has no trailing slash.
    SeparatedPrefix {
        prefix: Box<[u8]>,
        ignore_case: bool,
    },
    Regex(FullRegex),
    /// CONNECT requests.
    Connect,
}

impl PathMatch {
    pub fn is_match(&self, head: &RequestHead) -> bool {
        match self {
            // The commonest, and the only one that need not know where the path ends.
            PathMatch::Prefix { prefix, ignore_case } => {
                starts_with(head.path_and_query(), prefix, *ignore_case) && !prefix.contains(&b'?')
            }
            PathMatch::Exact { path, ignore_case } => eq(head.path(), path, *ignore_case),
            PathMatch::SeparatedPrefix { prefix, ignore_case } => {
                let path = head.path();
                starts_with(path, prefix, *ignore_case)
                    && matches!(path.get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.is_match(head.path()),
            PathMatch::Connect => head.method == Method::Connect,
        }
    }

    /// How many bytes of a matching path the match covers: what a prefix rewrite replaces.
    pub fn covered(&self, path: &[u8]) -> usize {
        match self {
            PathMatch::Prefix { prefix, .. } | PathMatch::SeparatedPrefix { prefix, .. } => {
                prefix.len().min(path.len())
            }
            PathMatch::Exact { .. } | PathMatch::Regex(_) | PathMatch::Connect => path.len(),
        }
    }
}

fn starts_with(path: &[u8], prefix: &[u8], ignore_case: bool) -> bool {
    path.get(..prefix.len()).is_some_and(|head| eq(head, prefix, ignore_case))
}
