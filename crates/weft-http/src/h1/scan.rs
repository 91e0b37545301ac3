//! Ordinary heads, read in one pass: a start line and fields with nothing unusual about them, which
//! nearly all are. Whatever else comes is `None`, and the thorough readers in `request` and
//! `response` decide; they would read what is read here the same way (a test compares them).

use std::ops::Range;

use super::Limits;
use super::lines::{Lines, head_max};
use crate::headers::{Entry, Known, Place, UNKNOWN, is_token_byte, offset};
use crate::message::{Method, Version};

/// A request line with its fields, as ranges of the window.
pub(super) struct RequestScan {
    pub(super) head_len: usize,
    pub(super) method: Method,
    /// Printable ASCII without `#`; not empty.
    pub(super) target: Range<usize>,
    pub(super) version: Version,
    pub(super) lines: Lines,
}

/// A status line with its fields, as ranges of the window.
pub(super) struct ResponseScan {
    pub(super) head_len: usize,
    pub(super) status: u16,
    pub(super) reason: Range<usize>,
    pub(super) version: Version,
    pub(super) lines: Lines,
}

/// Reads a request head whose method is a registered one.
pub(super) fn request(window: &[u8], limits: &Limits) -> Option<RequestScan> {
    let name_len = window.iter().take(METHOD_MAX).position(|&byte| byte == b' ')?;
    let method = Method::common(&window[..name_len])?;
    let start = name_len + 1;
    let end = start + visible_len(&window[start..]);
    let version = version_of(window.get(end..end + 11)?.strip_prefix(b" ")?)?;
    let mut lines = Lines::new();
    let head_len = fields(window, end + 11, &mut lines, limits, false)?;
    (end > start).then_some(RequestScan { head_len, method, target: start..end, version, lines })
}

/// Reads a response head.
pub(super) fn response(window: &[u8], limits: &Limits) -> Option<ResponseScan> {
    let line: &[u8; 13] = window.first_chunk()?;
    let &[b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor, b' ', a, b, c, b' '] = line else {
        return None;
    };
    let version = match minor {
        b'1' => Version::H11,
        b'0' => Version::H10,
        _ => return None,
    };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let status = digit(a)? * 100 + digit(b)? * 10 + digit(c)?;
    let end = line.len() + plain_len(&window[line.len()..]);
    if status < 100 || !window[end..].starts_with(b"\r\n") {
        return None;
    }
    let mut lines = Lines::new();
    let head_len = fields(window, end + 2, &mut lines, limits, true)?;
    Some(ResponseScan { head_len, status, reason: line.len()..end, version, lines })
}

/// Longest registered method and a space.
const METHOD_MAX: usize = 8;

fn version_of(text: &[u8]) -> Option<Version> {
    match text {
        b"HTTP/1.1\r\n" => Some(Version::H11),
        b"HTTP/1.0\r\n" => Some(Version::H10),
        _ => None,
    }
}

/// Reads fields from `at` to the end of the head, whose length it returns.
fn fields(
    window: &[u8],
    mut at: usize,
    lines: &mut Lines,
    limits: &Limits,
    response: bool,
) -> Option<usize> {
    loop {
        let line = &window[at..];
        if let [b'\r', b'\n', ..] = line {
            return Some(at + 2).filter(|&head_len| head_len <= head_max(limits));
        }
        let name_len = line.iter().position(|&byte| !is_token_byte(byte))?;
        if name_len == 0 || line[name_len] != b':' || lines.entries.len() >= limits.headers_max {
            return None;
        }
        let blanks = line[name_len + 1..].iter().position(|&byte| byte != b' ')?;
        let value_start = name_len + 1 + blanks;
        let value_end = value_start + plain_len(&line[value_start..]);
        let [b'\r', b'\n', ..] = line[value_end..] else { return None };
        let value = line[value_start..value_end].trim_ascii_end();
        let known = Known::from_token(&line[..name_len]);
        let index = lines.entries.len();
        let known_byte = known.map_or(UNKNOWN, |known| known as u8);
        lines.first.note(known_byte, name_len, index);
        lines.entries.push(Entry {
            start: offset(at),
            end: offset(at + value_end + 2),
            name_len: offset(name_len),
            value_start: offset(at + value_start),
            value_len: offset(value.len()),
            known: known_byte,
            place: Place::Block,
            never_indexed: false,
        });
        if let Some(known) = known {
            lines.note(window, known, value, response).ok()?;
        }
        at += value_end + 2;
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// A word whose lowest high bit marks the first byte of `word` that is below `limit` (at most 128);
/// later marks may be wrong.
fn below(word: u64, limit: u64) -> u64 {
    word.wrapping_sub(ONES * limit) & !word & HIGH
}

/// Likewise for bytes that are `byte`, which is ASCII.
fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * u64::from(byte)), 1)
}

/// Length of the run of bytes that a field value has, tabs excepted: no control characters.
fn plain_len(text: &[u8]) -> usize {
    run_len(text, |word| below(word, 0x20) | equal(word, 0x7f), |byte| byte >= b' ' && byte != 0x7f)
}

/// Length of the run of printable ASCII without blanks and `#`.
fn visible_len(text: &[u8]) -> usize {
    let stops = |word: u64| below(word, 0x21) | equal(word, 0x7f) | equal(word, b'#') | word & HIGH;
    run_len(text, stops, |byte| matches!(byte, b'!'..=b'~') && byte != b'#')
}

/// Length of the run of bytes that do not stop it: eight at a time, then one.
fn run_len(text: &[u8], stops: impl Fn(u64) -> u64, goes_on: impl Fn(u8) -> bool) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let stop = stops(u64::from_le_bytes(*word));
        if stop != 0 {
            return index * 8 + stop.trailing_zeros() as usize / 8;
        }
    }
    let tail = rest.iter().position(|&byte| !goes_on(byte)).unwrap_or(rest.len());
    words.len() * 8 + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_they_should() {
        for length in 0..40 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    let stops = (byte < b' ') || byte == 0x7f;
                    assert_eq!(plain_len(&text), if stops { at } else { length });
                    let stops = byte <= b' ' || byte >= 0x7f || byte == b'#';
                    assert_eq!(visible_len(&text), if stops { at } else { length });
                }
            }
        }
    }
}
