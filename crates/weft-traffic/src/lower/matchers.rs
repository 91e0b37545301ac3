//! Strings, regular expressions, headers, query parameters, cookies and header edits.

use super::{Result, Within, error, list};
use crate::headers::{AppendAction, Format, HeaderEdit, HeaderEdits};
use crate::matcher::{
    CookieMatch, FullRegex, HeaderMatch, HeaderPredicate, QueryMatch, QueryPredicate, StringMatch,
    StringPattern, Substitution,
};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::config::route::v3 as pb;
use crate::pb::envoy::r#type::matcher::v3 as matcher_pb;

pub(super) fn regex(message: &matcher_pb::RegexMatcher) -> Result<FullRegex> {
    FullRegex::new(&message.regex).or_else(|reason| error("regex", reason))
}

pub(super) fn substitution(message: &matcher_pb::RegexMatchAndSubstitute) -> Result<Substitution> {
    let Some(pattern) = &message.pattern else { return error("pattern", "is required") };
    Substitution::new(&pattern.regex, &message.substitution)
        .or_else(|reason| error("pattern", reason))
}

pub(super) fn string(message: &matcher_pb::StringMatcher) -> Result<StringMatch> {
    use matcher_pb::string_matcher::MatchPattern;
    let bytes = |text: &String| text.as_bytes().into();
    let pattern = match &message.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(bytes(text)),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(bytes(text)),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(bytes(text)),
        Some(MatchPattern::Contains(text)) => StringPattern::Contains(bytes(text)),
        Some(MatchPattern::SafeRegex(message)) => {
            StringPattern::Regex(regex(message).at("safe_regex")?)
        }
        Some(MatchPattern::Custom(_)) => {
            return error("custom", "custom matchers are not supported");
        }
        None => return error("", "a match pattern is required"),
    };
    Ok(StringMatch { pattern, ignore_case: message.ignore_case })
}

#[allow(deprecated)] // Older control planes still send the flat match fields.
pub(super) fn header(message: &pb::HeaderMatcher) -> Result<HeaderMatch> {
    use pb::header_matcher::HeaderMatchSpecifier as Specifier;
    let pb::HeaderMatcher {
        name,
        invert_match,
        treat_missing_header_as_empty,
        header_match_specifier,
    } = message;
    if name.is_empty() {
        return error("name", "is required");
    }
    let value = |pattern| HeaderPredicate::Value(StringMatch { pattern, ignore_case: false });
    let bytes = |text: &String| text.as_bytes().into();
    let predicate = match header_match_specifier {
        None => HeaderPredicate::Present(true),
        Some(Specifier::PresentMatch(wanted)) => HeaderPredicate::Present(*wanted),
        Some(Specifier::StringMatch(m)) => HeaderPredicate::Value(string(m).at("string_match")?),
        Some(Specifier::ExactMatch(text)) => value(StringPattern::Exact(bytes(text))),
        Some(Specifier::PrefixMatch(text)) => value(StringPattern::Prefix(bytes(text))),
        Some(Specifier::SuffixMatch(text)) => value(StringPattern::Suffix(bytes(text))),
        Some(Specifier::ContainsMatch(text)) => value(StringPattern::Contains(bytes(text))),
        Some(Specifier::SafeRegexMatch(m)) => {
            value(StringPattern::Regex(regex(m).at("safe_regex_match")?))
        }
        Some(Specifier::RangeMatch(range)) => {
            HeaderPredicate::Range { start: range.start, end: range.end }
        }
    };
    Ok(HeaderMatch {
        name: name.as_str().into(),
        predicate,
        invert: *invert_match,
        missing_is_empty: *treat_missing_header_as_empty,
    })
}

pub(super) fn query(message: &pb::QueryParameterMatcher) -> Result<QueryMatch> {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match &message.query_parameter_match_specifier {
        None => QueryPredicate::Present(true),
        Some(Specifier::PresentMatch(wanted)) => QueryPredicate::Present(*wanted),
        Some(Specifier::StringMatch(m)) => QueryPredicate::Value(string(m).at("string_match")?),
    };
    match message.name.is_empty() {
        true => error("name", "is required"),
        false => Ok(QueryMatch { name: message.name.as_bytes().into(), value }),
    }
}

pub(super) fn cookie(message: &pb::CookieMatcher) -> Result<CookieMatch> {
    let Some(value) = &message.string_match else { return error("string_match", "is required") };
    Ok(CookieMatch {
        name: message.name.as_bytes().into(),
        value: string(value).at("string_match")?,
        invert: message.invert_match,
    })
}

/// Bound on the edits of one level, as in Envoy's message rules.
const EDITS_MAX: usize = 1000;

pub(super) fn edits(
    direction: Direction,
    add: &[core::HeaderValueOption],
    remove: &[String],
) -> Result<HeaderEdits> {
    if add.len() > EDITS_MAX || remove.len() > EDITS_MAX {
        return error(direction.add_field(), format!("more than {EDITS_MAX} header edits"));
    }
    let remove = list(direction.remove_field(), remove, |name| match is_pseudo(name) {
        true => error("", format!("{name:?} cannot be removed")),
        false if name.is_empty() => error("", "is empty"),
        false => Ok(name.as_str().into()),
    })?;
    let edits = list(direction.add_field(), add, edit)?;
    Ok(HeaderEdits { remove, edits })
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Direction {
    Request,
    Response,
}

impl Direction {
    fn add_field(self) -> &'static str {
        match self {
            Direction::Request => "request_headers_to_add",
            Direction::Response => "response_headers_to_add",
        }
    }

    fn remove_field(self) -> &'static str {
        match self {
            Direction::Request => "request_headers_to_remove",
            Direction::Response => "response_headers_to_remove",
        }
    }
}

fn is_pseudo(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

#[allow(deprecated)] // `append` is what older Istio sends.
fn edit(message: &core::HeaderValueOption) -> Result<HeaderEdit> {
    let core::HeaderValueOption { header, append, append_action, keep_empty_value } = message;
    let Some(header) = header else { return error("header", "is required") };
    let action = match (append, append_action) {
        (Some(append), 0) if append.value => AppendAction::AppendIfExistsOrAdd,
        (Some(_), 0) => AppendAction::OverwriteIfExistsOrAdd,
        (None, 0) => AppendAction::AppendIfExistsOrAdd,
        (None, 1) => AppendAction::AddIfAbsent,
        (None, 2) => AppendAction::OverwriteIfExistsOrAdd,
        (None, 3) => AppendAction::OverwriteIfExists,
        (None, other) => return error("append_action", format!("{other} is not known")),
        (Some(_), _) => return error("append", "cannot be set together with append_action"),
    };
    let name = header_name(&header.key)?;
    let value = match (header.value.is_empty(), header.raw_value.is_empty()) {
        (false, false) => return error("header", "has both a value and a raw value"),
        (true, false) => Format::literal(&header.raw_value),
        (_, true) => {
            Format::parse(&header.value).or_else(|e| error("header.value", e.to_string()))?
        }
    };
    Ok(HeaderEdit { name, value, action, keep_empty: *keep_empty_value })
}

/// As in Envoy, rewrites are the only way to change the host or another pseudo header.
fn header_name(name: &str) -> Result<Box<str>> {
    let token = !name.is_empty() && name.bytes().all(is_token_byte);
    match token && !is_pseudo(name) {
        true => Ok(name.into()),
        false => error("header.key", format!("{name:?} is not a header that edits may change")),
    }
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
