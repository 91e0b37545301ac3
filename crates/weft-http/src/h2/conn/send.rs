//! Messages sent: heads at once, content and trailers when the stream has its turn. Flow control
//! towards the peer, on both levels, is here (RFC 9113 §5.2).

use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::super::write;
use super::stream::{Ending, Half, StreamKey};
use super::{Connection, Role, STREAMS_BEFORE_SETTINGS, StreamError};
use crate::h1::OutBuf;
use crate::headers::HeaderList;
use crate::message::{Frame, Method, RequestHead, ResponseHead};

/// Content a stream gets into the output per turn; what waits behind it waits no longer than this
/// times the number of busy streams. Bytes.
const QUANTUM_BYTES: usize = 16 * 1024;
/// Output made before the owner must write. Bytes.
const OUTPUT_BYTES_MAX: usize = 128 * 1024;
/// Content that may wait in a stream for its turn before its source is held back. Bytes.
const PENDING_BYTES_MAX: usize = 64 * 1024;
/// Beyond this a server stops reading: its client does not read the answers. Bytes.
const CONGESTED_BYTES: usize = 256 * 1024;
/// Highest stream identifier.
const STREAM_ID_MAX: u32 = (1 << 31) - 1;

impl Connection {
    /// Client: ready when the peer takes one more stream, which is then promised to the caller: it
    /// must call [`open`](Self::open) or [`unreserve`](Self::unreserve).
    pub fn poll_reserve(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        if !self.accepts_streams() {
            return Poll::Ready(Err(StreamError::Refused));
        }
        if self.try_reserve() {
            return Poll::Ready(Ok(()));
        }
        self.opening.push_back(cx.waker().clone());
        Poll::Pending
    }

    /// As [`poll_reserve`](Self::poll_reserve), without waiting; whether the stream is promised.
    pub fn try_reserve(&mut self) -> bool {
        let promised = self.accepts_streams() && self.active + self.reserved < self.streams_limit();
        self.reserved += u32::from(promised);
        promised
    }

    /// Client: the promised stream is not wanted.
    pub fn unreserve(&mut self) {
        self.reserved -= 1;
        self.wake_opening();
    }

    /// Wakes as many of those who wait to open a stream as there is room for. Some of them may have
    /// given up, so when nothing is open, and nothing would wake the others later, all are woken.
    pub(super) fn wake_opening(&mut self) {
        let used = self.active + self.reserved;
        let count = match used {
            0 => self.opening.len(),
            _ => self.opening.len().min(self.streams_limit().saturating_sub(used) as usize),
        };
        self.opening.drain(..count).for_each(Waker::wake);
    }

    /// Client: streams that may be open at once.
    pub fn streams_limit(&self) -> u32 {
        match self.peer_settled {
            true => self.peer.max_concurrent_streams,
            false => STREAMS_BEFORE_SETTINGS,
        }
    }

    /// Client: whether a stream could be opened, now or later.
    pub fn accepts_streams(&self) -> bool {
        !self.is_leaving() && self.last_stream < STREAM_ID_MAX - 1
    }

    /// Client: whether the server takes extended CONNECT (RFC 8441), once it has said so or not.
    pub fn poll_connect_protocol(&mut self, cx: &Context<'_>) -> Poll<bool> {
        if self.peer_settled || !self.accepts_streams() {
            return Poll::Ready(self.peer.enable_connect_protocol);
        }
        self.opening.push_back(cx.waker().clone());
        Poll::Pending
    }

    /// Client: sends a request head on a promised stream. `end`: no content follows.
    ///
    /// # Errors
    /// When the connection has come to its end meanwhile.
    pub fn open(
        &mut self,
        head: &RequestHead,
        protocol: Option<&[u8]>,
        end: bool,
    ) -> Result<StreamKey, StreamError> {
        self.reserved -= 1;
        if !self.accepts_streams() {
            return Err(StreamError::Refused);
        }
        let id = if self.last_stream == 0 { 1 } else { self.last_stream + 2 };
        self.last_stream = id;
        self.active += 1;
        let (window, ours) = (i64::from(self.peer.initial_window_size), self.first_recv_window());
        let (key, stream) = self.streams.insert(id);
        stream.held = true;
        stream.counted = true;
        stream.recv_window = ours;
        stream.send_window = window;
        stream.send = if end { Half::Ended } else { Half::Body };
        stream.answers_head = head.method == Method::Head;
        self.forget_sent();
        self.unsent.push_back((key, self.output.consumed() + self.output.len() as u64));
        let (encoder, frame_max) = (&mut self.encoder, self.peer.max_frame_size);
        self.output.stage_with(|out| {
            write::headers(out, id, end, frame_max, |out| {
                encoder.encode_request(head, protocol, out);
            });
        });
        self.notice();
        Ok(key)
    }

    /// Server: sends a 1xx head.
    pub fn send_informational(&mut self, key: StreamKey, head: &ResponseHead) {
        if self.streams.get(key).is_some_and(|s| !s.is_failed() && s.send == Half::Head) {
            self.write_response(key, head, false);
        }
    }

    /// Server: sends the final head. `end`: no content follows.
    ///
    /// # Errors
    /// When the stream has failed.
    pub fn send_head(
        &mut self,
        key: StreamKey,
        head: &ResponseHead,
        end: bool,
    ) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(key).ok_or(StreamError::Closed)?;
        if let Some(error) = stream.failed() {
            return Err(error);
        }
        debug_assert!(stream.send == Half::Head, "one final head per stream");
        stream.send = if end { Half::Ended } else { Half::Body };
        self.write_response(key, head, end);
        if end {
            self.after_send(key);
        }
        Ok(())
    }

    fn write_response(&mut self, key: StreamKey, head: &ResponseHead, end: bool) {
        let (encoder, frame_max) = (&mut self.encoder, self.peer.max_frame_size);
        self.output.stage_with(|out| {
            write::headers(out, key.id(), end, frame_max, |out| {
                encoder.encode_response(head, out);
            });
        });
        self.notice();
    }

    /// Queues a frame of content. Nothing may follow trailers.
    pub fn send(&mut self, key: StreamKey, frame: Frame) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.is_failed() || stream.send != Half::Body {
            return;
        }
        match frame {
            Frame::Data(data) if data.is_empty() => return,
            Frame::Data(data) => stream.push_pending(data),
            Frame::Trailers(trailers) => stream.ending = Ending::Trailers(Box::new(trailers)),
        }
        self.enter_ring(key);
    }

    /// Says that nothing follows.
    pub fn end(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.is_failed() && !stream.send_complete() {
            stream.ending = Ending::Plain;
            self.enter_ring(key);
        }
    }

    /// Ready when the stream takes more content.
    ///
    /// Once everything is queued this is all there is to wait for, too: what is left is the
    /// connection's to send.
    pub fn poll_ready(
        &mut self,
        key: StreamKey,
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(Err(StreamError::Closed));
        };
        match stream.failed() {
            Some(error) => Poll::Ready(Err(error)),
            None if stream.pending_bytes < PENDING_BYTES_MAX => Poll::Ready(Ok(())),
            None => {
                stream.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Whether the final head of this stream was sent with everything after it queued.
    pub fn output_done(&self, key: StreamKey) -> bool {
        self.streams.get(key).is_none_or(|stream| stream.send_complete())
    }

    /// Puts a stream in line that has something to send and window for it.
    pub(super) fn enter_ring(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.in_ring && stream.can_send() {
            stream.in_ring = true;
            self.ring.push_back(key);
            if self.send_window > 0 || stream.pending_bytes == 0 {
                self.notice();
            }
        }
    }

    /// What there is to write; consume what was written and call again.
    pub fn output(&mut self) -> &mut OutBuf {
        self.noticed = false;
        let mut blocked = 0;
        while self.output.len() < OUTPUT_BYTES_MAX && blocked < self.ring.len() {
            let Some(key) = self.ring.pop_front() else { break };
            match self.take_turn(key) {
                Turn::Done => blocked = 0,
                Turn::Again => {
                    blocked = 0;
                    self.ring.push_back(key);
                }
                // Only the connection's window holds it back; streams without content may go on.
                Turn::Blocked => {
                    blocked += 1;
                    self.ring.push_back(key);
                }
            }
        }
        &mut self.output
    }

    /// Whether there is anything to write.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.ring.is_empty()
    }

    /// Bytes that wait to be written as they are; content still waiting for its turn is not among
    /// them.
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Whether the peer takes too little of what is written for it to be asked for more. A client
    /// always reads, or two connections could wait for each other.
    pub fn is_congested(&self) -> bool {
        self.role == Role::Server && self.output.len() > CONGESTED_BYTES
    }

    fn take_turn(&mut self, key: StreamKey) -> Turn {
        let frame_max = (self.peer.max_frame_size as usize).min(QUANTUM_BYTES);
        let Some(stream) = self.streams.get_mut(key) else { return Turn::Done };
        stream.in_ring = false;
        if stream.pending_bytes > 0 {
            let window = stream.send_window.min(self.send_window);
            if window <= 0 && stream.send_window > 0 {
                stream.in_ring = true;
                return Turn::Blocked;
            }
            let window = usize::try_from(window).unwrap_or(0);
            let was_full = stream.pending_bytes >= PENDING_BYTES_MAX;
            let mut left = QUANTUM_BYTES.min(window);
            while left > 0 && stream.pending_bytes > 0 {
                let part = stream.next_part(left.min(frame_max));
                left -= part.len();
                self.send_window -= part.len() as i64;
                let last = stream.pending_bytes == 0 && matches!(stream.ending, Ending::Plain);
                write::data(&mut self.output, key.id(), part, last);
                if last {
                    stream.ending = Ending::None;
                    stream.send = Half::Ended;
                }
            }
            self.credits.useful();
            if was_full && stream.pending_bytes < PENDING_BYTES_MAX {
                stream.wake();
            }
        }
        if stream.pending_bytes > 0 {
            if stream.send_window <= 0 {
                return Turn::Done;
            }
            stream.in_ring = true;
            return Turn::Again;
        }
        let ending = std::mem::take(&mut stream.ending);
        match ending {
            Ending::None => {}
            Ending::Plain => {
                stream.send = Half::Ended;
                write::data(&mut self.output, key.id(), Bytes::new(), true);
            }
            Ending::Reset(code) => self.reset(key, code),
            Ending::Trailers(trailers) => {
                stream.send = Half::Ended;
                self.write_trailers(key, &trailers);
            }
        }
        if self.streams.get(key).is_some_and(|stream| stream.send == Half::Ended) {
            self.after_send(key);
        }
        Turn::Done
    }

    fn write_trailers(&mut self, key: StreamKey, trailers: &HeaderList) {
        let (encoder, frame_max) = (&mut self.encoder, self.peer.max_frame_size);
        self.output.stage_with(|out| {
            write::headers(out, key.id(), true, frame_max, |out| {
                encoder.encode_trailers(trailers, out);
            });
        });
    }

    /// Everything of this stream is in the output.
    fn after_send(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        if !stream.held && stream.recv != Half::Ended {
            self.stop_input(key);
        }
        self.after_half(key);
    }

    /// Before our SETTINGS are acknowledged the peer may use the protocol's initial window.
    pub(super) fn first_recv_window(&self) -> i64 {
        let ours = self.config.stream_window_bytes;
        i64::from(match self.settings_unacked {
            0 => ours,
            _ => ours.max(super::INITIAL_WINDOW_BYTES),
        })
    }
}

/// What a stream's turn came to.
enum Turn {
    /// It has nothing more to send now.
    Done,
    /// It has more than a quantum.
    Again,
    /// The connection's window is used up.
    Blocked,
}
