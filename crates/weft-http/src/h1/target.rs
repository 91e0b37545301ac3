//! Request targets and `Host` (RFC 9112 §3.2, RFC 9110 §7.2).

use std::ops::Range;

use super::error::ParseError;
use crate::message::{Method, Scheme};

/// A request target as ranges of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TargetForm {
    /// Starts with `/`.
    Origin,
    Absolute {
        scheme: Scheme,
        authority: Range<usize>,
        path: AbsolutePath,
    },
    Asterisk,
    Authority,
}

/// The path of an absolute form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AbsolutePath {
    /// From here to the end; starts with `/`.
    From(usize),
    /// Nothing after the authority.
    Empty,
}

/// Sorts a target by its form; refuses what the method does not allow.
pub(super) fn parse_target(method: &Method, target: &[u8]) -> Result<TargetForm, ParseError> {
    // A fragment never belongs in a request, and servers disagree on where it ends the path. Bytes
    // that are not ASCII must be escaped (RFC 3986 §2.1); half of the servers refuse them.
    if memchr::memchr(b'#', target).is_some() || !target.is_ascii() {
        return Err(ParseError::Target);
    }
    if *method == Method::Connect {
        return match is_authority(target) && has_port(target) {
            true => Ok(TargetForm::Authority),
            false => Err(ParseError::Target),
        };
    }
    match target {
        [b'/', ..] => Ok(TargetForm::Origin),
        b"*" if *method == Method::Options => Ok(TargetForm::Asterisk),
        _ => parse_absolute(target),
    }
}

fn parse_absolute(target: &[u8]) -> Result<TargetForm, ParseError> {
    let (scheme, start) = if starts_with_ignoring_case(target, b"http://") {
        (Scheme::Http, 7)
    } else if starts_with_ignoring_case(target, b"https://") {
        (Scheme::Https, 8)
    } else {
        return Err(ParseError::Target);
    };
    let rest = &target[start..];
    let end = start + memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let authority = start..end;
    let text = &target[authority.clone()];
    // `http://user:/x@host` has its port empty for some and its user for others.
    if text.is_empty() || text.ends_with(b":") || !is_authority(text) {
        return Err(ParseError::Target);
    }
    let path = match target.get(end) {
        None => AbsolutePath::Empty,
        Some(b'/') => AbsolutePath::From(end),
        // RFC 3986 allows a query without a path, but servers take it for a path or refuse it.
        Some(_) => return Err(ParseError::Target),
    };
    Ok(TargetForm::Absolute { scheme, authority, path })
}

/// Host with optional port. User information, whitespace and list commas are refused: they make
/// two readers see two hosts.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    if text.iter().all(|&byte| HOST[usize::from(byte)]) {
        return true;
    }
    let (host, port) = split_port(text);
    port.iter().all(u8::is_ascii_digit)
        && port.len() <= 5
        && match host {
            [b'[', inner @ .., b']'] => {
                !inner.is_empty()
                    && inner.iter().all(|&byte| {
                        byte.is_ascii_hexdigit()
                            || matches!(byte, b':' | b'.' | b'%' | b'v')
                            || byte.is_ascii_alphanumeric()
                    })
            }
            _ => host.iter().all(|&byte| HOST[usize::from(byte)]),
        }
}

fn has_port(authority: &[u8]) -> bool {
    let (host, port) = split_port(authority);
    !host.is_empty() && !port.is_empty()
}

/// Host (brackets kept) and the digits after the last colon.
fn split_port(text: &[u8]) -> (&[u8], &[u8]) {
    let from = text.iter().rposition(|&byte| byte == b']').map_or(0, |at| at + 1);
    match memchr::memchr(b':', &text[from..]) {
        Some(at) => (&text[..from + at], &text[from + at + 1..]),
        None => (text, &[]),
    }
}

/// `reg-name` of RFC 3986 §3.2.2 without the comma, and without escapes: no name in use needs one,
/// and who undoes them sees another host.
static HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b';'
                    | b'='
            );
        byte += 1;
    }
    table
};

fn starts_with_ignoring_case(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}
