//! Finding a field in the encoder's table: fixed slots by hash, overwritten without asking. A lost
//! or stale slot costs a literal, never a wrong field: every hit is compared with the entry.

use super::class::{Class, Kind, NameClass};
use super::statics;
use super::table::{Entry, Table};
use crate::headers::{KNOWN_COUNT, Known, UNKNOWN};

const PAIR_SLOTS: usize = 128;
const NAME_SLOTS: usize = 64;
const SEEN_SLOTS: usize = 64;

/// Slots hold the low bits of [`Table::inserted`] at insertion. Zeroed slots are as good as stale.
#[derive(Debug)]
pub(super) struct Lookup {
    pairs: [u16; PAIR_SLOTS],
    names: [u16; NAME_SLOTS],
    /// Hashes of fields that were sent and not inserted.
    seen: [u16; SEEN_SLOTS],
    /// A line being put together; here to keep the encoder small.
    line: Vec<u8>,
}

impl Lookup {
    pub(super) fn new() -> Box<Lookup> {
        Box::new(Lookup {
            pairs: [0; PAIR_SLOTS],
            names: [0; NAME_SLOTS],
            seen: [0; SEEN_SLOTS],
            line: Vec::new(),
        })
    }

    /// HPACK index of the entry with this name and value.
    #[inline]
    pub(super) fn find(
        &self,
        table: &Table,
        pair_hash: u64,
        name: &Name<'_>,
        value: &[u8],
    ) -> Option<usize> {
        let (index, entry) = entry_of(table, self.pairs[pair_hash as usize % PAIR_SLOTS])?;
        (name.is_of(&entry) && entry.value() == value).then_some(index)
    }

    /// HPACK index of an entry with this name.
    #[inline]
    pub(super) fn find_name(&self, table: &Table, name: &Name<'_>) -> Option<usize> {
        let (index, entry) = entry_of(table, self.names[name.hash as usize % NAME_SLOTS])?;
        name.is_of(&entry).then_some(index)
    }

    /// Notes the entry just inserted.
    pub(super) fn note(&mut self, table: &Table, name: &Name<'_>, pair_hash: u64) {
        let sequence = table.inserted() as u16;
        self.pairs[pair_hash as usize % PAIR_SLOTS] = sequence;
        self.names[name.hash as usize % NAME_SLOTS] = sequence;
    }

    /// The line of a field.
    pub(super) fn line(&mut self, name: &[u8], value: &[u8]) -> &[u8] {
        self.line.clear();
        self.line.extend_from_slice(name);
        self.line.extend_from_slice(b": ");
        self.line.extend_from_slice(value);
        self.line.extend_from_slice(b"\r\n");
        &self.line
    }

    /// Whether a field of this hash was sent lately; notes that it was.
    #[inline]
    pub(super) fn seen(&mut self, pair_hash: u64) -> bool {
        let slot = &mut self.seen[pair_hash as usize % SEEN_SLOTS];
        let mark = (pair_hash >> 40) as u16 | 1;
        std::mem::replace(slot, mark) == mark
    }
}

/// The entry inserted as number `sequence`, if it still lives, and its HPACK index.
#[inline]
fn entry_of(table: &Table, sequence: u16) -> Option<(usize, Entry<'_>)> {
    let age = usize::from((table.inserted() as u16).wrapping_sub(sequence));
    Some((age + statics::COUNT + 1, table.get(age)?))
}

/// A name to be sent, in lower case. Names of the static table and known ones compare by number.
#[derive(Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) text: &'a [u8],
    /// First entry of the static table with this name; 0 when there is none.
    pub(super) static_index: usize,
    /// The static index, or the known name's number behind those, or `UNKNOWN`.
    identity: u8,
    hash: u64,
}

impl<'a> Name<'a> {
    /// A name of the static table.
    #[inline]
    pub(super) fn of_static(static_index: usize, text: &'a [u8]) -> Name<'a> {
        let hash = (static_index as u64).wrapping_mul(K);
        Name { text, static_index, identity: static_index as u8, hash }
    }

    /// A known name, whatever its spelling was.
    #[inline]
    pub(super) fn of_known(known: Known) -> Name<'static> {
        let text = known.name().as_bytes();
        match STATIC_INDEX_OF_KNOWN[known as usize] {
            0 => {
                let identity = (statics::COUNT + 1) as u8 + known as u8;
                let hash = u64::from(identity).wrapping_mul(K);
                Name { text, static_index: 0, identity, hash }
            }
            index => Name::of_static(usize::from(index), text),
        }
    }

    /// Any other name, in lower case.
    #[inline]
    pub(super) fn of_text(text: &'a [u8]) -> Name<'a> {
        match statics::find_name(text) {
            0 => Name { text, static_index: 0, identity: UNKNOWN, hash: hash(K, text) },
            index => Name::of_static(index, text),
        }
    }

    /// What an entry keeps of its name beside the text; the rest is the decoder's business.
    pub(super) fn class(&self) -> Class {
        let name = NameClass { known: self.identity, kind: Kind::Regular };
        Class { name, value_fault: None }
    }

    /// Whether its values hardly ever come twice: one that the request path makes for each request.
    #[inline]
    pub(super) fn is_unique(&self) -> bool {
        let known = usize::from(self.identity).wrapping_sub(statics::COUNT + 1);
        UNIQUE.get(known).copied().unwrap_or(false)
    }

    /// The hash of a field with this name.
    #[inline]
    pub(super) fn hash_with(&self, value: &[u8]) -> u64 {
        hash(self.hash, value)
    }

    #[inline]
    fn is_of(&self, entry: &Entry<'_>) -> bool {
        let identity = entry.class.name.known;
        identity == self.identity && (identity != UNKNOWN || entry.name() == self.text)
    }
}

static UNIQUE: [bool; KNOWN_COUNT] = {
    let mut unique = [false; KNOWN_COUNT];
    unique[Known::XRequestId as usize] = true;
    unique[Known::Traceparent as usize] = true;
    unique[Known::XB3TraceId as usize] = true;
    unique[Known::XB3SpanId as usize] = true;
    unique[Known::XB3ParentSpanId as usize] = true;
    unique
};

static STATIC_INDEX_OF_KNOWN: [u8; KNOWN_COUNT] = {
    let mut indexes = [0; KNOWN_COUNT];
    let mut known = 0;
    while known < KNOWN_COUNT {
        indexes[known] = statics::find_name(Known::ALL[known].name().as_bytes()) as u8;
        known += 1;
    }
    indexes
};

const K: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of `bytes`, continued from `seed`; quick and not hard to collide with, which costs
/// compression and nothing else.
#[inline]
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mix = |state: u64, word: u64| {
        let product = u128::from(state ^ word) * u128::from(K);
        product as u64 ^ (product >> 64) as u64
    };
    let mut state = seed ^ (bytes.len() as u64) << 32;
    for word in bytes.as_chunks::<8>().0 {
        state = mix(state, u64::from_le_bytes(*word));
    }
    // The rest, together with bytes before it where there are any.
    let last = match (bytes.last_chunk::<8>(), bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(last), ..) => u64::from_le_bytes(*last),
        (None, Some(first), Some(last)) => {
            u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
        }
        _ => bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    };
    mix(state, last ^ K)
}
