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

#[derive(Clone, Debug)]
pub(crate) struct FirstIndex(pub(super) [u8; KNOWN_COUNT]);

impl Default for FirstIndex {
    fn default() -> Self {
        FirstIndex([0; KNOWN_COUNT])
    }
}

impl FirstIndex {
    /// Notes entry `index` unless an earlier line has the name.
    pub(crate) fn note(&mut self, known: u8, index: usize) {
        if let Some(slot @ 0) = self.0.get_mut(usize::from(known)) {
            *slot = u8::try_from(index + 1).unwrap_or(FAR);
        }
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
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    // Without an early end, so that many bytes are compared at once.
    if !value.iter().fold(false, |found, byte| found | is_control(byte)) {
        return overlay.extend_from_slice(value.trim_ascii());
    }
    let clean: Vec<u8> =
        value.iter().map(|byte| if is_control(byte) { b' ' } else { *byte }).collect();
    overlay.extend_from_slice(clean.trim_ascii());
}
