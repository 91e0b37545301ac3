//! Legal forms of names, hosts, paths and patterns.

use regex::RegexBuilder;

/// Compiled size of one user pattern; Envoy's program-size warning is at 100 instructions, this
/// only stops patterns that would eat memory.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// RFC 1123 label: a namespace, a Service.
pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    matches!(bytes.len(), 1..=63)
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

/// RFC 1123 subdomain: names of most kinds.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A DNS name in any case, a final dot allowed; an underscore is tolerated as Istio does.
pub(crate) fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        matches!(bytes.len(), 1..=63)
            && bytes.iter().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 255 && text.split('.').all(label)
}

/// `*`, `*.example.com`, `*-a.example.com` or a DNS name.
pub(crate) fn is_host(text: &str) -> bool {
    match text.strip_prefix('*') {
        None => is_dns_name(text),
        Some("") => true,
        Some(rest) => is_dns_name(rest.strip_prefix(['.', '-']).unwrap_or("")),
    }
}

pub(crate) fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

pub(crate) fn is_port(number: u32) -> bool {
    (1..=65535).contains(&number)
}

/// Why a pattern cannot be used, if so. RE2's syntax is what the regex crate takes.
pub(crate) fn regex_problem(pattern: &str) -> Option<String> {
    if pattern.is_empty() {
        return Some("the pattern is empty".into());
    }
    match RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build() {
        Ok(_) => None,
        Err(regex::Error::CompiledTooBig(_)) => Some("the pattern is too large".into()),
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim().to_string();
            Some(format!("not a valid RE2 pattern: {}", last.trim_start_matches("error: ")))
        }
    }
}

/// A Kubernetes kind: letters, digits and dashes, beginning with a letter.
pub(crate) fn is_kind(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes[0].is_ascii_alphabetic()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// RFC 9110 §5.6.2 token.
pub(crate) fn is_header_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
