//! Redirects: the `location` a route answers with.

use weft_http::{RequestHead, Scheme};

use super::Route;
use crate::matcher::Substitution;

/// `RedirectAction`.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme, if any.
    pub scheme: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: Option<RedirectPath>,
    pub strip_query: bool,
}

#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// Whole new path; with a `?` it brings its own query.
    Full(Box<[u8]>),
    Prefix(Box<[u8]>),
    Regex(Substitution),
}

impl Redirect {
    /// The absolute URL to send the client to.
    pub fn location(&self, route: &Route, head: &RequestHead) -> Vec<u8> {
        let old_scheme = head.scheme.as_str();
        let scheme = self.scheme.as_deref().unwrap_or(old_scheme);
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"://");
        self.push_authority(&mut out, scheme, head);
        self.push_path(&mut out, route, head);
        out
    }

    fn push_authority(&self, out: &mut Vec<u8>, scheme: &str, head: &RequestHead) {
        let whole = head.authority();
        let host_only = super::host::without_port(whole);
        let old_port = whole.get(host_only.len()..).unwrap_or_default();
        out.extend_from_slice(match &self.host {
            Some(host) => host.as_bytes(),
            None => host_only,
        });
        match (self.port, &self.host) {
            (Some(port), _) => out.extend_from_slice(format!(":{port}").as_bytes()),
            (None, Some(_)) => {}
            // The old scheme's default port means nothing under the new scheme.
            (None, None)
                if scheme != head.scheme.as_str() && old_port == default_port(head.scheme) => {}
            (None, None) => out.extend_from_slice(old_port),
        }
    }

    fn push_path(&self, out: &mut Vec<u8>, route: &Route, head: &RequestHead) {
        let path = head.path();
        let mut own_query = false;
        match &self.path {
            None => out.extend_from_slice(path),
            Some(RedirectPath::Full(full)) => {
                own_query = full.contains(&b'?');
                out.extend_from_slice(full);
            }
            Some(RedirectPath::Prefix(prefix)) => {
                out.extend_from_slice(prefix);
                out.extend_from_slice(&path[route.matches.path.covered(path)..]);
            }
            Some(RedirectPath::Regex(substitution)) => {
                out.extend_from_slice(&substitution.replace(path));
            }
        }
        if let (Some(query), false, false) = (head.query(), self.strip_query, own_query) {
            out.push(b'?');
            out.extend_from_slice(query);
        }
    }
}

/// The URL with https instead of http, for `require_tls`.
pub fn to_https(head: &RequestHead) -> Vec<u8> {
    let host = super::host::without_port(head.authority());
    let authority = if head.authority().ends_with(b":80") { host } else { head.authority() };
    [b"https://", authority, head.path_and_query()].concat()
}

fn default_port(scheme: Scheme) -> &'static [u8] {
    match scheme {
        Scheme::Http => b":80",
        Scheme::Https => b":443",
    }
}
