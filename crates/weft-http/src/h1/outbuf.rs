//! Bytes on their way out: small pieces are copied into one run, large ones are queued by
//! reference, all leave in one vectored write. Nothing is allocated per message once warm.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// A queue of bytes for vectored writes. It is a [`Buf`], so `chunks_vectored` and `advance` work
/// with any writer.
#[derive(Debug, Default)]
pub struct OutBuf {
    /// Copied bytes in order; those before `head` have left.
    staging: Vec<u8>,
    head: usize,
    segments: VecDeque<Segment>,
    len: usize,
    /// Bytes that have left, ever.
    consumed: u64,
}

#[derive(Debug)]
enum Segment {
    /// The next so many bytes of `staging`.
    Staged(usize),
    Shared(Bytes),
}

/// Up to this size a copy is cheaper than a reference count and a slot in the write.
const COPY_MAX: usize = 4 * 1024;
/// Sent bytes are cut off the front of `staging` beyond this, so that a peer that never quite
/// drains the queue cannot make it grow.
const COMPACT_MIN: usize = 16 * 1024;

impl OutBuf {
    /// An empty queue.
    pub fn new() -> Self {
        OutBuf::default()
    }

    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that have left since the queue was made: with [`len`](Self::len), the place in the
    /// stream of what is queued next.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues `bytes`, by reference when they are large.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_MAX {
            self.extend(&bytes);
        } else {
            self.len += bytes.len();
            self.segments.push_back(Segment::Shared(bytes));
        }
    }

    /// Queues a copy of `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.stage(bytes.len(), |staging| staging.extend_from_slice(bytes));
    }

    /// Bytes that can be staged without another allocation.
    pub fn capacity(&self) -> usize {
        self.staging.capacity()
    }

    /// All that is queued, when it lies in one piece.
    pub fn single(&self) -> Option<&[u8]> {
        (self.segments.len() == 1).then(|| self.chunk())
    }

    /// Fills `slices` with what is queued, in order; returns how many were filled.
    pub fn io_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut at = self.head;
        let mut filled = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.segments) {
            *slot = match segment {
                Segment::Staged(len) => {
                    at += len;
                    IoSlice::new(&self.staging[at - len..at])
                }
                Segment::Shared(bytes) => IoSlice::new(bytes),
            };
            filled += 1;
        }
        filled
    }

    /// Forgets the first `count` bytes, which were written.
    ///
    /// # Panics
    /// When `count` is more than [`len`](Self::len).
    pub fn consume(&mut self, mut count: usize) {
        assert!(count <= self.len, "a writer cannot have written more than it was given");
        self.len -= count;
        self.consumed += count as u64;
        while count > 0 {
            match self.segments.front_mut().expect("the length counts all segments") {
                Segment::Staged(len) if *len > count => {
                    *len -= count;
                    self.head += count;
                    count = 0;
                }
                Segment::Shared(bytes) if bytes.len() > count => {
                    bytes.advance(count);
                    count = 0;
                }
                Segment::Staged(len) => {
                    count -= *len;
                    self.head += *len;
                    self.segments.pop_front();
                }
                Segment::Shared(bytes) => {
                    count -= bytes.len();
                    self.segments.pop_front();
                }
            }
        }
        if self.len == 0 {
            self.staging.clear();
            self.head = 0;
        } else if self.head >= COMPACT_MIN {
            self.staging.drain(..self.head);
            self.head = 0;
        }
    }

    /// Gives the memory back; for connections that go idle. Keeps what is queued.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = OutBuf { consumed: self.consumed, ..OutBuf::default() };
        }
    }

    /// Runs `write`, which may only append to the vector, and queues what it appended.
    pub(crate) fn stage_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.stage(0, write);
    }

    fn stage(&mut self, reserve: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.staging.len();
        self.staging.reserve(reserve);
        write(&mut self.staging);
        let added = self.staging.len() - before;
        if added == 0 {
            return;
        }
        self.len += added;
        match self.segments.back_mut() {
            Some(Segment::Staged(len)) => *len += added,
            Some(Segment::Shared(_)) | None => self.segments.push_back(Segment::Staged(added)),
        }
    }
}

impl Buf for OutBuf {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        match self.segments.front() {
            Some(Segment::Staged(len)) => &self.staging[self.head..self.head + len],
            Some(Segment::Shared(bytes)) => bytes,
            None => &[],
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.io_slices(slices)
    }

    fn advance(&mut self, count: usize) {
        self.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use bytes::Bytes;

    use super::OutBuf;

    #[test]
    fn bytes_leave_in_order_whatever_the_write_sizes() {
        for step in [1, 7, 4096, 5000, 100_000] {
            let mut out = OutBuf::new();
            let mut expect = Vec::new();
            for round in 0..20_u8 {
                out.extend(b"head");
                out.push(Bytes::from(vec![round; 5000]));
                out.push(Bytes::from_static(b"tail"));
                expect.extend_from_slice(b"head");
                expect.extend_from_slice(&[round; 5000]);
                expect.extend_from_slice(b"tail");
            }
            assert_eq!(out.len(), expect.len());
            let mut got = Vec::new();
            while !out.is_empty() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = out.io_slices(&mut slices);
                let mut left = step;
                for slice in &slices[..filled] {
                    let take = slice.len().min(left);
                    got.extend_from_slice(&slice[..take]);
                    left -= take;
                }
                out.consume(step - left);
            }
            assert!(got == expect, "step {step}");
        }
    }

    #[test]
    fn a_queue_that_never_drains_does_not_grow() {
        let mut out = OutBuf::new();
        out.extend(b"x");
        for _ in 0..100_000 {
            out.extend(&[0; 64]);
            out.consume(64);
        }
        assert_eq!(out.len(), 1);
        assert!(out.staging.capacity() < 64 * 1024);
    }
}
