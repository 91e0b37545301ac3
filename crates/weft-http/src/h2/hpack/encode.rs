//! Heads into field blocks (RFC 7541 §§3, 6, 7.1).
//!
//! What is sent twice goes into the table, what is sent once does not push out what is useful:
//! a value is inserted when it was seen before, or when its name is new. Strings are
//! Huffman-coded when they enter the table and sent as they are otherwise, because then
//! both ends would pay for it every time.

use super::lookup::{Lookup, Name};
use super::table::{Table, field_size};
use super::{huffman, integer, statics};
use crate::headers::HeaderList;
use crate::message::{RequestHead, ResponseHead};
use crate::rules::request_pseudo;

/// Whether a field may enter tables, here and at every hop behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// As the encoder sees fit. Credentials and cookies never are (RFC 7541 §7.1.3).
    Auto,
    /// Never: the field came as such, and an intermediary has to keep it so (§6.2.3).
    Never,
}

/// The sending end of one connection.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// Made with the first insertion.
    lookup: Option<Box<Lookup>>,
    table_bytes_max: usize,
    /// Smallest size since the last block, and the one that holds now, when they must be said.
    update: Option<(usize, usize)>,
    /// A name being lower-cased.
    scratch: Vec<u8>,
}

/// First static entry named `:status`.
const STATUS: usize = 8;
/// Static entries whose value is a secret: authorization, cookie, proxy-authorization, set-cookie.
const SECRET: [usize; 4] = [23, 32, 49, 55];
/// More of the table than this share one entry shall not take.
const ENTRY_SHARE: usize = 4;

impl Encoder {
    /// An encoder that uses at most `table_bytes_max` for its table, and at first at most the 4096
    /// a peer has to expect.
    pub fn new(table_bytes_max: usize) -> Encoder {
        let size = table_bytes_max.min(4096);
        Encoder {
            table: Table::new(size),
            lookup: None,
            table_bytes_max,
            // The peer believes in 4096 until told (RFC 7541 §4.2).
            update: (size < 4096).then_some((size, size)),
            scratch: Vec::new(),
        }
    }

    /// Takes over the peer's SETTINGS_HEADER_TABLE_SIZE; the next block says so.
    pub fn peer_table_max(&mut self, bytes: u32) {
        let size = self.table_bytes_max.min(bytes as usize);
        let smallest = self.update.map_or(self.table.size_max(), |(smallest, _)| smallest);
        if size != self.table.size_max() || self.update.is_some() {
            self.update = Some((smallest.min(size), size));
        }
        self.table.set_size_max(size);
    }

    /// Gives all memory back; for connections that go idle. The next block tells the peer to empty
    /// its table as well (RFC 7541 §4.2).
    pub fn release(&mut self) {
        if !self.table.is_empty() {
            let size = self.table.size_max();
            self.table = Table::new(size);
            self.update = Some((0, size));
        }
        self.lookup = None;
        self.scratch = Vec::new();
    }

    /// Appends the block of a request; `protocol` makes an extended CONNECT. Names come out in
    /// lower case; which fields may be sent is the caller's to decide (`rules`).
    pub fn encode_request(
        &mut self,
        head: &RequestHead,
        protocol: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) {
        self.start(out);
        for (name, value) in request_pseudo(head, protocol) {
            let name = Name::of_text(name.as_bytes());
            self.encode_named(&name, value, Indexing::Auto, out);
        }
        self.encode_fields(&head.headers, out);
    }

    /// Appends the block of a response.
    pub fn encode_response(&mut self, head: &ResponseHead, out: &mut Vec<u8>) {
        self.start(out);
        let mut status = itoa::Buffer::new();
        let status = status.format(head.status).as_bytes();
        self.encode_named(&Name::of_static(STATUS, b":status"), status, Indexing::Auto, out);
        self.encode_fields(&head.headers, out);
    }

    /// Appends the block of trailers.
    pub fn encode_trailers(&mut self, trailers: &HeaderList, out: &mut Vec<u8>) {
        self.start(out);
        self.encode_fields(trailers, out);
    }

    /// Opens a block: says how large the table is, if that changed. To be called before the first
    /// [`encode`](Self::encode) of every block; the methods for whole heads do.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if let Some((smallest, size)) = self.update.take() {
            if smallest < size {
                integer::encode(smallest, 0x20, 5, out);
            }
            integer::encode(size, 0x20, 5, out);
        }
    }

    fn encode_fields(&mut self, headers: &HeaderList, out: &mut Vec<u8>) {
        for header in headers {
            let indexing = if header.never_indexed { Indexing::Never } else { Indexing::Auto };
            match header.known {
                Some(known) => {
                    self.encode_named(&Name::of_known(known), header.value, indexing, out);
                }
                None => self.encode(header.name, header.value, indexing, out),
            }
        }
    }

    /// Appends one field; the name is lower-cased.
    pub fn encode(&mut self, name: &[u8], value: &[u8], indexing: Indexing, out: &mut Vec<u8>) {
        if !name.iter().any(u8::is_ascii_uppercase) {
            return self.encode_named(&Name::of_text(name), value, indexing, out);
        }
        let mut lower = std::mem::take(&mut self.scratch);
        lower.clear();
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        self.encode_named(&Name::of_text(&lower), value, indexing, out);
        self.scratch = lower;
    }

    #[inline]
    fn encode_named(
        &mut self,
        name: &Name<'_>,
        value: &[u8],
        indexing: Indexing,
        out: &mut Vec<u8>,
    ) {
        if name.static_index != 0 {
            let index = statics::find_value(name.static_index, value);
            if index != 0 && indexing == Indexing::Auto {
                return out.push(0x80 | index as u8);
            }
        }
        if indexing == Indexing::Never || SECRET.contains(&name.static_index) {
            return literal(self.name_index(name), 0x10, name.text, value, out);
        }
        if name.is_unique() {
            let index = self.name_index(name);
            if index != 0 {
                return literal(index, 0x00, name.text, value, out);
            }
        }
        let pair_hash = name.hash_with(value);
        let found = self.lookup.as_ref().and_then(|l| l.find(&self.table, pair_hash, name, value));
        match found {
            Some(index) => integer::encode(index, 0x80, 7, out),
            None => self.encode_new(name, value, pair_hash, out),
        }
    }

    /// A field that no table holds.
    fn encode_new(&mut self, name: &Name<'_>, value: &[u8], pair_hash: u64, out: &mut Vec<u8>) {
        let name_index = self.name_index(name);
        let lookup = self.lookup.get_or_insert_with(Lookup::new);
        let size = field_size(name.text.len(), value.len());
        let fits = size <= self.table.size_max() / ENTRY_SHARE;
        if !fits || (name_index != 0 && !lookup.seen(pair_hash)) {
            return literal(name_index, 0x00, name.text, value, out);
        }
        integer::encode(name_index, 0x40, 6, out);
        if name_index == 0 {
            coded_string(name.text, out);
        }
        coded_string(value, out);
        let line = lookup.line(name.text, value);
        self.table.insert(line, name.text.len(), name.class());
        lookup.note(&self.table, name, pair_hash);
    }

    /// HPACK index of an entry with this name; 0 when there is none.
    fn name_index(&self, name: &Name<'_>) -> usize {
        match (name.static_index, &self.lookup) {
            (0, Some(lookup)) => lookup.find_name(&self.table, name).unwrap_or(0),
            (index, _) => index,
        }
    }
}

/// A literal that enters no table (RFC 7541 §§6.2.2, 6.2.3).
fn literal(name_index: usize, pattern: u8, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    integer::encode(name_index, pattern, 4, out);
    if name_index == 0 {
        plain_string(name, out);
    }
    plain_string(value, out);
}

fn plain_string(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len(), 0x00, 7, out);
    out.extend_from_slice(text);
}

fn coded_string(text: &[u8], out: &mut Vec<u8>) {
    let coded = huffman::encoded_len(text);
    if coded >= text.len() {
        return plain_string(text, out);
    }
    integer::encode(coded, 0x80, 7, out);
    huffman::encode(text, out);
}
