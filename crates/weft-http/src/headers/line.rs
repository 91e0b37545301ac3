//! One line of a list: offsets, the index of known names, and which bytes a line may hold.

use super::known::{KNOWN_COUNT, Known};

/// One line: where it starts and ends (CR LF included), and where its name and value are in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) name_len: u32,
    pub(crate) value_start: u32,
    pub(crate) value_len: u32,
    /// `Known as u8`, or `UNKNOWN`.
    pub(crate) known: u8,
    pub(crate) place: Place,
    /// From HTTP/2: kept out of every compression table (RFC 7541 §6.2.3).
    pub(crate) never_indexed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Block,
    Overlay,
    Removed,
}

pub(crate) const UNKNOWN: u8 = u8::MAX;
pub(super) const FAR: u8 = u8::MAX;

/// Where names stand, so that most need not be searched for.
#[derive(Clone, Debug)]
pub(crate) struct FirstIndex {
    /// For each known name, 1 + the entry of its first line; 0 none; `FAR` beyond the byte's range.
    pub(super) known: [u8; KNOWN_COUNT],
    /// How long the other names are; perhaps those of lines that are gone, too.
    pub(super) others: Lengths,
}

impl Default for FirstIndex {
    fn default() -> Self {
        FirstIndex { known: [0; KNOWN_COUNT], others: Lengths::of(&[]) }
    }
}

impl FirstIndex {
    /// Notes entry `index`, whose name is `known` or of `name_len` bytes.
    pub(crate) fn note(&mut self, known: u8, name_len: usize, index: usize) {
        match self.known.get_mut(usize::from(known)) {
            Some(slot @ 0) => *slot = u8::try_from(index + 1).unwrap_or(FAR),
            Some(_) => {}
            None => self.others.add(name_len),
        }
    }
}

/// Lengths of names, told apart up to 64: enough to know that a name cannot be among some others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths(u64);

impl Lengths {
    /// Those of `names`.
    pub const fn of(names: &[&str]) -> Lengths {
        let mut lengths = Lengths(0);
        let mut index = 0;
        while index < names.len() {
            lengths.add(names[index].len());
            index += 1;
        }
        lengths
    }

    const fn add(&mut self, length: usize) {
        self.0 |= 1 << (length % 64);
    }

    pub(super) fn may_have(self, length: usize) -> bool {
        self.0 & (1 << (length % 64)) != 0
    }

    pub(super) fn meet(self, other: Lengths) -> bool {
        self.0 & other.0 != 0
    }
}

/// The `Entry::known` of a name.
pub(crate) fn known_byte(name: &[u8]) -> u8 {
    Known::from_name(name).map_or(UNKNOWN, |known| known as u8)
}

/// Head limits keep every offset far below the range of `u32`.
pub(crate) fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("a head is limited to far less than 4 GiB")
}

/// `tchar` of RFC 9110 §5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

/// RFC 9110 §5.5 lets a recipient replace control characters with SP; blanks around go.
pub(super) fn push_value(overlay: &mut Vec<u8>, value: &[u8]) {
    if !may_hold_control(value) {
        return overlay.extend_from_slice(value.trim_ascii());
    }
    let is_control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    let clean: Vec<u8> =
        value.iter().map(|&byte| if is_control(byte) { b' ' } else { byte }).collect();
    overlay.extend_from_slice(clean.trim_ascii());
}

/// Whether a byte is below SP (tabs included) or DEL: eight at a time, since every line written
/// comes through here.
fn may_hold_control(value: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let found = |word: u64| below(word, 0x20) | below(word ^ (ONES * 0x7f), 1) != 0;
    let words = value.as_chunks::<8>().0;
    match value.last_chunk::<8>() {
        // The last one overlaps the one before it.
        Some(last) => {
            words.iter().any(|word| found(u64::from_ne_bytes(*word)))
                || found(u64::from_ne_bytes(*last))
        }
        None => value.iter().any(|&byte| byte < b' ' || byte == 0x7f),
    }
}

#[cfg(test)]
mod tests {
    use super::{may_hold_control, push_value};

    #[test]
    fn control_bytes_are_found_wherever_they_stand() {
        for length in 0..30 {
            let mut value: Vec<u8> = (0..length).map(|at| b"!~ \x80\xff9az"[at % 8]).collect();
            assert!(!may_hold_control(&value), "{length}");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let before = std::mem::replace(&mut value[at], byte);
                    let control = byte < b' ' || byte == 0x7f;
                    assert_eq!(may_hold_control(&value), control, "{byte} at {at} of {length}");
                    value[at] = before;
                }
            }
        }
    }

    #[test]
    fn controls_become_spaces_and_a_tab_stays() {
        let mut out = Vec::new();
        push_value(&mut out, b" one\ttwo\r\nthree\x7f ");
        assert_eq!(out, b"one\ttwo  three");
    }
}
