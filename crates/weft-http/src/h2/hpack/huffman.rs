//! The Huffman code of RFC 7541, Appendix B. It is canonical: the lengths say it all.
//!
//! Decoding looks at 12 bits at a time, which mostly hold two characters; the few codes that are
//! longer are found by comparing with the first code of each length.

use super::HpackError;

/// Code lengths in bits, by byte value; the last one is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
    30,
];

const EOS: usize = 256;
const LONGEST: usize = 30;
/// Bits looked at in one step.
const STEP: u32 = 12;

/// The code of each byte, right-aligned.
static CODES: [u32; 257] = CANONICAL.codes;
static PAIRS: [Pair; 1 << STEP] = pairs();
static LONG: Canonical = CANONICAL;

const CANONICAL: Canonical = canonical();

struct Canonical {
    codes: [u32; 257],
    /// First code beyond those of each length, left-aligned to 30 bits.
    end: [u32; LONGEST + 1],
    /// First code of each length, right-aligned.
    first: [u32; LONGEST + 1],
    /// Where the symbols of each length start in `symbols`.
    start: [u16; LONGEST + 1],
    /// Symbols by code.
    symbols: [u16; 257],
}

const fn canonical() -> Canonical {
    let mut table = Canonical {
        codes: [0; 257],
        end: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut code, mut placed, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        table.first[length] = code;
        table.start[length] = placed as u16;
        let mut symbol = 0;
        while symbol <= EOS {
            if LENGTHS[symbol] as usize == length {
                table.codes[symbol] = code;
                table.symbols[placed] = symbol as u16;
                placed += 1;
                code += 1;
            }
            symbol += 1;
        }
        table.end[length] = code << (LONGEST - length);
        length += 1;
    }
    table
}

/// What the next 12 bits hold.
#[derive(Clone, Copy)]
struct Pair {
    symbols: [u8; 2],
    /// Length of the first code; 0 when it is longer than the step.
    first: u8,
    /// Length of both; the same as `first` when there is only one.
    both: u8,
}

const fn pairs() -> [Pair; 1 << STEP] {
    let mut table = [Pair { symbols: [0; 2], first: 0, both: 0 }; 1 << STEP];
    let mut symbol = 0;
    while symbol < EOS {
        let length = LENGTHS[symbol] as u32;
        if length <= STEP {
            let start = CANONICAL.codes[symbol] << (STEP - length);
            let mut at = start;
            while at < start + (1 << (STEP - length)) {
                table[at as usize] =
                    Pair { symbols: [symbol as u8, 0], first: length as u8, both: length as u8 };
                at += 1;
            }
        }
        symbol += 1;
    }
    // Of the place that holds what follows a short code only the first half is read, which stays.
    let mut at = 0;
    while at < table.len() {
        let first = table[at].first;
        let rest = table[(at << first) & ((1 << STEP) - 1)];
        if first > 0 && rest.first > 0 && first as u32 + rest.first as u32 <= STEP {
            table[at].symbols[1] = rest.symbols[0];
            table[at].both = first + rest.first;
        }
        at += 1;
    }
    table
}

/// Most bytes that `coded` can decode to: the shortest code has five bits.
fn decoded_len_max(coded: usize) -> usize {
    coded * 8 / 5 + 1
}

/// Appends what `coded` stands for.
///
/// # Errors
/// [`HpackError::Huffman`] for EOS within the string, and for padding that is longer than 7 bits or
/// not all ones.
pub(super) fn decode(coded: &[u8], out: &mut bytes::BytesMut) -> Result<(), HpackError> {
    let start = out.len();
    // One more for the second half of the last pair.
    out.resize(start + decoded_len_max(coded.len()) + 1, 0);
    let room = &mut out[start..];
    let mut written = 0;
    // Bits not yet decoded, left-aligned; below them zeros.
    let (mut bits, mut bit_count, mut at) = (0_u64, 0_u32, 0);
    loop {
        match coded.get(at..).and_then(<[u8]>::first_chunk) {
            Some(chunk) => {
                bits |= u64::from_be_bytes(*chunk) >> bit_count;
                at += (63 - bit_count as usize) / 8;
                bit_count |= 56;
            }
            None => {
                while bit_count <= 56
                    && let Some(&byte) = coded.get(at)
                {
                    bits |= u64::from(byte) << (56 - bit_count);
                    bit_count += 8;
                    at += 1;
                }
                if at >= coded.len() {
                    break;
                }
            }
        }
        // At least 56 bits: four pairs, or a long code.
        for _ in 0..4 {
            let pair = PAIRS[(bits >> (64 - STEP)) as usize];
            if pair.first == 0 {
                break;
            }
            room[written] = pair.symbols[0];
            room[written + 1] = pair.symbols[1];
            written += 1 + usize::from(pair.both != pair.first);
            bits <<= pair.both;
            bit_count -= u32::from(pair.both);
        }
        if PAIRS[(bits >> (64 - STEP)) as usize].first == 0 && bit_count >= LONGEST as u32 {
            let (symbol, length) = long(bits)?;
            room[written] = symbol;
            written += 1;
            bits <<= length;
            bit_count -= length;
        }
    }
    let tail = decode_tail(bits, bit_count, &mut room[written..])?;
    out.truncate(start + written + tail);
    Ok(())
}

/// The last bits, one character at a time, and the padding.
fn decode_tail(mut bits: u64, mut bit_count: u32, room: &mut [u8]) -> Result<usize, HpackError> {
    let mut written = 0;
    loop {
        // Padding is the start of EOS: with ones below, no shorter code can be made of too few bits.
        let filled = bits | u64::MAX.checked_shr(bit_count).unwrap_or(0);
        let pair = PAIRS[(filled >> (64 - STEP)) as usize];
        let (symbol, length) = match pair.first {
            0 if bit_count < 8 && filled == u64::MAX => return Ok(written),
            0 => long(filled)?,
            first => (pair.symbols[0], u32::from(first)),
        };
        if length > bit_count {
            return Err(HpackError::Huffman);
        }
        room[written] = symbol;
        written += 1;
        bits <<= length;
        bit_count -= length;
    }
}

/// The code at the front of `bits`, longer than the step.
#[cold]
fn long(bits: u64) -> Result<(u8, u32), HpackError> {
    let code = (bits >> (64 - LONGEST)) as u32;
    for length in STEP as usize + 1..=LONGEST {
        if code < LONG.end[length] {
            let index = (code >> (LONGEST - length)) - LONG.first[length];
            let symbol = LONG.symbols[usize::from(LONG.start[length]) + index as usize];
            let byte = u8::try_from(symbol).map_err(|_| HpackError::Huffman)?;
            return Ok((byte, length as u32));
        }
    }
    Err(HpackError::Huffman)
}

/// Length of `text` in code, in bytes.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize =
        text.iter().map(|&byte| usize::from(LENGTHS_OF_BYTES[usize::from(byte)])).sum();
    bits.div_ceil(8)
}

static LENGTHS_OF_BYTES: [u8; 256] = {
    let mut lengths = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        lengths[byte] = LENGTHS[byte];
        byte += 1;
    }
    lengths
};

/// Appends `text` in code.
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    // Bits not yet written, right-aligned.
    let (mut bits, mut bit_count) = (0_u64, 0_u32);
    for &byte in text {
        let length = u32::from(LENGTHS_OF_BYTES[usize::from(byte)]);
        bits = bits << length | u64::from(CODES[usize::from(byte)]);
        bit_count += length;
        while bit_count >= 8 {
            bit_count -= 8;
            out.push((bits >> bit_count) as u8);
        }
    }
    if bit_count > 0 {
        let padding = 8 - bit_count;
        out.push((bits << padding) as u8 | ((1_u16 << padding) - 1) as u8);
    }
}
