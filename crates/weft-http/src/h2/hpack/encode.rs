//! Heads into field blocks (RFC 7541 §§3, 6, 7.1).
//!
//! What is sent twice goes into the table, what is sent once does not push out what is useful:
//! a value is inserted when it was seen before, or when its name is new. Strings are
//! Huffman-coded when they enter the table and sent as they are otherwise, because then
//! both ends would pay for it every time.

use super::class::{Class, Kind, NameClass};
use super::lookup::{Lookup, hash};
use super::table::{Table, field_size};
use super::{huffman, integer, statics};
use crate::headers::{HeaderList, UNKNOWN};
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
    /// A line or a lower-cased name being put together.
    scratch: Vec<u8>,
}

/// Static entries whose value is a secret: authorization, cookie, proxy-authorization, set-cookie.
const SECRET: [usize; 4] = [23, 32, 49, 55];
/// More of the table than this share one entry shall not take.
const ENTRY_SHARE: usize = 4;
const NAME_SEED: u64 = 0x5bd1_e995_9e37_79b9;

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
            self.encode(name.as_bytes(), value, Indexing::Auto, out);
        }
        self.encode_fields(&head.headers, out);
    }

    /// Appends the block of a response.
    pub fn encode_response(&mut self, head: &ResponseHead, out: &mut Vec<u8>) {
        self.start(out);
        let mut status = itoa::Buffer::new();
        let status = status.format(head.status).as_bytes();
        self.encode(b":status", status, Indexing::Auto, out);
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
            self.encode(header.name, header.value, indexing, out);
        }
    }

    /// Appends one field; the name is lower-cased.
    #[inline]
    pub fn encode(&mut self, name: &[u8], value: &[u8], indexing: Indexing, out: &mut Vec<u8>) {
        if name.iter().any(u8::is_ascii_uppercase) {
            let mut lower = std::mem::take(&mut self.scratch);
            lower.clear();
            lower.extend(name.iter().map(u8::to_ascii_lowercase));
            self.encode_lower(&lower, value, indexing, out);
            self.scratch = lower;
        } else {
            self.encode_lower(name, value, indexing, out);
        }
    }

    fn encode_lower(&mut self, name: &[u8], value: &[u8], indexing: Indexing, out: &mut Vec<u8>) {
        let static_name = statics::find_name(name);
        if indexing == Indexing::Never || SECRET.contains(&static_name) {
            let name_index = match static_name {
                0 => self.find_name(hash(NAME_SEED, name), name),
                index => index,
            };
            return literal(name_index, 0x10, 4, name, value, out);
        }
        if static_name != 0 {
            let index = statics::find_value(static_name, value);
            if index != 0 {
                return integer::encode(index, 0x80, 7, out);
            }
        }
        self.encode_dynamic(static_name, name, value, out);
    }

    fn encode_dynamic(&mut self, static_name: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let name_hash = hash(NAME_SEED, name);
        let pair_hash = hash(name_hash, value);
        let lookup = self.lookup.get_or_insert_with(Lookup::new);
        if let Some(index) = lookup.find(&self.table, pair_hash, name, value) {
            return integer::encode(index, 0x80, 7, out);
        }
        let name_index = match static_name {
            0 => lookup.find_name(&self.table, name_hash, name).unwrap_or(0),
            index => index,
        };
        let fits = field_size(name.len(), value.len()) <= self.table.size_max() / ENTRY_SHARE;
        if !fits || (name_index != 0 && !lookup.seen(pair_hash)) {
            return literal(name_index, 0x00, 4, name, value, out);
        }
        integer::encode(name_index, 0x40, 6, out);
        if name_index == 0 {
            coded_string(name, out);
        }
        coded_string(value, out);
        let mut line = std::mem::take(&mut self.scratch);
        line.clear();
        line.extend_from_slice(name);
        line.extend_from_slice(b": ");
        line.extend_from_slice(value);
        line.extend_from_slice(b"\r\n");
        self.table.insert(&line, name.len(), UNCLASSED);
        lookup.note(&self.table, name_hash, pair_hash);
        self.scratch = line;
    }

    fn find_name(&self, name_hash: u64, name: &[u8]) -> usize {
        let lookup = self.lookup.as_deref();
        lookup.and_then(|lookup| lookup.find_name(&self.table, name_hash, name)).unwrap_or(0)
    }
}

/// Classes are the decoder's business.
const UNCLASSED: Class =
    Class { name: NameClass { known: UNKNOWN, kind: Kind::Regular }, value_fault: None };

/// A literal that enters no table (RFC 7541 §§6.2.2, 6.2.3).
fn literal(
    name_index: usize,
    pattern: u8,
    prefix: u32,
    name: &[u8],
    value: &[u8],
    out: &mut Vec<u8>,
) {
    integer::encode(name_index, pattern, prefix, out);
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
