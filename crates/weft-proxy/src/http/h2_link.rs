//! One HTTP/2 connection with its socket, for either side of the proxy: one task reads and writes,
//! requests only touch the state machine.
//!
//! A turn of the task reads what is there, lets the state machine take it, and writes everything
//! that was said since in one go. Requests that say something wake the task once; it runs after
//! them, because it was queued behind those that were ready. Owns buffers, time (budgets, PINGs,
//! idle memory) and the way a connection is closed. Must not know requests.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;
use weft_http::h2::conn::{Connection, Failure};
use weft_http::h2::{ErrorCode, FrameType};

use crate::net::Io;

/// How often budgets recover and an active connection is looked at.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Buffers of a connection that has been idle this long go back.
const RELEASE_AFTER: Duration = Duration::from_millis(500);
/// An idle peer that was told that we leave, and says nothing to it, is left after this.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The last word must be written, and the peer's end of the connection seen, within this.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much is read and thrown away meanwhile: closing a socket with unread bytes resets it, and
/// the reset can overtake our last word.
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Read at once, at least; a turn continues while the socket fills this. Bytes.
const READ_BYTES_MIN: usize = 16 * 1024;
/// A block that reads are cut from: content stays in it while it waits. Bytes.
const READ_BLOCK_BYTES: usize = 64 * 1024;
/// Reads of one turn, so that one connection cannot keep the worker to itself.
const READS_PER_TURN: usize = 8;
/// The start of a frame up to this size is copied out of the shared block.
const REST_COPY_MAX: usize = 4 * 1024;
/// A write is put off for news with this many streams open, the one that speaks included.
const DEFER_STREAMS_MIN: usize = 4;
/// More than this is worth a write of its own. Bytes.
const DEFER_BYTES_MAX: usize = 16 * 1024;
/// Slices of one vectored write; the kernel takes up to 1024.
const SLICES_MAX: usize = 64;

thread_local! {
    /// What every connection of this worker reads into: an idle one needs no buffer of its own.
    static READ_BLOCK: RefCell<BytesMut> = RefCell::default();
}

/// The state machine, shared by the connection's task and its requests.
pub(crate) struct Link {
    connection: RefCell<Connection>,
}

impl Link {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection: RefCell::new(connection) }
    }

    /// Borrowed for one call only.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut Connection) -> T) -> T {
        call(&mut self.connection.borrow_mut())
    }
}

/// The socket side, owned by the connection's task.
pub(crate) struct Wire<'l> {
    link: &'l Link,
    io: Io,
    /// The start of a frame that has not come whole.
    rest: BytesMut,
    /// This turn did not read to the end, because the peer does not read either.
    held_back: bool,
    /// What was said waits for the next turn, which comes once the reactor has been asked for news.
    deferred: bool,
}

/// What the task does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Wait to be woken.
    Wait,
    /// Close: the connection failed, or both sides are done with it.
    Close,
}

impl<'l> Wire<'l> {
    /// `read` is what was read of the connection already.
    pub(crate) fn new(link: &'l Link, io: Io, read: BytesMut) -> Self {
        Self { link, io, rest: read, held_back: false, deferred: false }
    }

    /// Whether the peer is in the middle of a head: of its frame, or of a block of several.
    pub(crate) fn in_head(&self) -> bool {
        let started = self.rest.get(3).copied().map(FrameType::from_byte);
        matches!(started, Some(FrameType::Headers | FrameType::Continuation))
            || self.link.with(|connection| connection.in_head())
    }

    /// Reads what is there; `received` is called after each read that brought something.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, mut received: impl FnMut()) {
        self.link.with(|connection| {
            connection.set_owner(cx.waker());
            connection.begin_turn();
        });
        if !self.rest.is_empty() {
            // Detection may have left whole frames.
            let mut rest = std::mem::take(&mut self.rest);
            let taken = self.link.with(|connection| connection.recv(&mut rest));
            if !rest.is_empty() {
                // An empty one would keep its memory for the life of the connection.
                self.rest = rest;
            }
            received();
            if taken.is_err() {
                return;
            }
        }
        for _ in 0..READS_PER_TURN {
            if self.link.with(|connection| connection.is_congested()) {
                self.held_back = true;
                return;
            }
            match self.read_once(cx) {
                Poll::Ready(true) => received(),
                Poll::Ready(false) | Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Ready(false): nothing more will come.
    fn read_once(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let shared = self.rest.is_empty();
        let mut block = match shared {
            true => READ_BLOCK.take(),
            false => std::mem::take(&mut self.rest),
        };
        if block.capacity() - block.len() < READ_BYTES_MIN {
            block.reserve(READ_BLOCK_BYTES);
        }
        let read = self.io.poll_read_bytes(cx, &mut block);
        let alive = match read {
            Poll::Ready(Ok(count)) if count > 0 => {
                Poll::Ready(self.link.with(|connection| connection.recv(&mut block)).is_ok())
            }
            Poll::Ready(_) => {
                self.link.with(Connection::lost);
                Poll::Ready(false)
            }
            Poll::Pending => Poll::Pending,
        };
        self.keep_rest(block);
        alive
    }

    fn keep_rest(&mut self, mut block: BytesMut) {
        if block.is_empty() {
            READ_BLOCK.set(block);
        } else if block.len() <= REST_COPY_MAX {
            self.rest = BytesMut::from(&block[..]);
            block.clear();
            READ_BLOCK.set(block);
        } else {
            self.rest = block;
        }
    }

    /// Writes what has been said, as far as the socket takes it; where more may be said in a moment,
    /// in the next turn.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) -> Turn {
        match !self.deferred && self.is_worth_waiting() {
            true => {
                self.deferred = true;
                come_back_after_news(cx);
                Turn::Wait
            }
            false => {
                self.deferred = false;
                self.write_all(cx)
            }
        }
    }

    /// Whether little is said so far and other streams may have something to say: each write wakes
    /// the peer, and peers that wake each other for a few messages at a time go on like that.
    fn is_worth_waiting(&self) -> bool {
        self.link.with(|connection| {
            let busy = connection.open_streams() >= DEFER_STREAMS_MIN;
            busy && connection.has_output() && connection.output_bytes() < DEFER_BYTES_MAX
        })
    }

    fn write_all(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut connection = self.link.connection.borrow_mut();
        let blocked = loop {
            let output = connection.output();
            if output.is_empty() {
                break Pin::new(&mut self.io).poll_flush(cx).map(|flushed| flushed.is_ok());
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = output.io_slices(&mut slices);
            match Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(sent)) if sent > 0 => output.consume(sent),
                Poll::Ready(_) => break Poll::Ready(false),
                Poll::Pending => break Poll::Pending,
            }
        };
        if self.held_back && !connection.is_congested() {
            self.held_back = false;
            cx.waker().wake_by_ref();
        }
        if blocked == Poll::Ready(false) {
            connection.lost();
        }
        match connection.failure().is_some() || connection.is_drained() {
            true => Turn::Close,
            false => Turn::Wait,
        }
    }

    /// Writes the last word, says that nothing follows, and reads on for a moment.
    pub(crate) async fn close(mut self) {
        let lost = self.link.with(|connection| connection.failure() == Some(Failure::Lost));
        if lost {
            return;
        }
        let closing = async {
            poll_fn(|cx| {
                self.write_all(cx);
                match self.link.with(|connection| connection.output().is_empty()) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            let _ = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
            let mut left = LINGER_BYTES_MAX;
            let mut block = BytesMut::new();
            while left > 0 {
                block.clear();
                match poll_fn(|cx| self.io.poll_read_bytes(cx, &mut block)).await {
                    Ok(count) if count > 0 => left = left.saturating_sub(count),
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}

/// Wakes the task once the reactor was asked what else is there: requests and answers that have come
/// meanwhile are taken first, and what they say goes out in the same write.
fn come_back_after_news(cx: &mut Context<'_>) {
    let asked = std::pin::pin!(tokio::task::yield_now());
    // It leaves the waker with the scheduler; there is nothing to wait for here.
    let _ = asked.poll(cx);
}

/// What a connection does as time passes. One timer serves its whole life and is moved only when
/// it fires or when an idle connection comes to life.
pub(crate) struct Watch {
    /// Close when nothing was open for so long.
    pub(crate) idle_limit: Option<Duration>,
    /// A head that has begun must have come whole within this (server).
    pub(crate) head_limit: Option<Duration>,
    /// A peer that takes nothing of answers that are complete here is left after this (server).
    pub(crate) stall_limit: Option<Duration>,
    /// Say GOAWAY then, whatever is open.
    pub(crate) expires: Option<Instant>,
    /// Ask whether the peer is alive this often.
    pub(crate) ping_interval: Option<Duration>,
    /// How long the answer may take.
    pub(crate) ping_timeout: Duration,
    /// Since when the peer has been in the middle of a head.
    head_since: Option<Instant>,
    /// The preface and SETTINGS must come within this.
    handshake_limit: Duration,
    /// What the peer took too long for.
    late: Option<Late>,
    /// Since when all that is open waits for the peer to take it, and how much that was. Bytes.
    stalled: Option<(Instant, usize)>,
    started: Instant,
    established: bool,
    idle_since: Option<Instant>,
    /// What had been said and heard when that was looked at last.
    traffic: u64,
    released: bool,
    refilled: Instant,
    pinged: Instant,
    due: Instant,
}

/// What a peer took too long for, so that its connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// Its preface and SETTINGS.
    Handshake,
    /// The rest of a head that it had begun.
    Head,
    /// Taking some of its answers.
    Stalled,
}

/// How long a peer has to answer a PING, unless configured.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Nothing to look at: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Watch {
    pub(crate) fn new(now: Instant, handshake_limit: Duration) -> Self {
        Self {
            idle_limit: None,
            head_limit: None,
            stall_limit: None,
            expires: None,
            ping_interval: None,
            ping_timeout: PING_TIMEOUT,
            head_since: None,
            handshake_limit,
            late: None,
            stalled: None,
            started: now,
            established: false,
            idle_since: None,
            traffic: 0,
            released: false,
            refilled: now,
            pinged: now,
            due: now + TICK,
        }
    }

    /// Call in every turn, before writing. `in_head`: the peer is in the middle of a head.
    pub(crate) fn poll(
        &mut self,
        connection: &mut Connection,
        in_head: bool,
        mut timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) {
        self.note_activity(connection, timer.as_mut());
        self.note_head(in_head, timer.as_mut());
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= self.due {
                self.tick(connection, now);
            }
            timer.as_mut().reset(self.due.into());
        }
    }

    /// Call after writing, which may have ended the last stream.
    pub(crate) fn written(&mut self, link: &Link) {
        if self.idle_since.is_none() && link.with(|connection| connection.open_streams()) == 0 {
            self.idle_since = Some(Instant::now());
        }
    }

    fn note_activity(&mut self, connection: &Connection, timer: Pin<&mut Sleep>) {
        match (connection.open_streams(), self.idle_since) {
            (0, None) => self.idle_since = Some(Instant::now()),
            (0, Some(_)) | (1.., None) => {}
            (1.., Some(_)) => {
                self.idle_since = None;
                if self.released {
                    self.released = false;
                    self.due = Instant::now() + TICK;
                    timer.reset(self.due.into());
                }
            }
        }
    }

    fn note_head(&mut self, in_head: bool, mut timer: Pin<&mut Sleep>) {
        match (in_head, self.head_since) {
            (false, None) | (true, Some(_)) => {}
            (false, Some(_)) => self.head_since = None,
            (true, None) => {
                let now = Instant::now();
                self.head_since = Some(now);
                self.due = self.due.min(now + TICK);
                timer.as_mut().reset(self.due.into());
            }
        }
    }

    /// What the peer took too long for, if that is why the connection was ended.
    pub(crate) fn ended(&self) -> Option<Late> {
        self.late
    }

    fn tick(&mut self, connection: &mut Connection, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled).as_secs();
        (0..seconds.min(5)).for_each(|_| connection.refill());
        if seconds > 0 {
            self.refilled = now;
        }
        self.established |= connection.is_established();
        if !self.established && now >= self.started + self.handshake_limit {
            self.late = Some(Late::Handshake);
            connection.lost();
        }
        let idle = self.idle_since.map(|since| now.saturating_duration_since(since));
        // Streams may be open and rest: the memory that made them goes back as well.
        let traffic = connection.traffic();
        let quiet = std::mem::replace(&mut self.traffic, traffic) == traffic;
        self.released &= quiet;
        if (quiet || idle.is_some_and(|idle| idle >= RELEASE_AFTER)) && !self.released {
            self.released = true;
            connection.release_buffers();
        }
        if let (Some(idle), Some(limit)) = (idle, self.idle_limit)
            && idle >= limit
        {
            connection.shutdown();
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            connection.shutdown();
        }
        if connection.is_leaving() {
            // A first request has been waited for long enough.
            connection.shutdown();
        }
        if connection.is_leaving() && idle.is_some_and(|idle| idle >= LEAVE_TIMEOUT) {
            connection.shutdown_now(ErrorCode::NO_ERROR);
        }
        if let (Some(since), Some(limit)) = (self.head_since, self.head_limit)
            && now >= since + limit
        {
            self.late = Some(Late::Head);
            connection.shutdown_now(ErrorCode::NO_ERROR);
        }
        if let Some(limit) = self.stall_limit
            && self.is_stalled(connection, now, limit)
        {
            self.late = Some(Late::Stalled);
            connection.shutdown_now(ErrorCode::NO_ERROR);
        }
        self.ping(connection, now);
        self.due = match connection.is_leaving() {
            true => now + TICK,
            false => match self.expires {
                Some(expires) => self.next(now).min(expires),
                None => self.next(now),
            },
        };
    }

    /// Whether the peer has taken nothing of what is left of complete answers for too long.
    fn is_stalled(&mut self, connection: &mut Connection, now: Instant, limit: Duration) -> bool {
        let Some(left) = connection.leftovers() else {
            self.stalled = None;
            return false;
        };
        match self.stalled {
            Some((since, before)) if left >= before => now >= since + limit,
            Some(_) | None => {
                self.stalled = Some((now, left));
                false
            }
        }
    }

    fn ping(&mut self, connection: &mut Connection, now: Instant) {
        let Some(interval) = self.ping_interval else { return };
        let since = now.saturating_duration_since(self.pinged);
        if connection.ping_pending() {
            if since >= self.ping_timeout {
                connection.lost();
            }
        } else if since >= interval {
            self.pinged = now;
            connection.ping();
        }
    }

    fn next(&self, now: Instant) -> Instant {
        let looks = self.ping_interval.is_some() || self.head_since.is_some();
        if !self.released || !self.established || looks {
            return now + TICK;
        }
        match (self.idle_since, self.idle_limit) {
            (Some(since), Some(limit)) if since + limit > now => since + limit,
            (Some(_), None) => now + FOREVER,
            _ => now + TICK,
        }
    }
}

/// HTTP/2 messages say nothing about their connection.
pub(crate) const CONNECTION: weft_http::h1::Connection =
    weft_http::h1::Connection { keep_alive: true, upgrade: None, expect_continue: false };
