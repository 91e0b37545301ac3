//! What the holder of a stream does with what was received: takes it, releases it, gives it up.

use std::task::{Context, Poll};

use super::super::error::ErrorCode;
use super::super::write;
use super::stream::{Ending, Half, StreamKey};
use super::{Answer, Connection, Incoming, Role, StreamError};
use crate::message::Frame;

impl Connection {
    /// Server: the next request. Whoever takes it holds the stream until [`close`](Self::close).
    ///
    /// One that the client reset before anybody saw it is gone: to begin it would be work for
    /// nothing, here and at whoever answers it.
    pub fn next_request(&mut self) -> Option<Incoming> {
        while let Some(incoming) = self.requests.pop_front() {
            let gone = self.streams.get(incoming.key).is_none_or(|stream| stream.is_failed());
            if !gone {
                return Some(incoming);
            }
            self.close(incoming.key);
        }
        None
    }

    /// Client: the next head of the response.
    pub fn poll_answer(
        &mut self,
        key: StreamKey,
        cx: &Context<'_>,
    ) -> Poll<Result<Answer, StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        if let Some(passing) = stream.passing_if_any() {
            if let Some(head) = passing.informational.pop_front() {
                return Poll::Ready(Ok(Answer::Informational(head)));
            }
            if let Some(head) = passing.answer.take() {
                let ended = stream.nothing_left();
                return Poll::Ready(Ok(Answer::Final { head, ended }));
            }
        }
        match stream.failed() {
            Some(error) => Poll::Ready(Err(error)),
            None => {
                stream.watch(cx);
                Poll::Pending
            }
        }
    }

    /// The next frame of the content; `None` at its end. Every byte is to be given back with
    /// [`release`](Self::release) once it has been passed on.
    pub fn poll_frame(
        &mut self,
        key: StreamKey,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame, StreamError>>> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(Some(Err(StreamError::Closed)));
        };
        if let Some(data) = stream.passing_if_any().and_then(|passing| passing.data.pop_front()) {
            return Poll::Ready(Some(Ok(Frame::Data(data))));
        }
        match (stream.recv, stream.failed()) {
            (Half::Ended, _) => {
                match stream.passing_if_any().and_then(|passing| passing.trailers.take()) {
                    Some(trailers) => Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                    None => Poll::Ready(None),
                }
            }
            (_, Some(error)) => Poll::Ready(Some(Err(error))),
            (Half::Head | Half::Body, None) => {
                stream.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Whether everything the peer sends on this stream has been taken.
    pub fn input_done(&self, key: StreamKey) -> bool {
        self.streams.get(key).is_none_or(|stream| stream.nothing_left())
    }

    /// `bytes` of the content have been passed on: the peer may send as much again.
    pub fn release(&mut self, key: StreamKey, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let bytes = bytes.min(stream.unreleased as usize) as u32;
        stream.unreleased -= bytes;
        self.release_stream(key, bytes);
        self.release_connection(u64::from(bytes));
    }

    pub(super) fn release_stream(&mut self, key: StreamKey, bytes: u32) {
        let due = self.config.stream_window_bytes / 2;
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.recv == Half::Ended || stream.is_failed() {
            return;
        }
        stream.to_give_back += bytes;
        if stream.to_give_back >= due.max(1) {
            let grant = std::mem::take(&mut stream.to_give_back);
            stream.recv_window += i64::from(grant);
            self.output.stage_with(|out| write::window_update(out, key.id(), grant));
            self.notice();
        }
    }

    pub(super) fn release_connection(&mut self, bytes: u64) {
        self.recv_window.release(bytes);
        if self.failed.is_some() {
            return;
        }
        if let Some(grant) = self.recv_window.due() {
            self.output.stage_with(|out| write::window_update(out, 0, grant));
            self.notice();
        }
    }

    /// Wakes the holders of streams whose content has moved since the last call, so that they can say
    /// how far they are.
    pub fn wake_moved(&mut self) {
        self.streams.wake_moved();
    }

    /// Ready when the stream has failed: the peer gave it up, or its connection ended.
    pub fn poll_failed(&mut self, key: StreamKey, cx: &Context<'_>) -> Poll<StreamError> {
        match self.streams.get_mut(key) {
            None => Poll::Ready(StreamError::Closed),
            Some(stream) => match stream.failed() {
                Some(error) => Poll::Ready(error),
                None => {
                    stream.watch(cx);
                    Poll::Pending
                }
            },
        }
    }

    /// Resets the stream: the peer is told `code`, and nothing more passes either way.
    pub fn reset(&mut self, key: StreamKey, code: ErrorCode) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.is_done() {
            return;
        }
        let id = key.id();
        self.output.stage_with(|out| write::rst_stream(out, id, code));
        self.remember_reset(id);
        self.notice();
        self.fail_stream(key, StreamError::Closed);
    }

    /// Server: resets the stream after what was said of the response, if the peer has the window to
    /// take it; at once if not.
    pub fn cut(&mut self, key: StreamKey, code: ErrorCode) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let window = stream.send_window.min(self.send_window);
        let leaves = stream.pending_bytes > 0 && stream.pending_bytes as i64 <= window;
        if stream.is_failed() || !leaves {
            return self.reset(key, code);
        }
        stream.ending = Ending::Reset(code);
        self.enter_ring(key);
    }

    /// Gives the stream up. What was said to its end still leaves; a stream in the middle of
    /// something is reset.
    pub fn close(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.held = false;
        if let Some(passing) = stream.passing_if_any() {
            passing.data.clear();
            passing.trailers = None;
        }
        let owed = std::mem::take(&mut stream.unreleased);
        let failed = stream.is_failed();
        let (sent, received) = (stream.send_complete(), stream.recv == Half::Ended);
        self.release_connection(u64::from(owed));
        match (self.role, sent, received) {
            _ if failed => self.settle(key),
            (_, true, true) => self.settle(key),
            // RFC 9113 §8.1: the rest of the request is not wanted; said when the response is out.
            (Role::Server, true, false) => self.stop_input(key),
            (Role::Server, false, _) => self.reset(key, ErrorCode::INTERNAL_ERROR),
            (Role::Client, _, true) => self.reset(key, ErrorCode::NO_ERROR),
            (Role::Client, _, false) => self.reset(key, ErrorCode::CANCEL),
        }
    }

    /// Server: resets the stream with NO_ERROR if its response has left; if not, that is done
    /// when it has.
    pub(super) fn stop_input(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.send == Half::Ended {
            self.reset(key, ErrorCode::NO_ERROR);
        }
        self.settle(key);
    }
}
