//! Finding a field in the encoder's table: fixed slots by hash, overwritten without asking. A lost
//! or stale slot costs a literal, never a wrong field: every hit is compared with the entry.

use super::table::{Entry, Table};

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
}

impl Lookup {
    pub(super) fn new() -> Box<Lookup> {
        Box::new(Lookup { pairs: [0; PAIR_SLOTS], names: [0; NAME_SLOTS], seen: [0; SEEN_SLOTS] })
    }

    /// HPACK index of the entry with this name and value.
    #[inline]
    pub(super) fn find(
        &self,
        table: &Table,
        pair_hash: u64,
        name: &[u8],
        value: &[u8],
    ) -> Option<usize> {
        let (index, entry) = entry_of(table, self.pairs[pair_hash as usize % PAIR_SLOTS])?;
        (entry.value() == value && entry.name() == name).then_some(index)
    }

    /// HPACK index of an entry with this name.
    #[inline]
    pub(super) fn find_name(&self, table: &Table, name_hash: u64, name: &[u8]) -> Option<usize> {
        let (index, entry) = entry_of(table, self.names[name_hash as usize % NAME_SLOTS])?;
        (entry.name() == name).then_some(index)
    }

    /// Notes the entry just inserted.
    pub(super) fn note(&mut self, table: &Table, name_hash: u64, pair_hash: u64) {
        let sequence = table.inserted() as u16;
        self.pairs[pair_hash as usize % PAIR_SLOTS] = sequence;
        self.names[name_hash as usize % NAME_SLOTS] = sequence;
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
    Some((age + super::statics::COUNT + 1, table.get(age)?))
}

/// A hash of `bytes`, continued from `seed`; quick and not hard to collide with, which costs
/// compression and nothing else.
#[inline]
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(K);
    let mix = |state: u64, word: u64| {
        let product = u128::from(state ^ word) * u128::from(K);
        product as u64 ^ (product >> 64) as u64
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = mix(state, u64::from_le_bytes(*word));
    }
    let mut last = 0;
    for &byte in rest {
        last = last << 8 | u64::from(byte);
    }
    mix(state, last ^ K)
}
