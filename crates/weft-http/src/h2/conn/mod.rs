//! One HTTP/2 connection as a state machine (RFC 9113), either role. Bytes in ([`Connection::recv`]),
//! messages and wake-ups out; messages in (`send_*`), bytes out ([`Connection::output`]).
//!
//! ```text
//!  socket ─ recv ─▶ frames ─▶ streams: heads, content ─ next_request, poll_answer, poll_frame ─▶
//!  socket ◀─ output ◀─ round robin ◀─ streams: content, trailers ◀─ send_head, send, end ───────
//! ```
//! Owns stream states, both levels of flow control, settings, fairness between streams, GOAWAY and
//! the budgets against abuse. Heads and control frames go to the output as they are made; content
//! waits in its stream until [`Connection::output`] gives each stream its turn, so that everything
//! said in one turn of the event loop leaves in one write and a download delays no small call by
//! more than a quantum per stream. Window is given back only as content is released, so what a slow
//! reader leaves waiting is bounded by the windows. Must not know sockets, clocks, routes or tasks
//! (wakers aside).

mod budget;
mod flow;
mod goaway;
mod handle;
mod heads;
mod memo;
mod recv;
mod send;
mod stream;

use std::collections::VecDeque;
use std::task::Waker;

use bytes::Bytes;

use super::error::{ErrorCode, FrameError};
use super::frame::PREFACE;
use super::hpack::{Decoder, Encoder, HeadError, HeadLimits};
use super::settings::{Setting, Settings, parse_settings};
use super::write;
use crate::h1::OutBuf;
use crate::message::{RequestHead, ResponseHead};

pub use budget::{Abuse, Budgets};
pub use stream::StreamKey;

use budget::Credits;
use flow::Window;
use goaway::Leaving;
use heads::Heads;
use stream::Streams;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What we ask of the peer and allow it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Streams the peer may have open at once (server).
    pub streams_max: u32,
    /// Bytes the peer may send on one stream before any is released.
    pub stream_window_bytes: u32,
    /// The same over all streams.
    pub connection_window_bytes: u32,
    /// Bounds of a received head.
    pub head: HeadLimits,
    /// Server: whether extended CONNECT is accepted (RFC 8441).
    pub connect_protocol: bool,
    /// What the peer may make us do for nothing.
    pub budgets: Budgets,
}

/// A parameter in SETTINGS.
const SETTING_BYTES: usize = 6;
/// Settings that an upgrade from HTTP/1 may bring: far more than there are.
const UPGRADE_SETTINGS_BYTES_MAX: usize = 64 * SETTING_BYTES;
/// Streams a client opens before it has seen the server's limit.
const STREAMS_BEFORE_SETTINGS: u32 = 100;
/// Header tables, either way: the protocol's default, which we neither raise nor lower.
const TABLE_BYTES_MAX: usize = 4096;
/// What the peers assume before SETTINGS (RFC 9113 §6.9.2).
const INITIAL_WINDOW_BYTES: u32 = 65_535;

/// A connection. Everything returns at once; `poll_*` registers the caller's waker for the stream.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    /// What the peer asked for.
    peer: Settings,
    /// The peer's SETTINGS have been seen.
    peer_settled: bool,
    /// SETTINGS of ours that the peer has not acknowledged.
    settings_unacked: u32,
    /// Server: bytes of the client's preface still to come.
    preface_left: usize,

    streams: Streams,
    /// The peer's streams in the table that count against its limit, or ours against the peer's.
    active: u32,
    /// Server: the highest stream the client opened. Client: the last we opened.
    last_stream: u32,
    /// Server: requests not taken yet.
    requests: VecDeque<Incoming>,
    /// Streams we reset lately: what the peer sent before it knew is ignored.
    reset: VecDeque<u32>,
    /// Client: where in the output the heads of the latest streams begin. The peer cannot have seen
    /// one of which nothing has left.
    unsent: VecDeque<(StreamKey, u64)>,
    /// Client: promised streams that `open` has not made yet.
    reserved: u32,
    opening: VecDeque<Waker>,

    heads: Heads,
    decoder: Decoder,
    encoder: Encoder,

    /// Bytes taken from the peer, ever.
    received: u64,
    recv_window: Window,
    send_window: i64,
    /// Streams with something to send, in the order of their turns.
    ring: VecDeque<StreamKey>,
    output: OutBuf,
    /// The owner has been woken for what is in `output` and `ring`.
    noticed: bool,
    owner: Option<Waker>,
    /// Small frames in `output` that the peer asked for, since it was last empty.
    control_queued: u32,

    credits: Credits,
    leaving: Leaving,
    pings: Pings,
    /// The connection is over: everything sent is ignored.
    failed: Option<Failure>,
}

/// Streams remembered after we reset them.
const RESET_REMEMBERED_MAX: usize = 1024;

/// A request of a client, its content to come.
#[derive(Debug)]
pub struct Incoming {
    pub key: StreamKey,
    /// Malformed heads are to be answered and end with a reset.
    pub head: Result<RequestHead, HeadError>,
    /// The protocol of an extended CONNECT.
    pub protocol: Option<Bytes>,
    /// No content follows.
    pub ended: bool,
}

/// What an endpoint sent back.
#[derive(Debug)]
pub enum Answer {
    /// 1xx; more follows.
    Informational(ResponseHead),
    Final {
        head: ResponseHead,
        /// No content follows.
        ended: bool,
    },
}

/// Why a stream ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset it.
    #[error("http2.reset: {0:?}")]
    Reset(ErrorCode),
    /// The peer has not processed it and never will: REFUSED_STREAM, GOAWAY, or it was never sent.
    #[error("http2.refused")]
    Refused,
    /// The peer broke the protocol on it.
    #[error("http2.{reason}")]
    Protocol {
        code: ErrorCode,
        /// Short and stable.
        reason: &'static str,
    },
    /// Its connection is gone.
    #[error("http2.connection_lost")]
    Lost,
    /// It ended here.
    #[error("http2.closed")]
    Closed,
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The peer broke the protocol; it has been told.
    #[error(transparent)]
    Protocol(#[from] FrameError),
    /// The peer exceeded a budget; it has been told.
    #[error("http2.{}", .0.name())]
    Abuse(Abuse),
    /// The transport ended.
    #[error("http2.connection_lost")]
    Lost,
    /// We ended it.
    #[error("http2.closed")]
    Closed,
}

impl From<Abuse> for Failure {
    fn from(abuse: Abuse) -> Self {
        Failure::Abuse(abuse)
    }
}

/// PINGs of ours.
#[derive(Debug, Default)]
struct Pings {
    sent: u64,
    answered: u64,
}

impl Connection {
    /// A connection that has just been made. The preface and SETTINGS are in its output.
    pub fn new(role: Role, config: Config) -> Self {
        let mut connection = Self {
            role,
            peer: Settings::default(),
            peer_settled: false,
            settings_unacked: 1,
            preface_left: match role {
                Role::Server => PREFACE.len(),
                Role::Client => 0,
            },
            streams: Streams::default(),
            active: 0,
            last_stream: 0,
            requests: VecDeque::new(),
            reset: VecDeque::new(),
            unsent: VecDeque::new(),
            reserved: 0,
            opening: VecDeque::new(),
            heads: Heads::new(),
            decoder: Decoder::new(TABLE_BYTES_MAX),
            encoder: Encoder::new(TABLE_BYTES_MAX),
            received: 0,
            recv_window: Window::new(config.connection_window_bytes),
            send_window: i64::from(INITIAL_WINDOW_BYTES),
            ring: VecDeque::new(),
            output: OutBuf::new(),
            noticed: false,
            owner: None,
            control_queued: 0,
            credits: Credits::new(config.budgets),
            leaving: Leaving::default(),
            pings: Pings::default(),
            failed: None,
            config,
        };
        connection.send_opening();
        connection
    }

    /// Server: a connection that HTTP/1 was upgraded to (RFC 7540 §3.2). The client's request is its
    /// first stream; `settings` is the payload of its `HTTP2-Settings`. The 101 is the caller's.
    ///
    /// # Errors
    /// When the settings are none.
    pub fn upgraded(
        config: Config,
        settings: &[u8],
        head: RequestHead,
    ) -> Result<Connection, FrameError> {
        if !settings.len().is_multiple_of(SETTING_BYTES)
            || settings.len() > UPGRADE_SETTINGS_BYTES_MAX
        {
            return Err(FrameError::connection(ErrorCode::FRAME_SIZE_ERROR, "settings"));
        }
        let mut connection = Self::new(Role::Server, config);
        for setting in parse_settings(settings) {
            let setting = setting?;
            if let Setting::HeaderTableSize(size) = setting {
                connection.encoder.peer_table_max(size);
            }
            connection.peer.apply(setting);
        }
        connection.last_stream = 1;
        let key = connection.accept(1, None, true);
        let request = Incoming { key, head: Ok(head), protocol: None, ended: true };
        connection.requests.push_back(request);
        Ok(connection)
    }

    fn send_opening(&mut self) {
        let ours = self.our_settings();
        let grant = self.recv_window.grant_beyond(INITIAL_WINDOW_BYTES);
        let client = self.role == Role::Client;
        self.output.stage_with(|out| {
            if client {
                out.extend_from_slice(PREFACE);
            }
            write::settings(out, ours.changes_from(&Settings::default()));
            if let Some(grant) = grant {
                write::window_update(out, 0, grant);
            }
        });
    }

    fn our_settings(&self) -> Settings {
        let config = &self.config;
        let server = self.role == Role::Server;
        let defaults = Settings::default();
        Settings {
            enable_push: server && defaults.enable_push,
            max_concurrent_streams: match self.role {
                Role::Server => config.streams_max,
                // A server opens none without push.
                Role::Client => defaults.max_concurrent_streams,
            },
            initial_window_size: config.stream_window_bytes,
            max_header_list_size: u32::try_from(config.head.list_bytes_max).unwrap_or(u32::MAX),
            enable_connect_protocol: server && config.connect_protocol,
            ..defaults
        }
    }

    /// Whoever writes the output and reads the socket; woken when there is output.
    pub fn set_owner(&mut self, waker: &Waker) {
        match &mut self.owner {
            Some(owner) => owner.clone_from(waker),
            None => self.owner = Some(waker.clone()),
        }
    }

    /// Says that the owner is at work and will write whatever comes up: it is not woken for it.
    pub fn begin_turn(&mut self) {
        self.noticed = true;
    }

    /// Streams in use, those that only have output left included.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes that still have to be taken by the peer, if there are streams and none of them waits
    /// for anything else.
    pub fn leftovers(&self) -> Option<usize> {
        let waiting = self.streams.leftovers()?;
        Some(waiting + self.output.len())
    }

    /// Whether the peer has shown that it speaks HTTP/2: its SETTINGS have come.
    pub fn is_established(&self) -> bool {
        self.peer_settled
    }

    /// Whether the peer is in the middle of a header block: CONTINUATION has to follow.
    pub fn in_head(&self) -> bool {
        self.heads.unfinished().is_some()
    }

    /// Whether the connection is over. Its output may hold the last word.
    pub fn failure(&self) -> Option<Failure> {
        self.failed
    }

    /// About a second has passed since the last call: budgets recover a little.
    pub fn refill(&mut self) {
        self.credits.refill();
    }

    /// The transport ended: every stream fails, and nothing more is sent.
    pub fn lost(&mut self) {
        if self.role == Role::Client && self.failed.is_none() {
            self.forget_sent();
            for (key, _) in std::mem::take(&mut self.unsent) {
                self.fail_stream(key, StreamError::Refused);
            }
            // The peer may still read, and must not see what was just said to be unsent.
            self.output = OutBuf::new();
        }
        self.fail(Failure::Lost, StreamError::Lost);
    }

    /// Grows with everything that is said or heard; for finding out that nothing is.
    pub fn traffic(&self) -> u64 {
        self.received + self.output.consumed()
    }

    /// Gives back what a connection does not need on which nothing is said, whether or not streams
    /// are open. Call when nothing is expected soon.
    pub fn release_buffers(&mut self) {
        self.output.release();
        self.streams.release();
        if self.ring.is_empty() {
            self.ring = VecDeque::new();
        }
        if self.requests.is_empty() {
            self.requests = VecDeque::new();
        }
        self.reset.shrink_to_fit();
        self.opening.shrink_to_fit();
        if self.streams.len() == 0 {
            self.reset = VecDeque::new();
        }
        self.forget_sent();
        if self.unsent.is_empty() {
            self.unsent = VecDeque::new();
        }
        self.heads.release();
        self.decoder.release();
        if self.streams.len() == 0 {
            self.encoder.release();
        }
    }

    /// Forgets the streams of whose heads something has left.
    fn forget_sent(&mut self) {
        let consumed = self.output.consumed();
        while self.unsent.front().is_some_and(|&(_, begins)| begins < consumed) {
            self.unsent.pop_front();
        }
    }

    fn notice(&mut self) {
        if !self.noticed {
            self.noticed = true;
            if let Some(owner) = &self.owner {
                owner.wake_by_ref();
            }
        }
    }

    /// Queues a small frame that the peer asked for.
    fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Failure> {
        if self.output.is_empty() {
            self.control_queued = 0;
        }
        self.control_queued += 1;
        if self.control_queued > self.credits.max().control_queued_max {
            return Err(Abuse::ControlQueued.into());
        }
        self.output.stage_with(write);
        self.notice();
        Ok(())
    }

    /// Ends the connection: every stream fails with `error`.
    fn fail(&mut self, failure: Failure, error: StreamError) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(failure);
        for key in self.streams.keys() {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.fail(error);
            }
            self.settle(key);
        }
        self.ring.clear();
        self.opening.drain(..).for_each(Waker::wake);
        self.notice();
    }

    /// Tells the peer why the connection ends, and ends it.
    fn fail_with(&mut self, failure: Failure) {
        let (code, debug) = match failure {
            Failure::Protocol(error) => (error.code, error.reason),
            Failure::Abuse(abuse) => (ErrorCode::ENHANCE_YOUR_CALM, abuse.name()),
            Failure::Lost | Failure::Closed => (ErrorCode::NO_ERROR, ""),
        };
        let last = self.last_processed();
        self.output.stage_with(|out| write::goaway(out, last, code, debug.as_bytes()));
        self.fail(failure, StreamError::Lost);
    }

    /// Takes a finished stream out of the table once nobody needs it.
    fn settle(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        if !stream.is_done() || stream.held {
            return;
        }
        let owed = stream.unreleased;
        self.streams.remove(key);
        self.recv_window.release(u64::from(owed));
    }

    /// The stream no longer counts against the limit of open streams.
    fn count_out(&mut self, counted: bool) {
        if counted {
            self.active -= 1;
            self.wake_opening();
        }
    }
}

#[cfg(test)]
mod tests;
