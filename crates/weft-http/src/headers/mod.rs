//! The ordered field list. Lines received from HTTP/1 stay where they were read: an entry is a pair
//! of offsets into one shared block. Lines added or changed live in an overlay in the same form, so
//! that writing a head copies runs of whole lines and never formats a field.
//!
//! Must not know which fields may be forwarded: that is `rules`.

mod known;
mod line;

use bytes::Bytes;

pub(crate) use known::KNOWN_COUNT;
pub use known::Known;
pub use line::Lengths;
pub(crate) use line::{Entry, FirstIndex, Place, UNKNOWN, is_token_byte, known_byte, offset};
use line::{FAR, push_value};

/// Fields in order, with their spelling and duplicates. Names compare without case.
#[derive(Clone, Default)]
pub struct HeaderList {
    /// The head as read from an HTTP/1 connection; empty otherwise.
    block: Bytes,
    /// Added and changed lines, each `name: value CR LF`.
    overlay: Vec<u8>,
    entries: Vec<Entry>,
    first: FirstIndex,
    /// Entries not removed.
    live: usize,
    /// Some name may have a capital letter: always so for what came over HTTP/1.
    capitals: bool,
}

/// One field of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The name as spelled.
    pub name: &'a [u8],
    /// The value without surrounding whitespace.
    pub value: &'a [u8],
    /// Its slot, when it is one of the known names.
    pub known: Option<Known>,
    /// Came over HTTP/2 marked as never to be put into a compression table (RFC 7541 §6.2.3).
    pub never_indexed: bool,
}

impl HeaderList {
    /// An empty list.
    pub fn new() -> Self {
        HeaderList::default()
    }

    /// An empty list with room for `headers` lines of `bytes` in all.
    pub fn with_capacity(headers: usize, bytes: usize) -> Self {
        HeaderList {
            overlay: Vec::with_capacity(bytes),
            entries: Vec::with_capacity(headers),
            ..HeaderList::default()
        }
    }

    /// The list of a parsed head.
    pub(crate) fn from_block(block: Bytes, entries: Vec<Entry>, first: FirstIndex) -> Self {
        let live = entries.len();
        HeaderList { block, overlay: Vec::new(), entries, first, live, capitals: true }
    }

    /// The list of a head that came over HTTP/2, whose names are all in lower case.
    pub(crate) fn from_lower_block(block: Bytes, entries: Vec<Entry>, first: FirstIndex) -> Self {
        HeaderList { capitals: false, ..HeaderList::from_block(block, entries, first) }
    }

    /// As `clone`, with room for `spare` more lines.
    pub(crate) fn copy(&self, spare: usize) -> HeaderList {
        let mut entries = Vec::with_capacity(self.entries.len() + spare);
        entries.extend_from_slice(&self.entries);
        HeaderList {
            block: self.block.clone(),
            overlay: self.overlay.clone(),
            entries,
            first: self.first.clone(),
            live: self.live,
            capitals: self.capitals,
        }
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The first value of `name`.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.find(name.as_ref()).map(|index| self.value_of(&self.entries[index]))
    }

    /// The first value of a known name, without a search.
    pub fn get_known(&self, known: Known) -> Option<&[u8]> {
        self.find_known(known).map(|index| self.value_of(&self.entries[index]))
    }

    /// The first value of `name` as shared bytes: a slice of the block where it was read from one.
    pub fn get_bytes(&self, name: impl AsRef<[u8]>) -> Option<Bytes> {
        let entry = &self.entries[self.find(name.as_ref())?];
        Some(match entry.place {
            Place::Block => {
                let start = entry.value_start as usize;
                self.block.slice(start..start + entry.value_len as usize)
            }
            Place::Overlay | Place::Removed => Bytes::copy_from_slice(self.value_of(entry)),
        })
    }

    /// Whether `name` is there.
    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.find(name.as_ref()).is_some()
    }

    /// Whether a known name is there, without a search.
    pub fn contains_known(&self, known: Known) -> bool {
        self.find_known(known).is_some()
    }

    /// All values of `name`, in order.
    pub fn get_all<'a, N: AsRef<[u8]> + 'a>(
        &'a self,
        name: N,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let known = Known::from_name(name.as_ref());
        self.get_all_as(name, known)
    }

    /// As [`get_all`](Self::get_all), for a name whose slot, if it has one, was looked up before.
    pub fn get_all_as<'a, N: AsRef<[u8]> + 'a>(
        &'a self,
        name: N,
        known: Option<Known>,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let first = self.find_as(name.as_ref(), known);
        let entries = &self.entries[first.unwrap_or(self.entries.len())..];
        entries
            .iter()
            .filter(move |entry| self.is_named(entry, name.as_ref(), known))
            .map(|entry| self.value_of(entry))
    }

    /// All fields in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { list: self, next: 0 }
    }

    /// Adds a line at the end. Bytes that would break the line (control characters in a
    /// value, anything but token characters in a name) are replaced, so no caller can split a message.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let entry = self.write_line(name.as_ref(), value.as_ref());
        self.push(entry);
    }

    /// As [`append`](Self::append), for a name that need not be looked up.
    pub fn append_known(&mut self, known: Known, value: impl AsRef<[u8]>) {
        let entry = self.write_known(known, value.as_ref());
        self.push(entry);
    }

    /// Adds lines that are written already, each `name: value CR LF`: for each its name, as
    /// [`Known::name`] spells it, and how long its value is. The caller vouches for the values.
    pub fn append_written(&mut self, text: &[u8], lines: impl IntoIterator<Item = (Known, usize)>) {
        let mut start = self.overlay.len();
        self.reserve_overlay(text.len());
        self.overlay.extend_from_slice(text);
        for (known, value_len) in lines {
            let name_len = known.name().len();
            let value_start = start + name_len + 2;
            let end = value_start + value_len + 2;
            debug_assert_eq!(known_byte(&self.overlay[start..start + name_len]), known as u8);
            debug_assert!(self.overlay[..end].ends_with(b"\r\n"));
            self.push(Entry {
                start: offset(start),
                end: offset(end),
                name_len: offset(name_len),
                value_start: offset(value_start),
                value_len: offset(value_len),
                known: known as u8,
                place: Place::Overlay,
                never_indexed: false,
            });
            start = end;
        }
        debug_assert_eq!(start, self.overlay.len());
    }

    /// Whether there may be a line whose name is not a known one and has one of these lengths.
    pub fn has_other_of(&self, lengths: &Lengths) -> bool {
        self.first.others.meet(*lengths)
    }

    /// Whether one of these known names is there.
    pub fn contains_any(&self, known: &[Known]) -> bool {
        known.iter().any(|&known| self.contains_known(known))
    }

    fn push(&mut self, entry: Entry) {
        self.first.note(entry.known, entry.name_len as usize, self.entries.len());
        self.entries.push(entry);
        self.live += 1;
    }

    /// Gives `name` this one value: the first line keeps its place and spelling, later ones go.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        let Some(index) = self.find(name) else { return self.append(name, value) };
        self.replace_value(index, value);
        let known = Known::from_name(name);
        self.remove_from(index + 1, known, name);
    }

    /// As [`set`](Self::set), for a name that need not be looked up.
    pub fn set_known(&mut self, known: Known, value: impl AsRef<[u8]>) {
        match self.find_known(known) {
            None => self.append_known(known, value),
            Some(index) => {
                self.replace_value(index, value.as_ref());
                self.remove_from(index + 1, Some(known), known.name().as_bytes());
            }
        }
    }

    /// Removes every line of `name`; returns how many there were.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> usize {
        let name = name.as_ref();
        self.remove_as(name, Known::from_name(name))
    }

    /// As [`remove`](Self::remove), for a name that need not be looked up.
    pub fn remove_known(&mut self, known: Known) -> usize {
        self.remove_as(known.name().as_bytes(), Some(known))
    }

    fn remove_as(&mut self, name: &[u8], known: Option<Known>) -> usize {
        let Some(index) = self.find_as(name, known) else { return 0 };
        let removed = self.remove_from(index, known, name);
        self.forget(known);
        removed
    }

    /// Keeps the lines for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(Header<'_>) -> bool) {
        let mut changed = false;
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            if entry.place != Place::Removed && !keep(self.header_of(&entry)) {
                self.entries[index].place = Place::Removed;
                self.live -= 1;
                changed = true;
            }
        }
        if changed {
            self.rebuild_index();
        }
    }

    /// Whether a name has a capital letter.
    pub fn has_capitals(&self) -> bool {
        self.capitals && self.iter().any(|header| header.name.iter().any(u8::is_ascii_uppercase))
    }

    /// Lower-cases every name, as HTTP/2 wants them (RFC 9113 §8.2.1).
    pub fn lowercase_names(&mut self) {
        if !std::mem::take(&mut self.capitals) {
            return;
        }
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            if entry.place == Place::Removed
                || !self.name_of(&entry).iter().any(u8::is_ascii_uppercase)
            {
                continue;
            }
            let start = self.overlay.len();
            self.replace_value_from(index, ValueSource::Same);
            self.overlay[start..start + entry.name_len as usize].make_ascii_lowercase();
        }
    }

    /// Puts the lines in the order of `names` and under their spelling; lines they do not name follow
    /// in their own order. Values of one name keep theirs. For a name without a line, `value` may
    /// give one.
    pub(crate) fn rearrange<'n>(
        &mut self,
        names: impl Iterator<Item = &'n [u8]>,
        value: impl Fn(Known) -> Option<&'n [u8]>,
    ) {
        let mut order = Vec::with_capacity(self.entries.len() + 2);
        let mut taken = vec![false; self.entries.len()];
        let mut made = Vec::new();
        for name in names {
            let known = Known::from_name(name);
            let line = (0..taken.len()).find(|&index| {
                !taken[index]
                    && self.entries[index].place != Place::Removed
                    && self.name_of(&self.entries[index]).eq_ignore_ascii_case(name)
            });
            match (line, known) {
                (Some(index), _) => {
                    taken[index] = true;
                    self.respell(index, name);
                    order.push(self.entries[index]);
                }
                (None, Some(known)) if !made.contains(&known) && !self.contains_known(known) => {
                    let Some(value) = value(known) else { continue };
                    made.push(known);
                    order.push(self.write_line(name, value));
                }
                (None, _) => {}
            }
        }
        for (index, taken) in taken.into_iter().enumerate() {
            if !taken && self.entries[index].place != Place::Removed {
                order.push(self.entries[index]);
            }
        }
        self.live = order.len();
        self.entries = order;
        self.rebuild_index();
    }

    /// Gives a line's name another spelling of the same letters.
    fn respell(&mut self, index: usize, name: &[u8]) {
        self.capitals = true;
        if self.name_of(&self.entries[index]) != name {
            let start = self.overlay.len();
            self.replace_value_from(index, ValueSource::Same);
            self.overlay[start..start + name.len()].copy_from_slice(name);
        }
    }

    /// Bytes that all lines have room in, each with its CR LF.
    pub(crate) fn room(&self) -> usize {
        self.block.len() + self.overlay.len()
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes `entry`'s offsets point into.
    pub(crate) fn store(&self, place: Place) -> &[u8] {
        match place {
            Place::Block => &self.block,
            Place::Overlay | Place::Removed => &self.overlay,
        }
    }

    pub(crate) fn value_of(&self, entry: &Entry) -> &[u8] {
        let start = entry.value_start as usize;
        &self.store(entry.place)[start..start + entry.value_len as usize]
    }

    pub(crate) fn name_of(&self, entry: &Entry) -> &[u8] {
        let start = entry.start as usize;
        &self.store(entry.place)[start..start + entry.name_len as usize]
    }

    fn header_of(&self, entry: &Entry) -> Header<'_> {
        Header {
            name: self.name_of(entry),
            value: self.value_of(entry),
            known: Known::ALL.get(usize::from(entry.known)).copied(),
            never_indexed: entry.never_indexed,
        }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.find_as(name, Known::from_name(name))
    }

    /// The first line of `name`, whose slot is `known`.
    fn find_as(&self, name: &[u8], known: Option<Known>) -> Option<usize> {
        match known {
            Some(known) => self.find_known(known),
            None if self.first.others.may_have(name.len()) => {
                self.entries.iter().position(|entry| self.is_named(entry, name, None))
            }
            None => None,
        }
    }

    /// Whether a line is there and has the name `name`, whose slot is `known`.
    fn is_named(&self, entry: &Entry, name: &[u8], known: Option<Known>) -> bool {
        entry.place != Place::Removed
            && match known {
                Some(known) => entry.known == known as u8,
                None => {
                    entry.known == UNKNOWN
                        && entry.name_len as usize == name.len()
                        && self.name_of(entry).eq_ignore_ascii_case(name)
                }
            }
    }

    fn find_known(&self, known: Known) -> Option<usize> {
        match self.first.known[known as usize] {
            0 => None,
            FAR => self
                .entries
                .iter()
                .position(|entry| entry.known == known as u8 && entry.place != Place::Removed),
            slot => Some(usize::from(slot) - 1),
        }
    }

    fn remove_from(&mut self, from: usize, known: Option<Known>, name: &[u8]) -> usize {
        let mut removed = 0;
        for index in from..self.entries.len() {
            if self.is_named(&self.entries[index], name, known) {
                self.entries[index].place = Place::Removed;
                removed += 1;
            }
        }
        self.live -= removed;
        removed
    }

    fn forget(&mut self, known: Option<Known>) {
        if let Some(known) = known {
            self.first.known[known as usize] = 0;
        }
    }

    fn rebuild_index(&mut self) {
        self.first = FirstIndex::default();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.place != Place::Removed {
                self.first.note(entry.known, entry.name_len as usize, index);
            }
        }
    }

    fn replace_value(&mut self, index: usize, value: &[u8]) {
        if self.value_of(&self.entries[index]) != value {
            self.replace_value_from(index, ValueSource::New(value));
        }
    }

    /// Moves the line to the overlay under its own spelling.
    fn replace_value_from(&mut self, index: usize, value: ValueSource<'_>) {
        let old = self.entries[index];
        let start = self.overlay.len();
        let name = old.start as usize..(old.start + old.name_len) as usize;
        let same = old.value_start as usize..(old.value_start + old.value_len) as usize;
        match old.place {
            Place::Block => self.overlay.extend_from_slice(&self.block[name]),
            Place::Overlay | Place::Removed => self.overlay.extend_from_within(name),
        }
        self.overlay.extend_from_slice(b": ");
        let value_start = self.overlay.len();
        match (value, old.place) {
            (ValueSource::New(value), _) => push_value(&mut self.overlay, value),
            (ValueSource::Same, Place::Block) => self.overlay.extend_from_slice(&self.block[same]),
            (ValueSource::Same, Place::Overlay | Place::Removed) => {
                self.overlay.extend_from_within(same)
            }
        }
        let value_end = self.overlay.len();
        self.overlay.extend_from_slice(b"\r\n");
        self.entries[index] = Entry {
            start: offset(start),
            end: offset(self.overlay.len()),
            name_len: old.name_len,
            value_start: offset(value_start),
            value_len: offset(value_end - value_start),
            known: old.known,
            place: Place::Overlay,
            never_indexed: old.never_indexed,
        };
    }

    fn write_line(&mut self, name: &[u8], value: &[u8]) -> Entry {
        let start = self.write_name(name, value.len());
        for byte in &mut self.overlay[start..] {
            self.capitals |= byte.is_ascii_uppercase();
            if !is_token_byte(*byte) {
                *byte = b'-';
            }
        }
        // Of the name as written: replacing a byte may have made it a known one.
        let known = known_byte(&self.overlay[start..]);
        self.write_value(start, known, value)
    }

    fn write_known(&mut self, known: Known, value: &[u8]) -> Entry {
        let start = self.write_name(known.name().as_bytes(), value.len());
        self.write_value(start, known as u8, value)
    }

    /// Starts a line that will have a value of `value_len` bytes; returns where.
    fn write_name(&mut self, name: &[u8], value_len: usize) -> usize {
        let start = self.overlay.len();
        self.reserve_overlay(name.len() + value_len + 4);
        self.overlay.extend_from_slice(name);
        start
    }

    fn reserve_overlay(&mut self, added: usize) {
        // Who adds one line mostly adds several (request id, trace context, peer metadata).
        self.overlay.reserve(match self.overlay.capacity() {
            0 => added.max(OVERLAY_MIN),
            _ => added,
        });
    }

    fn write_value(&mut self, start: usize, known: u8, value: &[u8]) -> Entry {
        let name_len = self.overlay.len() - start;
        self.overlay.extend_from_slice(b": ");
        let value_start = self.overlay.len();
        push_value(&mut self.overlay, value);
        let value_end = self.overlay.len();
        self.overlay.extend_from_slice(b"\r\n");
        Entry {
            start: offset(start),
            end: offset(value_end + 2),
            name_len: offset(name_len),
            value_start: offset(value_start),
            value_len: offset(value_end - value_start),
            known,
            place: Place::Overlay,
            never_indexed: false,
        }
    }
}

/// First room for added and changed lines, in bytes.
const OVERLAY_MIN: usize = 512;

enum ValueSource<'a> {
    Same,
    New(&'a [u8]),
}

/// Fields of a [`HeaderList`] in order.
pub struct Iter<'a> {
    list: &'a HeaderList,
    next: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        loop {
            let entry = self.list.entries.get(self.next)?;
            self.next += 1;
            if entry.place != Place::Removed {
                return Some(self.list.header_of(entry));
            }
        }
    }
}

impl<'a> IntoIterator for &'a HeaderList {
    type Item = Header<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for HeaderList {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(lines: I) -> Self {
        let mut list = HeaderList::new();
        for (name, value) in lines {
            list.append(name, value);
        }
        list
    }
}

/// Same names in the same spelling, same values, same order.
impl PartialEq for HeaderList {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.iter().zip(other.iter());
        self.live == other.live
            && pairs.all(|(ours, theirs)| (ours.name, ours.value) == (theirs.name, theirs.value))
    }
}

impl Eq for HeaderList {}

impl std::fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|header| {
                format!("{}: {}", header.name.escape_ascii(), header.value.escape_ascii())
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests;
