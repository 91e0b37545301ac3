//! `Content-Length` and `Transfer-Encoding`, read so that no second reading exists.

use super::error::ParseError;

/// The largest length taken: the next sum with a head must not overflow anywhere.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// What the framing lines of a head say, gathered line by line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FramingLines {
    pub(super) length: Option<u64>,
    pub(super) coding: Coding,
    pub(super) repeated_chunked: bool,
    /// A coding besides `chunked` is among them.
    pub(super) compressed: bool,
}

/// The transfer codings seen so far, in order over all lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Coding {
    /// No such line.
    #[default]
    Absent,
    /// Lines, and `chunked` is not last.
    Open,
    /// `chunked` is last.
    Chunked,
}

impl FramingLines {
    /// A `Content-Length` line. `lists` allows `5, 5` (RFC 9110 §8.6 lets a recipient collapse it).
    pub(super) fn content_length(&mut self, value: &[u8], lists: bool) -> Result<(), ParseError> {
        if !lists {
            return self.one_length(value);
        }
        value.split(|&byte| byte == b',').try_for_each(|part| self.one_length(part.trim_ascii()))
    }

    fn one_length(&mut self, digits: &[u8]) -> Result<(), ParseError> {
        let length = parse_length(digits).ok_or(ParseError::ContentLength)?;
        match self.length {
            Some(earlier) if earlier != length => Err(ParseError::ContentLengthConflict),
            _ => {
                self.length = Some(length);
                Ok(())
            }
        }
    }

    /// A `Transfer-Encoding` line (RFC 9112 §6.1). Empty list members are refused, too.
    pub(super) fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ParseError> {
        for name in value.split(|&byte| byte == b',') {
            let name = name.trim_ascii();
            if self.coding == Coding::Chunked {
                if !name.eq_ignore_ascii_case(b"chunked") {
                    return Err(ParseError::TransferEncoding);
                }
                self.repeated_chunked = true;
            } else if name.eq_ignore_ascii_case(b"chunked") {
                self.coding = Coding::Chunked;
            } else if is_compression(name) {
                self.coding = Coding::Open;
                self.compressed = true;
            } else if !name.is_empty() && name.iter().all(|&b| crate::headers::is_token_byte(b)) {
                return Err(ParseError::UnknownCoding);
            } else {
                return Err(ParseError::TransferEncoding);
            }
        }
        Ok(())
    }
}

/// Codings that may stand before `chunked` in a response (RFC 9112 §7); they are passed on, never
/// undone.
fn is_compression(name: &[u8]) -> bool {
    [&b"gzip"[..], b"x-gzip", b"compress", b"x-compress", b"deflate"]
        .iter()
        .any(|coding| coding.eq_ignore_ascii_case(name))
}

/// Digits only, in range.
fn parse_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut length = 0_u64;
    for &byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (length <= LENGTH_MAX).then_some(length)
}

/// Whether a comma-separated `value` names `token`, without case.
pub(crate) fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}
