//! The dynamic table (RFC 7541 §§2.3.2, 4), of lines. Both ends use it.

use std::collections::VecDeque;

use super::class::Class;

/// Entries newest last, their lines in one run of bytes.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: VecDeque<Line>,
    /// Lines of all entries in order; those before `dead` are of evicted ones.
    bytes: Vec<u8>,
    dead: usize,
    /// As RFC 7541 §4.1 counts.
    size: usize,
    size_max: usize,
    /// Entries ever inserted, for names of entries that stay true while others come.
    inserted: u32,
}

/// One entry: where its line starts, and how long its parts are.
#[derive(Clone, Copy, Debug)]
struct Line {
    start: u32,
    name_len: u32,
    value_len: u32,
    class: Class,
}

/// An entry as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'t> {
    /// `name: value CR LF`.
    pub(super) line: &'t [u8],
    pub(super) name_len: usize,
    pub(super) class: Class,
}

impl Entry<'_> {
    pub(super) fn name(&self) -> &[u8] {
        &self.line[..self.name_len]
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.line[self.name_len + 2..self.line.len() - 2]
    }
}

/// What RFC 7541 §4.1 adds to name and value.
const ENTRY_OVERHEAD: usize = 32;
/// What a line adds.
pub(super) const LINE_OVERHEAD: usize = 4;

impl Line {
    fn line_len(&self) -> usize {
        (self.name_len + self.value_len) as usize + LINE_OVERHEAD
    }

    fn size(&self) -> usize {
        (self.name_len + self.value_len) as usize + ENTRY_OVERHEAD
    }
}

/// The size of a field as tables and header lists count it.
pub(super) fn field_size(name_len: usize, value_len: usize) -> usize {
    name_len + value_len + ENTRY_OVERHEAD
}

impl Table {
    pub(super) fn new(size_max: usize) -> Table {
        Table { size_max, ..Table::default() }
    }

    pub(super) fn size_max(&self) -> usize {
        self.size_max
    }

    /// Entries ever inserted, wrapping.
    pub(super) fn inserted(&self) -> u32 {
        self.inserted
    }

    /// Entry `index` from the newest, which is 0.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<Entry<'_>> {
        let line = self.entries.get(self.entries.len().checked_sub(index + 1)?)?;
        let start = line.start as usize;
        Some(Entry {
            line: &self.bytes[start..start + line.line_len()],
            name_len: line.name_len as usize,
            class: line.class,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keeps no more memory than the entries need.
    pub(super) fn shrink(&mut self) {
        self.compact();
        self.bytes.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// Evicts what the new limit has no room for.
    pub(super) fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict_to(size_max);
    }

    /// Inserts `line`; an entry larger than the table empties it (RFC 7541 §4.4). Returns whether
    /// the entry is in the table.
    pub(super) fn insert(&mut self, line: &[u8], name_len: usize, class: Class) -> bool {
        let value_len = line.len() - name_len - LINE_OVERHEAD;
        let size = field_size(name_len, value_len);
        let Some(room) = self.size_max.checked_sub(size) else {
            self.evict_to(0);
            return false;
        };
        self.evict_to(room);
        if self.bytes.len() + line.len() > self.bytes.capacity()
            && self.dead * 2 >= self.bytes.len()
        {
            self.compact();
        }
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(line);
        self.entries.push_back(Line {
            start,
            name_len: name_len as u32,
            value_len: value_len as u32,
            class,
        });
        self.size += size;
        self.inserted = self.inserted.wrapping_add(1);
        true
    }

    fn evict_to(&mut self, size: usize) {
        while self.size > size
            && let Some(line) = self.entries.pop_front()
        {
            self.size -= line.size();
            self.dead += line.line_len();
        }
        if self.entries.is_empty() {
            self.bytes.clear();
            self.dead = 0;
        }
    }

    /// Moves the living lines to the front, once as many bytes as they are have died.
    fn compact(&mut self) {
        self.bytes.drain(..self.dead);
        for line in &mut self.entries {
            line.start -= self.dead as u32;
        }
        self.dead = 0;
    }
}
