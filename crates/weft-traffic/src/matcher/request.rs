//! Matchers that look into a request head.

use weft_http::RequestHead;

use super::StringMatch;

/// `HeaderMatcher`. Pseudo headers `:authority` (also as `host`), `:method`, `:path` and `:scheme` work.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: Box<str>,
    pub predicate: HeaderPredicate,
    pub invert: bool,
    /// Otherwise a missing header fails the match, inverted or not (Envoy's rule).
    pub missing_is_empty: bool,
}

#[derive(Debug, Clone)]
pub enum HeaderPredicate {
    /// Present (true) or absent (false).
    Present(bool),
    Value(StringMatch),
    /// A whole decimal number in `start..end`.
    Range {
        start: i64,
        end: i64,
    },
}

impl HeaderMatch {
    pub fn is_match(&self, head: &RequestHead) -> bool {
        match pseudo_header(head, &self.name) {
            Some(value) => self.matches_values(value.into_iter()),
            None => self.matches_values(head.headers.get_all(&*self.name)),
        }
    }

    /// As `is_match`, on a response's or any other field list.
    pub fn is_match_list(&self, headers: &weft_http::HeaderList) -> bool {
        self.matches_values(headers.get_all(&*self.name))
    }

    /// A header that comes more than once matches if any of its values does, as in current Envoy.
    fn matches_values<'v>(&self, values: impl Iterator<Item = &'v [u8]>) -> bool {
        let mut values = values.peekable();
        let missing = values.peek().is_none();
        let matched = match &self.predicate {
            HeaderPredicate::Present(wanted) => (!missing || self.missing_is_empty) == *wanted,
            _ if missing && !self.missing_is_empty => return false,
            _ if missing => self.value_matches(b""),
            _ => values.any(|value| self.value_matches(value)),
        };
        matched != self.invert
    }

    fn value_matches(&self, value: &[u8]) -> bool {
        match &self.predicate {
            HeaderPredicate::Present(wanted) => *wanted,
            HeaderPredicate::Value(matcher) => matcher.is_match(value),
            HeaderPredicate::Range { start, end } => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.is_some_and(|number: i64| (*start..*end).contains(&number))
            }
        }
    }
}

/// The outer None: not a pseudo header.
fn pseudo_header<'h>(head: &'h RequestHead, name: &str) -> Option<Option<&'h [u8]>> {
    Some(match name {
        ":authority" | "host" => head.authority.as_deref(),
        ":method" => Some(head.method.as_bytes()),
        ":path" => Some(head.path_and_query()),
        ":scheme" => Some(head.scheme.as_str().as_bytes()),
        _ => return None,
    })
}

/// The value of a header or pseudo header; of several lines the first.
pub(crate) fn header_value<'h>(head: &'h RequestHead, name: &str) -> Option<&'h [u8]> {
    match pseudo_header(head, name) {
        Some(value) => value,
        None => head.headers.get(name),
    }
}

/// `QueryParameterMatcher`. Names and values are compared as sent, without percent-decoding, as Envoy
/// does; the first occurrence counts.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    pub name: Box<[u8]>,
    pub value: QueryPredicate,
}

#[derive(Debug, Clone)]
pub enum QueryPredicate {
    Present(bool),
    Value(StringMatch),
}

impl QueryMatch {
    pub fn is_match(&self, query: Option<&[u8]>) -> bool {
        let found = query.and_then(|query| query_value(query, &self.name));
        match &self.value {
            QueryPredicate::Present(wanted) => found.is_some() == *wanted,
            QueryPredicate::Value(matcher) => found.is_some_and(|value| matcher.is_match(value)),
        }
    }
}

/// The first value of a query parameter; `a` alone has the empty value.
pub(crate) fn query_value<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|&byte| byte == b'&').find_map(|pair| match pair.iter().position(|&b| b == b'=') {
        Some(at) if pair[..at] == *name => Some(&pair[at + 1..]),
        None if pair == name => Some(&b""[..]),
        _ => None,
    })
}

/// `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatch {
    pub name: Box<[u8]>,
    pub value: StringMatch,
    pub invert: bool,
}

impl CookieMatch {
    pub fn is_match(&self, head: &RequestHead) -> bool {
        let value = cookie_value(&head.headers, &self.name);
        value.is_some_and(|value| self.value.is_match(value)) != self.invert
    }
}

/// The first cookie of this name over all `cookie` lines, without surrounding quotes.
pub(crate) fn cookie_value<'h>(
    headers: &'h weft_http::HeaderList,
    name: &[u8],
) -> Option<&'h [u8]> {
    for line in headers.get_all("cookie") {
        for pair in line.split(|&byte| byte == b';') {
            let pair = pair.trim_ascii();
            let Some(at) = pair.iter().position(|&byte| byte == b'=') else { continue };
            if pair[..at] == *name {
                let value = &pair[at + 1..];
                let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
                return Some(unquoted.unwrap_or(value));
            }
        }
    }
    None
}
