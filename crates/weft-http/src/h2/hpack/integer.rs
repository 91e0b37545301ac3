//! Integers with a prefix (RFC 7541 §5.1).

use super::HpackError;

/// Bytes after the prefix; 28 bits of value are far more than any index, length or size we accept.
const CONTINUATION_MAX: usize = 4;

/// Reads an integer whose prefix is the low `prefix` bits of `block[*at]`, and steps over it.
///
/// # Errors
/// When the block ends first or the integer is too long.
#[inline]
pub(super) fn decode(block: &[u8], at: &mut usize, prefix: u32) -> Result<usize, HpackError> {
    let mask = (1_usize << prefix) - 1;
    let first = usize::from(*block.get(*at).ok_or(HpackError::Truncated)?) & mask;
    *at += 1;
    if first < mask {
        return Ok(first);
    }
    decode_rest(block, at, mask)
}

fn decode_rest(block: &[u8], at: &mut usize, mask: usize) -> Result<usize, HpackError> {
    let mut value = mask;
    for step in 0..CONTINUATION_MAX {
        let byte = *block.get(*at).ok_or(HpackError::Truncated)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << (7 * step);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Integer)
}

/// Appends `value` with `pattern` in the bits above the prefix.
#[inline]
pub(super) fn encode(value: usize, pattern: u8, prefix: u32, out: &mut Vec<u8>) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
