//! Clients repeat themselves: the same call again, the same answer, the same trailers. A header block
//! that comes a third time, with the table as it was, is not decoded: its head is copied. Must not
//! know streams or frames.

use crate::headers::HeaderList;
use crate::message::{RequestHead, ResponseHead};

/// The last head of one kind, if its block says the same each time it comes.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// A block that read the table and did not change it.
    block: Vec<u8>,
    /// Which state of the table it was read with.
    changes: u64,
    /// What it says, once it came a second time.
    head: Option<Head>,
}

#[derive(Debug)]
pub(super) enum Head {
    Request { head: RequestHead, content_length: Option<u64> },
    Response(ResponseHead),
    Trailers(HeaderList),
}

/// How a block compares with the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    /// Once: what it says is worth keeping.
    Again,
    /// What it says is at hand.
    Known,
}

/// Longer blocks are not kept.
const BLOCK_BYTES_MAX: usize = 512;
/// Room in a copied list for lines that the request path adds.
const SPARE_ENTRIES: usize = 8;

impl Memo {
    /// `changes`: the state of the table now.
    #[inline]
    pub(super) fn seen(&self, block: &[u8], changes: u64) -> Seen {
        match self.changes == changes && self.block == block {
            false => Seen::New,
            true if self.head.is_some() => Seen::Known,
            true => Seen::Again,
        }
    }

    /// Notes a block that was decoded; `before` and `after`: the table's states around it.
    pub(super) fn note(&mut self, block: &[u8], before: u64, after: u64) {
        self.head = None;
        self.block.clear();
        if before == after && block.len() <= BLOCK_BYTES_MAX {
            self.block.extend_from_slice(block);
            self.changes = before;
        }
    }

    /// Keeps what the noted block says.
    pub(super) fn keep(&mut self, head: Head) {
        self.head = Some(head);
    }

    pub(super) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }
}

/// As `clone`, with room for more lines.
pub(super) fn copy_request(head: &RequestHead) -> RequestHead {
    RequestHead {
        method: head.method.clone(),
        scheme: head.scheme,
        authority: head.authority.clone(),
        target: head.target.clone(),
        version: head.version,
        headers: head.headers.copy(SPARE_ENTRIES),
    }
}

/// As `clone`, with room for more lines.
pub(super) fn copy_response(head: &ResponseHead) -> ResponseHead {
    ResponseHead {
        status: head.status,
        reason: head.reason.clone(),
        version: head.version,
        headers: head.headers.copy(SPARE_ENTRIES),
    }
}
