//! The end of a connection in order (RFC 9113 §6.8), and PINGs of ours.
//!
//! A server leaves in two steps: it announces, and once the client has surely heard that says which
//! stream was the last; requests sent in between are served. Two PINGs in a row must come back
//! before: clients are seen to answer the first ahead of requests they had queued before.

use super::super::error::ErrorCode;
use super::super::frame::{GoAway, MAX_31};
use super::super::write;
use super::{Connection, Failure, Role, StreamError};

#[derive(Debug, Default)]
pub(super) struct Leaving {
    stage: Stage,
    /// The peer goes away.
    peer: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Staying,
    /// To be announced with the client's first request: a client that hears it before drops what it
    /// was about to ask.
    Expecting,
    Announced,
    /// The first PING came back: the client opens no more streams.
    Heard,
    /// Streams above this are ignored.
    Last(u32),
}

impl Leaving {
    /// Whether frames of a stream above the last one are to be ignored.
    pub(super) fn ignores(&self, id: u32) -> bool {
        matches!(self.stage, Stage::Last(last) if id > last)
    }
}

/// The PINGs that follow the announcement; keep-alive PINGs count up from 1.
const LEAVING_PING: [u8; 8] = [0xff; 8];

impl Connection {
    /// As [`shutdown`](Self::shutdown), but a server that has had no request yet lets the first one
    /// in.
    pub fn shutdown_after_first(&mut self) {
        match (self.leaving.stage, self.role) {
            (Stage::Staying, Role::Server) if self.last_stream == 0 => {
                self.leaving.stage = Stage::Expecting;
            }
            _ => self.shutdown(),
        }
    }

    /// Starts to leave: no new streams after those under way.
    pub fn shutdown(&mut self) {
        if self.failed.is_some() {
            return;
        }
        match (self.leaving.stage, self.role) {
            (Stage::Staying | Stage::Expecting, Role::Server) => self.announce(),
            (Stage::Staying, Role::Client) => {
                self.leaving.stage = Stage::Last(0);
                self.output.stage_with(|out| write::goaway(out, 0, ErrorCode::NO_ERROR, b""));
                self.opening.drain(..).for_each(std::task::Waker::wake);
            }
            _ => return,
        }
        self.notice();
    }

    /// The first request has come; says what was put off until then.
    pub(super) fn asked(&mut self) {
        if self.leaving.stage == Stage::Expecting {
            self.announce();
        }
    }

    fn announce(&mut self) {
        self.leaving.stage = Stage::Announced;
        self.output.stage_with(|out| {
            write::goaway(out, MAX_31, ErrorCode::NO_ERROR, b"");
            write::ping(out, false, LEAVING_PING);
        });
    }

    /// Ends the connection: streams under way are cut.
    pub fn shutdown_now(&mut self, code: ErrorCode) {
        if self.failed.is_some() {
            return;
        }
        let last = self.last_processed();
        self.output.stage_with(|out| write::goaway(out, last, code, b""));
        self.fail(Failure::Closed, StreamError::Closed);
    }

    /// Whether it was said that no new streams follow.
    pub fn is_leaving(&self) -> bool {
        self.leaving.stage != Stage::Staying || self.leaving.peer || self.failed.is_some()
    }

    /// Whether it can be closed: we or the peer leave, and every stream is done.
    pub fn is_drained(&self) -> bool {
        let announced_last = matches!(self.leaving.stage, Stage::Last(_));
        let leaving = announced_last || (self.leaving.peer && self.role == Role::Client);
        leaving && self.streams.len() == 0 && self.requests.is_empty() && self.output.is_empty()
    }

    /// Sends a PING; `true` from [`ping_pending`](Self::ping_pending) until it comes back.
    pub fn ping(&mut self) {
        self.pings.sent += 1;
        let opaque = self.pings.sent.to_be_bytes();
        self.output.stage_with(|out| write::ping(out, false, opaque));
        self.notice();
    }

    /// Whether the last PING has not come back.
    pub fn ping_pending(&self) -> bool {
        self.pings.answered < self.pings.sent
    }

    pub(super) fn ping_answered(&mut self, opaque: [u8; 8]) {
        if opaque != LEAVING_PING {
            let number = u64::from_be_bytes(opaque);
            if number <= self.pings.sent {
                self.pings.answered = self.pings.answered.max(number);
            }
            return;
        }
        match self.leaving.stage {
            Stage::Announced => {
                self.leaving.stage = Stage::Heard;
                self.output.stage_with(|out| write::ping(out, false, LEAVING_PING));
            }
            Stage::Heard => {
                let last = self.last_stream;
                self.leaving.stage = Stage::Last(last);
                self.output.stage_with(|out| write::goaway(out, last, ErrorCode::NO_ERROR, b""));
            }
            Stage::Staying | Stage::Expecting | Stage::Last(_) => return,
        }
        self.notice();
    }

    pub(super) fn recv_goaway(&mut self, goaway: GoAway) {
        self.leaving.peer = true;
        if self.role == Role::Server {
            // It takes no pushed streams, which nobody makes.
            return;
        }
        for key in self.streams.keys() {
            if key.id() > goaway.last_stream {
                self.fail_stream(key, StreamError::Refused);
            }
        }
        self.opening.drain(..).for_each(std::task::Waker::wake);
        // The owner looks whether the connection is drained.
        self.notice();
    }

    /// The last stream that the peer may believe to have been acted upon.
    pub(super) fn last_processed(&self) -> u32 {
        match (self.role, self.leaving.stage) {
            (Role::Client, _) => 0,
            (Role::Server, Stage::Last(last)) => last,
            (Role::Server, Stage::Staying | Stage::Expecting | Stage::Announced | Stage::Heard) => {
                self.last_stream
            }
        }
    }
}
