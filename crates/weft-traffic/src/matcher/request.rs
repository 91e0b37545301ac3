//! Matchers that look into a request head.

use weft_http::{Known, RequestHead};

use super::StringMatch;

/// `HeaderMatcher`. Pseudo headers `:authority` (also as `host`), `:method`, `:path` and `:scheme` work.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    pub name: FieldName,
    pub predicate: HeaderPredicate,
    pub invert: bool,
    /// Otherwise a missing header fails the match, inverted or not (Envoy's rule).
    pub missing_is_empty: bool,
}

/// The lower-case name of a header, looked up once among those that a head has at hand.
#[derive(Debug, Clone)]
pub struct FieldName {
    text: Box<str>,
    kind: NameKind,
}

#[derive(Debug, Clone, Copy)]
enum NameKind {
    Pseudo(Pseudo),
    Field(Option<Known>),
}

/// What is in the head beside its fields.
#[derive(Debug, Clone, Copy)]
enum Pseudo {
    Authority,
    Method,
    Path,
    Scheme,
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
        match self.name.kind {
            NameKind::Pseudo(pseudo) => self.matches_values(pseudo.value(head).into_iter()),
            NameKind::Field(known) => {
                self.matches_values(head.headers.get_all_as(&*self.name.text, known))
            }
        }
    }

    /// As `is_match`, on a response's or any other field list.
    pub fn is_match_list(&self, headers: &weft_http::HeaderList) -> bool {
        self.matches_values(headers.get_all(&*self.name.text))
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

impl From<&str> for FieldName {
    fn from(name: &str) -> FieldName {
        let text: Box<str> = name.to_ascii_lowercase().into();
        let kind = match Pseudo::from_name(&text) {
            Some(pseudo) => NameKind::Pseudo(pseudo),
            None => NameKind::Field(Known::from_name(text.as_bytes())),
        };
        FieldName { text, kind }
    }
}

impl Pseudo {
    fn from_name(name: &str) -> Option<Pseudo> {
        Some(match name {
            ":authority" | "host" => Pseudo::Authority,
            ":method" => Pseudo::Method,
            ":path" => Pseudo::Path,
            ":scheme" => Pseudo::Scheme,
            _ => return None,
        })
    }

    fn value(self, head: &RequestHead) -> Option<&[u8]> {
        match self {
            Pseudo::Authority => head.authority.as_deref(),
            Pseudo::Method => Some(head.method.as_bytes()),
            Pseudo::Path => Some(head.path_and_query()),
            Pseudo::Scheme => Some(head.scheme.as_str().as_bytes()),
        }
    }
}

/// The value of a header or pseudo header; of several lines the first.
pub(crate) fn header_value<'h>(head: &'h RequestHead, name: &str) -> Option<&'h [u8]> {
    match Pseudo::from_name(name) {
        Some(pseudo) => pseudo.value(head),
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
