//! Field blocks into heads (RFC 7541 §§3, 6).

use super::class::{Class, NameClass};
use super::sink::{FieldSink, HeadLimits};
use super::table::{Entry, Table};
use super::{HpackError, huffman, integer, statics};

/// The receiving end of one connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What the table's size may be set to by the peer, in bytes.
    size_limit: usize,
    /// Our limit went below the table's size: the next block has to start with an update.
    update_due: bool,
    /// Updates of the table's size so far.
    updates: u32,
}

/// A literal's opening bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Literal {
    Indexed,
    Plain,
    Never,
}

impl Decoder {
    /// A decoder whose SETTINGS_HEADER_TABLE_SIZE is `table_bytes_max`, once the peer has
    /// acknowledged it; the initial value is 4096.
    pub fn new(table_bytes_max: usize) -> Decoder {
        Decoder {
            table: Table::new(table_bytes_max),
            size_limit: table_bytes_max,
            update_due: false,
            updates: 0,
        }
    }

    /// Names the state of the table: as long as it stays the same, a block means the same.
    pub fn changes(&self) -> u64 {
        u64::from(self.updates) << 32 | u64::from(self.table.inserted())
    }

    /// Takes over our SETTINGS_HEADER_TABLE_SIZE; to be called when the peer acknowledged it.
    pub fn set_table_max(&mut self, table_bytes_max: usize) {
        self.size_limit = table_bytes_max;
        self.update_due = self.table.size_max() > table_bytes_max;
    }

    /// Gives back what the table does not need; for connections that go idle. What is in it is the
    /// peer's to decide.
    pub fn release(&mut self) {
        self.table.shrink();
    }

    /// Decodes one whole block (HEADERS and its CONTINUATION frames) into `out`, in place of what
    /// was there. Heads that are over the limits or malformed are decoded to the end, because
    /// the table must follow; [`FieldSink`] says so when the head is taken out.
    ///
    /// # Errors
    /// [`HpackError`], after which the table is of no use and the connection must end.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: &HeadLimits,
        out: &mut FieldSink,
    ) -> Result<(), HpackError> {
        out.start();
        let mut at = self.decode_size_updates(block)?;
        while let Some(&first) = block.get(at) {
            if first & 0x80 != 0 {
                let index = integer::decode(block, &mut at, 7)?;
                let entry = self.entry(index)?;
                out.push_line(entry.line, entry.name_len, entry.class, limits);
                continue;
            }
            let (literal, prefix) = match first >> 4 {
                0x4..=0x7 => (Literal::Indexed, 6),
                // RFC 7541 §4.2: only at the start of a block.
                0x2 | 0x3 => return Err(HpackError::SizeUpdate),
                0x1 => (Literal::Never, 4),
                _ => (Literal::Plain, 4),
            };
            self.decode_literal(block, &mut at, literal, prefix, limits, out)?;
        }
        Ok(())
    }

    /// The updates at the start of `block`; returns where the fields begin.
    fn decode_size_updates(&mut self, block: &[u8]) -> Result<usize, HpackError> {
        let mut at = 0;
        while let Some(0x20..=0x3f) = block.get(at) {
            let size = integer::decode(block, &mut at, 5)?;
            if size > self.size_limit {
                return Err(HpackError::SizeUpdate);
            }
            self.table.set_size_max(size);
            self.updates = self.updates.wrapping_add(1);
            self.update_due = false;
        }
        match self.update_due {
            true => Err(HpackError::SizeUpdate),
            false => Ok(at),
        }
    }

    #[inline]
    fn entry(&self, index: usize) -> Result<Entry<'_>, HpackError> {
        match index > statics::COUNT {
            true => self.table.get(index - statics::COUNT - 1),
            false => statics::get(index),
        }
        .ok_or(HpackError::Index)
    }

    fn decode_literal(
        &mut self,
        block: &[u8],
        at: &mut usize,
        literal: Literal,
        prefix: u32,
        limits: &HeadLimits,
        out: &mut FieldSink,
    ) -> Result<(), HpackError> {
        let start = out.block.len();
        let name_class = match integer::decode(block, at, prefix)? {
            0 => {
                decode_string(block, at, out)?;
                NameClass::of(&out.block[start..])
            }
            index => {
                let entry = self.entry(index)?;
                out.block.extend_from_slice(entry.name());
                entry.class.name
            }
        };
        let name_len = out.block.len() - start;
        out.block.extend_from_slice(b": ");
        let value_start = out.block.len();
        decode_string(block, at, out)?;
        let class: Class = name_class.with_value(&out.block[value_start..]);
        out.block.extend_from_slice(b"\r\n");
        if literal == Literal::Indexed {
            self.table.insert(&out.block[start..], name_len, class);
        }
        out.close_line(start, name_len, class, literal == Literal::Never, limits);
        Ok(())
    }
}

/// Appends a string literal (RFC 7541 §5.2).
fn decode_string(block: &[u8], at: &mut usize, out: &mut FieldSink) -> Result<(), HpackError> {
    let coded = block.get(*at).ok_or(HpackError::Truncated)? & 0x80 != 0;
    let len = integer::decode(block, at, 7)?;
    let text = block.get(*at..*at + len).ok_or(HpackError::Truncated)?;
    *at += len;
    match coded {
        true => huffman::decode(text, &mut out.block)?,
        false => out.block.extend_from_slice(text),
    }
    Ok(())
}
