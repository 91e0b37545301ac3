//! One stream's state, and the table of a connection's open streams.
//!
//! ```text
//!              receiving                          sending
//!   server   (head is given at once) Body ─▶ Ended   Head ─▶ Body ─▶ Ended
//!   client   Head ─▶ Body ─▶ Ended                   Body ─▶ Ended
//! ```
//! Both halves move on their own; `failed` ends both. A stream leaves the table when the protocol
//! is done with it and nobody holds its [`StreamKey`] any more. Must not know frames or windows of
//! the connection.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Waker};

use bytes::Bytes;

use super::super::error::ErrorCode;
use super::StreamError;
use crate::headers::HeaderList;
use crate::message::ResponseHead;

/// Names an open stream to its connection. Stale keys are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    pub(super) slot: u32,
    /// The stream's identifier on the wire.
    pub(super) id: u32,
}

impl StreamKey {
    /// The stream's identifier on the wire.
    pub fn id(self) -> u32 {
        self.id
    }
}

/// How far a half has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// The final head has not passed.
    Head,
    Body,
    Ended,
}

/// What follows the queued content.
#[derive(Debug, Default)]
pub(super) enum Ending {
    /// Not known yet.
    #[default]
    None,
    Plain,
    Trailers(Box<HeaderList>),
    /// The message is cut here.
    Reset(ErrorCode),
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// Somebody has the key and will give it up with `close`.
    pub(super) held: bool,
    /// It counts against the limit of open streams.
    pub(super) counted: bool,
    /// It waits for its turn in the connection's ring.
    pub(super) in_ring: bool,
    /// Content has come or was sent since anybody asked.
    pub(super) moved: bool,
    /// A response to HEAD says a length and has no content.
    pub(super) answers_head: bool,
    pub(super) recv: Half,
    pub(super) send: Half,
    /// Why nothing more will pass.
    failed: Option<Box<StreamError>>,
    waker: Option<Waker>,
    /// What waits here, either way. Apart, because in most open streams nothing does.
    passing: Option<Box<Passing>>,

    /// Content the head promised that has not come, if it said how much.
    pub(super) content_left: Option<u64>,
    /// What the peer may still send before we give back window.
    pub(super) recv_window: i64,
    /// Received content bytes that the reader has not released; at most a window.
    pub(super) unreleased: u32,
    /// Released, and not yet given back to the peer.
    pub(super) to_give_back: u32,

    pub(super) send_window: i64,
    pub(super) pending_bytes: usize,
    pub(super) ending: Ending,
}

/// Parts of messages on their way through a stream.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// Client: 1xx heads not taken yet.
    pub(super) informational: VecDeque<ResponseHead>,
    /// Client: the final head, until it is taken.
    pub(super) answer: Option<ResponseHead>,
    /// Received.
    pub(super) data: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderList>,
    /// To be sent.
    pending: VecDeque<Bytes>,
}

impl Passing {
    fn is_empty(&self) -> bool {
        self.informational.is_empty()
            && self.answer.is_none()
            && self.data.is_empty()
            && self.trailers.is_none()
            && self.pending.is_empty()
    }

    /// Forgets everything; false when it is not worth keeping for the next stream.
    fn clear(&mut self) -> bool {
        let Passing { informational, answer, data, trailers, pending } = self;
        informational.clear();
        *answer = None;
        data.clear();
        *trailers = None;
        pending.clear();
        data.capacity().max(pending.capacity()).max(informational.capacity()) <= KEPT_PLACES_MAX
    }
}

/// Queues kept with a vacant slot hold at most this many places.
const KEPT_PLACES_MAX: usize = 8;

impl Stream {
    fn new() -> Self {
        Self {
            id: 0,
            held: false,
            counted: false,
            in_ring: false,
            moved: false,
            answers_head: false,
            recv: Half::Head,
            send: Half::Head,
            failed: None,
            waker: None,
            passing: None,
            content_left: None,
            recv_window: 0,
            unreleased: 0,
            to_give_back: 0,
            send_window: 0,
            pending_bytes: 0,
            ending: Ending::None,
        }
    }

    /// Makes a vacant slot ready for its next stream; small queues keep their memory.
    fn vacate(&mut self) {
        let passing =
            self.passing.take().and_then(|mut passing| passing.clear().then_some(passing));
        *self = Stream { passing, ..Stream::new() };
    }

    /// Why nothing more will pass.
    pub(super) fn failed(&self) -> Option<StreamError> {
        self.failed.as_deref().copied()
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Nothing more will pass; the first reason stays.
    pub(super) fn fail(&mut self, error: StreamError) {
        self.failed.get_or_insert_with(|| Box::new(error));
        self.clear_pending();
        self.wake();
    }

    /// To put something into.
    pub(super) fn passing(&mut self) -> &mut Passing {
        self.passing.get_or_insert_default()
    }

    /// To take something out of; None: nothing is there.
    pub(super) fn passing_if_any(&mut self) -> Option<&mut Passing> {
        self.passing.as_deref_mut()
    }

    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.passing.iter().flat_map(|passing| &passing.data).map(Bytes::len).sum()
    }

    /// Queues content to be sent.
    pub(super) fn push_pending(&mut self, data: Bytes) {
        self.moved = true;
        self.pending_bytes += data.len();
        self.passing().pending.push_back(data);
    }

    /// Neither side has anything left to say.
    pub(super) fn is_done(&self) -> bool {
        self.is_failed() || (self.recv == Half::Ended && self.send == Half::Ended)
    }

    /// Whether the sender has said everything, though it may not have left yet.
    pub(super) fn send_complete(&self) -> bool {
        self.send == Half::Ended || !matches!(self.ending, Ending::None)
    }

    /// Whether a turn would get something out: content with window, or the end alone.
    pub(super) fn can_send(&self) -> bool {
        !self.is_failed()
            && match self.pending_bytes {
                0 => !matches!(self.ending, Ending::None),
                _ => self.send_window > 0,
            }
    }

    /// Takes up to `max` bytes of content off the queue, which is not empty.
    pub(super) fn next_part(&mut self, max: usize) -> Bytes {
        let pending = &mut self.passing().pending;
        let first = pending.front_mut().expect("its bytes are counted");
        let part = match first.len() <= max {
            true => pending.pop_front().expect("there is a first"),
            false => first.split_to(max),
        };
        self.pending_bytes -= part.len();
        self.send_window -= part.len() as i64;
        part
    }

    /// Everything received has been taken, and nothing more comes.
    pub(super) fn nothing_left(&self) -> bool {
        self.recv == Half::Ended
            && match &self.passing {
                Some(passing) => passing.data.is_empty() && passing.trailers.is_none(),
                None => true,
            }
    }

    /// Wakes `cx` when anything happens to this stream.
    pub(super) fn watch(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Drops what was to be sent.
    pub(super) fn clear_pending(&mut self) {
        if let Some(passing) = &mut self.passing {
            passing.pending.clear();
        }
        self.pending_bytes = 0;
        self.ending = Ending::None;
    }
}

/// Slots made at once, at least.
const SLOTS_MIN: usize = 4;

/// The open streams of a connection, by slot and by id.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    free: Vec<u32>,
    ids: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
}

impl Streams {
    /// Streams in the table.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn insert(&mut self, id: u32) -> (StreamKey, &mut Stream) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                if self.slots.len() == self.slots.capacity() {
                    // A quarter more: doubling would leave half of a crowd's memory unused.
                    self.slots.reserve_exact(self.slots.len() / 4 + SLOTS_MIN);
                }
                self.slots.push(Stream::new());
                u32::try_from(self.slots.len() - 1).expect("fewer streams than identifiers")
            }
        };
        self.ids.insert(id, slot);
        let stream = &mut self.slots[slot as usize];
        stream.id = id;
        (StreamKey { slot, id }, stream)
    }

    pub(super) fn key_of(&self, id: u32) -> Option<StreamKey> {
        self.ids.get(&id).map(|&slot| StreamKey { slot, id })
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream> {
        self.slots.get(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.slots.get_mut(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    pub(super) fn remove(&mut self, key: StreamKey) {
        if let Some(stream) = self.get_mut(key) {
            stream.vacate();
            self.ids.remove(&key.id);
            self.free.push(key.slot);
        }
    }

    /// Bytes that wait in streams, if there are streams and every one has been given up by its
    /// holder.
    pub(super) fn leftovers(&self) -> Option<usize> {
        if self.ids.is_empty() {
            return None;
        }
        let mut bytes = 0;
        for &slot in self.ids.values() {
            let stream = &self.slots[slot as usize];
            if stream.held {
                return None;
            }
            bytes += stream.pending_bytes;
        }
        Some(bytes)
    }

    pub(super) fn wake_moved(&mut self) {
        for stream in &mut self.slots {
            if std::mem::take(&mut stream.moved) {
                stream.wake();
            }
        }
    }

    /// The keys of all streams; for events that concern each of them.
    pub(super) fn keys(&self) -> Vec<StreamKey> {
        self.ids.iter().map(|(&id, &slot)| StreamKey { slot, id }).collect()
    }

    /// Gives back the memory of vacant slots, and of queues in which nothing waits.
    pub(super) fn release(&mut self) {
        if self.ids.is_empty() {
            *self = Streams::default();
        }
        if self.ids.len() < self.slots.len() / 4 {
            while self.slots.pop_if(|last| last.id == 0).is_some() {}
            let slots = self.slots.len();
            self.free.retain(|&slot| (slot as usize) < slots);
        }
        self.slots.shrink_to_fit();
        self.free.shrink_to_fit();
        self.ids.shrink_to_fit();
        for stream in &mut self.slots {
            if stream.passing.as_ref().is_some_and(|passing| passing.is_empty()) {
                stream.passing = None;
            }
        }
    }
}

/// Stream identifiers are small consecutive numbers: one multiplication spreads them.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
