//! Frames received, in whatever order a peer sends them (RFC 9113 §§5.1, 6). Errors of a stream
//! reset it and count against a budget; errors of the connection end it.

use bytes::{Buf, Bytes, BytesMut};

use super::super::error::{ErrorCode, FrameError, Scope};
use super::super::frame::{self, FrameHead, FrameType, HEAD_LEN, MAX_31, PREFACE};
use super::super::settings::{FRAME_SIZE_MIN, Setting, parse_settings};
use super::super::write;
use super::stream::{Half, StreamKey};
use super::{Abuse, Connection, Failure, RESET_REMEMBERED_MAX, Role, StreamError};

/// Up to this size content is copied out of the read buffer: a few bytes that wait for a slow
/// reader must not hold a whole buffer.
const COPY_BYTES_MAX: usize = 1024;

/// What becomes of one frame.
type Handled = Result<(), Wrong>;

/// A frame that could not be taken.
pub(super) enum Wrong {
    Connection(Failure),
    Stream(u32, ErrorCode, &'static str),
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        Wrong::Connection(failure)
    }
}

impl From<Abuse> for Wrong {
    fn from(abuse: Abuse) -> Self {
        Wrong::Connection(abuse.into())
    }
}

impl Wrong {
    pub(super) fn of(error: FrameError, stream: u32) -> Wrong {
        match error.scope {
            Scope::Connection => Wrong::Connection(error.into()),
            Scope::Stream => Wrong::Stream(stream, error.code, error.reason),
        }
    }

    pub(super) fn connection(code: ErrorCode, reason: &'static str) -> Wrong {
        Wrong::Connection(FrameError::connection(code, reason).into())
    }
}

impl Connection {
    /// Takes whole frames off the front of `input`; what is left is the start of the next.
    ///
    /// # Errors
    /// When the connection has to end: write the output, which says why, and close.
    pub fn recv(&mut self, input: &mut BytesMut) -> Result<(), Failure> {
        let before = input.len();
        let taken = self.recv_frames(input);
        self.received += (before - input.len()) as u64;
        match taken {
            Ok(()) => self.failed.map_or(Ok(()), Err),
            Err(failure) => {
                self.fail_with(failure);
                input.clear();
                Err(failure)
            }
        }
    }

    fn recv_frames(&mut self, input: &mut BytesMut) -> Result<(), Failure> {
        if self.preface_left > 0 && !self.recv_preface(input)? {
            return Ok(());
        }
        // Frames without content of their own are only looked at; the cursor moves once for all.
        let mut at = 0;
        while self.failed.is_none() {
            let Some(head) = FrameHead::peek(&input[at..]) else { break };
            let handled = match head.check(FRAME_SIZE_MIN) {
                Ok(()) => {
                    let end = at + head.frame_len();
                    if input.len() < end {
                        break;
                    }
                    self.in_order(&head)?;
                    match head.kind {
                        FrameType::Data => {
                            let handled = self.recv_data(&head, input, &mut at);
                            debug_assert!(at <= input.len());
                            handled
                        }
                        _ => {
                            let payload = at + HEAD_LEN..end;
                            at = end;
                            self.recv_frame(&head, &input[payload])
                        }
                    }
                }
                Err(error) => {
                    // A stream error in the nine bytes: the payload is skipped.
                    let end = at + head.frame_len();
                    if error.scope == Scope::Stream && input.len() < end {
                        break;
                    }
                    at = end.min(input.len());
                    Err(Wrong::of(error, head.stream))
                }
            };
            match handled {
                Ok(()) => {}
                Err(Wrong::Connection(failure)) => return Err(failure),
                Err(Wrong::Stream(id, code, reason)) => self.stream_error(id, code, reason)?,
            }
        }
        input.advance(at);
        Ok(())
    }

    /// The client's preface; false while it is not whole.
    fn recv_preface(&mut self, input: &mut BytesMut) -> Result<bool, Failure> {
        let expected = &PREFACE[PREFACE.len() - self.preface_left..];
        let seen = expected.len().min(input.len());
        if input[..seen] != expected[..seen] {
            return Err(FrameError::connection(ErrorCode::PROTOCOL_ERROR, "preface").into());
        }
        input.advance(seen);
        self.preface_left -= seen;
        Ok(self.preface_left == 0)
    }

    /// SETTINGS come first, and a header block is not interrupted (RFC 9113 §§3.4, 4.3).
    fn in_order(&self, head: &FrameHead) -> Result<(), Failure> {
        let wrong = |reason| FrameError::connection(ErrorCode::PROTOCOL_ERROR, reason).into();
        if !self.peer_settled && (head.kind != FrameType::Settings || head.is_ack()) {
            return Err(wrong("settings_first"));
        }
        match (self.heads.unfinished(), head.kind) {
            (None, FrameType::Continuation) => Err(wrong("continuation")),
            (Some(id), FrameType::Continuation) if id == head.stream => Ok(()),
            (Some(_), _) => Err(wrong("continuation")),
            (None, _) => Ok(()),
        }
    }

    fn recv_frame(&mut self, head: &FrameHead, payload: &[u8]) -> Handled {
        let frame = |error| Wrong::of(error, head.stream);
        match head.kind {
            FrameType::Headers => {
                let parts = frame::headers_payload(head, payload).map_err(frame)?;
                self.recv_headers(head, &payload[parts.fragment], parts.self_dependent)
            }
            FrameType::Continuation => self.recv_continuation(head, payload),
            FrameType::RstStream => {
                let code = frame::rst_stream(payload).map_err(frame)?;
                self.recv_reset(head.stream, code)
            }
            FrameType::WindowUpdate => {
                self.credits.control()?;
                let increment = frame::window_update(head, payload).map_err(frame)?;
                self.recv_window_update(head.stream, increment)
            }
            FrameType::Settings => self.recv_settings(head, payload),
            FrameType::Ping => {
                self.credits.control()?;
                let opaque = frame::ping(payload).map_err(frame)?;
                self.recv_ping(head.is_ack(), opaque)
            }
            FrameType::GoAway => {
                self.credits.control()?;
                let goaway = frame::goaway(payload).map_err(frame)?;
                self.recv_goaway(goaway);
                Ok(())
            }
            FrameType::Priority => {
                self.credits.control()?;
                frame::check_priority(head, payload).map_err(frame)
            }
            // Never allowed: a client must not, and as one we said that we take none.
            FrameType::PushPromise => {
                Err(Wrong::connection(ErrorCode::PROTOCOL_ERROR, "push_promise"))
            }
            FrameType::Unknown(_) => Ok(self.credits.control()?),
            FrameType::Data => unreachable!("DATA is taken off the buffer by its caller"),
        }
    }

    /// `at` is where the frame starts in `input`, and moves behind it.
    fn recv_data(&mut self, head: &FrameHead, input: &mut BytesMut, at: &mut usize) -> Handled {
        let start = *at + HEAD_LEN;
        let end = start + head.length as usize;
        *at = end;
        if !self.recv_window.take(head.length) {
            return Err(Wrong::connection(ErrorCode::FLOW_CONTROL_ERROR, "connection_window"));
        }
        let content = frame::data_content(head, &input[start..end])
            .map_err(|error| Wrong::of(error, head.stream))?;
        let (from, length) = (start + content.start, content.len());
        if length == 0 && !head.end_stream() {
            self.credits.empty()?;
        }
        let key = match self.take_data(head, length) {
            Ok(Some(key)) => key,
            Ok(None) => {
                self.release_connection(u64::from(head.length));
                return Ok(());
            }
            Err(wrong) => {
                self.release_connection(u64::from(head.length));
                return Err(wrong);
            }
        };
        let padding = head.length - length as u32;
        if padding > 0 {
            self.release_connection(u64::from(padding));
            self.release_stream(key, padding);
        }
        if length > 0 {
            let data = match length <= COPY_BYTES_MAX {
                true => Bytes::copy_from_slice(&input[from..from + length]),
                false => {
                    input.advance(from);
                    *at = end - from - length;
                    input.split_to(length).freeze()
                }
            };
            self.credits.useful();
            let stream = self.streams.get_mut(key).expect("found above");
            stream.moved = true;
            stream.passing().data.push_back(data);
            stream.unreleased += length as u32;
        }
        if head.end_stream() {
            self.recv_ended(key);
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.wake();
        }
        Ok(())
    }

    /// Checks a DATA frame against its stream; `None`: it is to be ignored.
    fn take_data(&mut self, head: &FrameHead, length: usize) -> Result<Option<StreamKey>, Wrong> {
        let id = head.stream;
        let wrong = |code, reason| Err(Wrong::Stream(id, code, reason));
        let Some(key) = self.streams.key_of(id) else {
            return self.on_closed(id, true).map(|()| None);
        };
        let stream = self.streams.get_mut(key).expect("the table knows its keys");
        if stream.is_failed() {
            return Ok(None);
        }
        match stream.recv {
            Half::Head => return wrong(ErrorCode::PROTOCOL_ERROR, "data_before_head"),
            Half::Ended => return wrong(ErrorCode::STREAM_CLOSED, "data_after_end"),
            Half::Body => {}
        }
        stream.recv_window -= i64::from(head.length);
        if stream.recv_window < 0 {
            return wrong(ErrorCode::FLOW_CONTROL_ERROR, "stream_window");
        }
        if let Some(left) = &mut stream.content_left {
            match left.checked_sub(length as u64) {
                Some(rest) if rest == 0 || !head.end_stream() => *left = rest,
                _ => return wrong(ErrorCode::PROTOCOL_ERROR, "content_length"),
            }
        }
        if !stream.held {
            // Nobody will read it.
            if head.end_stream() {
                self.recv_ended(key);
            } else {
                self.release_stream(key, head.length);
            }
            return Ok(None);
        }
        Ok(Some(key))
    }

    /// A frame on a stream that is not in the table: it has not been opened, or has ended. DATA
    /// and HEADERS of streams that we reset may have been under way.
    pub(super) fn on_closed(&mut self, id: u32, has_content: bool) -> Handled {
        if self.is_idle(id) {
            return Err(Wrong::connection(ErrorCode::PROTOCOL_ERROR, "idle_stream"));
        }
        self.credits.control()?;
        if !has_content || self.role == Role::Client || self.reset.contains(&id) {
            return Ok(());
        }
        if self.leaving.ignores(id) {
            return Ok(());
        }
        Err(Wrong::Stream(id, ErrorCode::STREAM_CLOSED, "closed_stream"))
    }

    pub(super) fn is_idle(&self, id: u32) -> bool {
        // Nobody pushes: even streams stay idle for ever.
        id.is_multiple_of(2) || id > self.last_stream
    }

    /// The peer has sent all it will of this stream.
    pub(super) fn recv_ended(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.recv = Half::Ended;
        self.after_half(key);
    }

    /// A half has ended: the stream may have, too.
    pub(super) fn after_half(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.recv == Half::Ended && stream.send == Half::Ended && !stream.is_failed() {
            let counted = std::mem::take(&mut stream.counted);
            self.credits.completed();
            self.count_out(counted);
        }
        self.settle(key);
    }

    fn recv_reset(&mut self, id: u32, code: ErrorCode) -> Handled {
        let Some(key) = self.streams.key_of(id) else { return self.on_closed(id, false) };
        let client = self.role == Role::Client;
        let stream = self.streams.get_mut(key).expect("the table knows its keys");
        if stream.is_failed() {
            return Ok(());
        }
        // RFC 9113 §8.1: the response is complete, and the rest of the request is not wanted.
        if client && stream.recv == Half::Ended && code == ErrorCode::NO_ERROR {
            stream.clear_pending();
            stream.send = Half::Ended;
            stream.wake();
            self.after_half(key);
            return Ok(());
        }
        let finished = stream.recv == Half::Ended && stream.send == Half::Ended;
        let error = match client && code == ErrorCode::REFUSED_STREAM {
            true => StreamError::Refused,
            false => StreamError::Reset(code),
        };
        self.fail_stream(key, error);
        if !finished && !client {
            self.credits.reset()?;
        }
        Ok(())
    }

    /// The stream carries nothing more, either way.
    pub(super) fn fail_stream(&mut self, key: StreamKey, error: StreamError) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.is_failed() {
            stream.fail(error);
            let counted = std::mem::take(&mut stream.counted);
            self.count_out(counted);
        }
        self.settle(key);
    }

    /// The peer broke the protocol on one stream: it is reset.
    pub(super) fn stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        reason: &'static str,
    ) -> Result<(), Failure> {
        if self.is_idle(id) {
            return Err(FrameError::connection(code, reason).into());
        }
        self.credits.error()?;
        self.reply(|out| write::rst_stream(out, id, code))?;
        self.remember_reset(id);
        if let Some(key) = self.streams.key_of(id) {
            self.fail_stream(key, StreamError::Protocol { code, reason });
        }
        Ok(())
    }

    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.reset.len() >= RESET_REMEMBERED_MAX {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    fn recv_window_update(&mut self, id: u32, increment: u32) -> Handled {
        if id == 0 {
            self.send_window += i64::from(increment);
            if self.send_window > i64::from(MAX_31) {
                return Err(Wrong::connection(ErrorCode::FLOW_CONTROL_ERROR, "window_overflow"));
            }
            if !self.ring.is_empty() {
                self.notice();
            }
            return Ok(());
        }
        let Some(key) = self.streams.key_of(id) else { return self.on_closed(id, false) };
        let stream = self.streams.get_mut(key).expect("the table knows its keys");
        stream.send_window += i64::from(increment);
        if stream.send_window > i64::from(MAX_31) {
            return Err(Wrong::Stream(id, ErrorCode::FLOW_CONTROL_ERROR, "window_overflow"));
        }
        self.enter_ring(key);
        Ok(())
    }

    fn recv_settings(&mut self, head: &FrameHead, payload: &[u8]) -> Handled {
        self.credits.control()?;
        if head.is_ack() {
            if self.settings_unacked == 0 {
                return Ok(());
            }
            self.settings_unacked -= 1;
            return Ok(());
        }
        self.peer_settled = true;
        let window_before = self.peer.initial_window_size;
        for setting in parse_settings(payload) {
            self.apply(setting.map_err(|error| Wrong::of(error, 0))?)?;
        }
        // Once per frame, however often the frame says it.
        let change = i64::from(self.peer.initial_window_size) - i64::from(window_before);
        if change != 0 {
            self.change_windows(change)?;
        }
        self.reply(write::settings_ack)?;
        // It may have raised or lowered how many streams fit.
        self.opening.drain(..).for_each(std::task::Waker::wake);
        Ok(())
    }

    fn apply(&mut self, setting: Setting) -> Handled {
        match setting {
            Setting::HeaderTableSize(size) => self.encoder.peer_table_max(size),
            Setting::EnablePush(true) if self.role == Role::Client => {
                return Err(Wrong::connection(ErrorCode::PROTOCOL_ERROR, "enable_push"));
            }
            // RFC 8441 §3: once allowed, always allowed.
            Setting::EnableConnectProtocol(false) if self.peer.enable_connect_protocol => {
                return Err(Wrong::connection(ErrorCode::PROTOCOL_ERROR, "connect_protocol"));
            }
            _ => {}
        }
        self.peer.apply(setting);
        Ok(())
    }

    /// RFC 9113 §6.9.2: the change applies to open streams, whose window may become negative.
    fn change_windows(&mut self, change: i64) -> Handled {
        for key in self.streams.keys() {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if stream.is_failed() {
                continue;
            }
            stream.send_window += change;
            if stream.send_window > i64::from(MAX_31) {
                return Err(Wrong::connection(ErrorCode::FLOW_CONTROL_ERROR, "window_overflow"));
            }
            if change > 0 {
                self.enter_ring(key);
            }
        }
        Ok(())
    }

    fn recv_ping(&mut self, ack: bool, opaque: [u8; 8]) -> Handled {
        if !ack {
            return Ok(self.reply(|out| write::ping(out, true, opaque))?);
        }
        self.ping_answered(opaque);
        Ok(())
    }
}
