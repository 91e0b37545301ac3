//! Received header blocks: put together from CONTINUATION frames, decoded, and given to their
//! stream as request, response or trailers (RFC 9113 §§4.3, 8.1). Blocks are decoded whatever
//! becomes of their stream, because the table must follow.

use bytes::Bytes;

use super::super::error::ErrorCode;
use super::super::frame::FrameHead;
use super::super::hpack::{Decoder, FieldSink, HeadError, HeadLimits, HpackError};
use super::memo::{self, Head, Memo, Seen};
use super::recv::Wrong;
use super::stream::{Half, StreamKey};
use super::{Abuse, Connection, Incoming, Role};
use crate::headers::{HeaderList, Known};
use crate::message::{RequestHead, ResponseHead};
use crate::rules::H2Error;

/// Bytes of a block over the limit of its decoded size before it is taken for an attack.
const BLOCK_SPARE_BYTES: usize = 16 * 1024;

/// Header blocks on their way in.
#[derive(Debug)]
pub(super) struct Heads {
    sink: FieldSink,
    unfinished: Option<Box<Unfinished>>,
    /// Of heads and of trailers; an idle connection has none.
    memos: Option<Box<[Memo; 2]>>,
    /// How the block at hand compares with the last of its kind.
    seen: Seen,
}

/// A block whose CONTINUATION is still to come.
#[derive(Debug)]
struct Unfinished {
    stream: u32,
    end_stream: bool,
    self_dependent: bool,
    block: Vec<u8>,
    frames: u32,
}

/// What a finished block belongs to.
#[derive(Clone, Copy)]
struct Block {
    stream: u32,
    end_stream: bool,
    self_dependent: bool,
}

impl Heads {
    pub(super) fn new() -> Self {
        Self { sink: FieldSink::new(), unfinished: None, memos: None, seen: Seen::New }
    }

    /// Decodes a block, unless what it says is at hand.
    fn read(
        &mut self,
        block: &[u8],
        trailers: bool,
        decoder: &mut Decoder,
        limits: &HeadLimits,
    ) -> Result<(), HpackError> {
        let memo = &mut self.memos.get_or_insert_default()[usize::from(trailers)];
        let before = decoder.changes();
        self.seen = memo.seen(block, before);
        if self.seen != Seen::Known {
            decoder.decode(block, limits, &mut self.sink)?;
        }
        if self.seen == Seen::New {
            memo.note(block, before, decoder.changes());
        }
        Ok(())
    }

    /// The block as a request, with the protocol of an extended CONNECT and the length of its content.
    fn take_request(&mut self) -> Result<(RequestHead, Option<Bytes>, Option<u64>), HeadError> {
        let memo = &mut self.memos.get_or_insert_default()[0];
        if let (Seen::Known, Some(Head::Request { head, content_length })) =
            (self.seen, memo.head())
        {
            return Ok((memo::copy_request(head), None, *content_length));
        }
        let (head, protocol) = self.sink.take_request()?;
        let content_length = content_length(&head.headers);
        if self.seen == Seen::Again && protocol.is_none() {
            memo.keep(Head::Request { head: head.clone(), content_length });
        }
        Ok((head, protocol, content_length))
    }

    /// The block as a response.
    fn take_response(&mut self) -> Result<ResponseHead, HeadError> {
        let memo = &mut self.memos.get_or_insert_default()[0];
        if let (Seen::Known, Some(Head::Response(head))) = (self.seen, memo.head()) {
            return Ok(memo::copy_response(head));
        }
        let head = self.sink.take_response()?;
        if self.seen == Seen::Again {
            memo.keep(Head::Response(head.clone()));
        }
        Ok(head)
    }

    /// The block as trailers.
    fn take_trailers(&mut self) -> Result<HeaderList, HeadError> {
        let memo = &mut self.memos.get_or_insert_default()[1];
        if let (Seen::Known, Some(Head::Trailers(trailers))) = (self.seen, memo.head()) {
            return Ok(trailers.clone());
        }
        let trailers = self.sink.take_trailers()?;
        if self.seen == Seen::Again {
            memo.keep(Head::Trailers(trailers.clone()));
        }
        Ok(trailers)
    }

    /// The stream whose block is not finished.
    pub(super) fn unfinished(&self) -> Option<u32> {
        self.unfinished.as_ref().map(|unfinished| unfinished.stream)
    }

    pub(super) fn release(&mut self) {
        self.sink.release();
        self.memos = None;
        self.seen = Seen::New;
    }
}

impl Connection {
    pub(super) fn recv_headers(
        &mut self,
        head: &FrameHead,
        fragment: &[u8],
        self_dependent: bool,
    ) -> Result<(), Wrong> {
        let (stream, end_stream) = (head.stream, head.end_stream());
        if head.end_headers() {
            return self.recv_block(Block { stream, end_stream, self_dependent }, fragment);
        }
        self.heads.unfinished = Some(Box::new(Unfinished {
            stream,
            end_stream,
            self_dependent,
            block: fragment.to_vec(),
            frames: 0,
        }));
        Ok(())
    }

    pub(super) fn recv_continuation(
        &mut self,
        head: &FrameHead,
        fragment: &[u8],
    ) -> Result<(), Wrong> {
        let bytes_max = self.config.head.list_bytes_max + BLOCK_SPARE_BYTES;
        let frames_max = self.credits.max().continuations_max;
        let Some(unfinished) = &mut self.heads.unfinished else { return Ok(()) };
        unfinished.frames += 1;
        unfinished.block.extend_from_slice(fragment);
        if unfinished.frames > frames_max || unfinished.block.len() > bytes_max {
            return Err(Abuse::Continuations.into());
        }
        if !head.end_headers() {
            return Ok(());
        }
        let Some(done) = self.heads.unfinished.take() else { return Ok(()) };
        let Unfinished { stream, end_stream, self_dependent, block, .. } = *done;
        self.recv_block(Block { stream, end_stream, self_dependent }, &block)
    }

    fn recv_block(&mut self, block: Block, bytes: &[u8]) -> Result<(), Wrong> {
        let id = block.stream;
        let key = self.streams.key_of(id);
        let trailers = match (key.and_then(|key| self.streams.get(key)), self.role) {
            (Some(_), Role::Server) => true,
            (Some(stream), Role::Client) => stream.recv != Half::Head,
            (None, _) => false,
        };
        let limits = &self.config.head;
        let decoded = self.heads.read(bytes, trailers, &mut self.decoder, limits);
        if decoded.is_err() {
            return Err(Wrong::connection(ErrorCode::COMPRESSION_ERROR, "hpack"));
        }
        if block.self_dependent && key.is_some() {
            return Err(Wrong::Stream(id, ErrorCode::PROTOCOL_ERROR, "self_dependency"));
        }
        match (key, self.role) {
            (Some(key), Role::Server) => self.recv_trailers(key, block.end_stream),
            (Some(key), Role::Client) => self.recv_response(key, block.end_stream),
            (None, Role::Server) => self.recv_request(block),
            (None, Role::Client) => self.on_closed(id, true),
        }
    }

    fn recv_request(&mut self, block: Block) -> Result<(), Wrong> {
        let id = block.stream;
        if id.is_multiple_of(2) {
            return Err(Wrong::connection(ErrorCode::PROTOCOL_ERROR, "stream_id"));
        }
        if id <= self.last_stream {
            if self.reset.contains(&id) {
                return Ok(self.credits.control()?);
            }
            // RFC 9113 §5.1: after both ends nothing may follow.
            return Err(Wrong::connection(ErrorCode::STREAM_CLOSED, "closed_stream"));
        }
        if self.leaving.ignores(id) {
            return Ok(());
        }
        self.last_stream = id;
        self.asked();
        if block.self_dependent {
            return Err(Wrong::Stream(id, ErrorCode::PROTOCOL_ERROR, "self_dependency"));
        }
        if self.active >= self.config.streams_max {
            return Err(Wrong::Stream(id, ErrorCode::REFUSED_STREAM, "too_many_streams"));
        }
        self.credits.useful();
        let (head, protocol, length) = match self.heads.take_request() {
            Ok((head, protocol, length)) => (Ok(head), protocol, length),
            Err(error) => {
                // It is answered and then reset; whoever sends many is not a client.
                self.credits.error()?;
                (Err(error), None, None)
            }
        };
        let mut head = head;
        if protocol.is_some() && !self.config.connect_protocol {
            // RFC 8441 §4: a pseudo field that nobody offered.
            head = Err(HeadError::Malformed(H2Error::Pseudo));
        }
        if block.end_stream && length.is_some_and(|length| length > 0) {
            head = Err(HeadError::Malformed(H2Error::ContentLength));
        }
        let key = self.accept(id, length, block.end_stream);
        self.requests.push_back(Incoming { key, head, protocol, ended: block.end_stream });
        Ok(())
    }

    pub(super) fn accept(&mut self, id: u32, length: Option<u64>, ended: bool) -> StreamKey {
        self.active += 1;
        let (theirs, ours) = (i64::from(self.peer.initial_window_size), self.first_recv_window());
        let (key, stream) = self.streams.insert(id);
        stream.held = true;
        stream.counted = true;
        stream.recv = if ended { Half::Ended } else { Half::Body };
        stream.recv_window = ours;
        stream.send_window = theirs;
        stream.content_left = length;
        key
    }

    /// Client: 1xx, the final head, or trailers.
    fn recv_response(&mut self, key: StreamKey, end_stream: bool) -> Result<(), Wrong> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.is_failed() {
            return Ok(());
        }
        if stream.recv != Half::Head {
            return self.recv_trailers(key, end_stream);
        }
        let wrong = |reason| Err(Wrong::Stream(key.id, ErrorCode::PROTOCOL_ERROR, reason));
        let head = match self.heads.take_response() {
            Ok(head) => head,
            Err(HeadError::TooLarge) => return wrong("head_too_large"),
            Err(HeadError::Malformed(_)) => return wrong("head"),
        };
        if head.is_informational() {
            if end_stream {
                return wrong("informational_end");
            }
            let waiting = &mut stream.passing().informational;
            if waiting.len() >= self.credits.max().informational_max {
                return Err(Abuse::Informational.into());
            }
            self.credits.control()?;
            waiting.push_back(head);
            stream.wake();
            return Ok(());
        }
        let has_content = !stream.answers_head && head.status != 304 && head.status != 204;
        stream.content_left = content_length(&head.headers).filter(|_| has_content);
        if end_stream && stream.content_left.is_some_and(|left| left > 0) {
            return wrong("content_length");
        }
        self.credits.useful();
        stream.recv = Half::Body;
        stream.passing().answer = Some(head);
        stream.wake();
        if end_stream {
            self.recv_ended(key);
        }
        Ok(())
    }

    fn recv_trailers(&mut self, key: StreamKey, end_stream: bool) -> Result<(), Wrong> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.is_failed() {
            return Ok(());
        }
        let wrong = |code, reason| Err(Wrong::Stream(key.id, code, reason));
        if stream.recv == Half::Ended {
            return wrong(ErrorCode::STREAM_CLOSED, "headers_after_end");
        }
        if !end_stream {
            return wrong(ErrorCode::PROTOCOL_ERROR, "second_head");
        }
        if stream.content_left.is_some_and(|left| left > 0) {
            return wrong(ErrorCode::PROTOCOL_ERROR, "content_length");
        }
        match self.heads.take_trailers() {
            Ok(trailers) => {
                if stream.held && !trailers.is_empty() {
                    stream.passing().trailers = Some(trailers);
                }
            }
            Err(HeadError::TooLarge) => {
                return wrong(ErrorCode::ENHANCE_YOUR_CALM, "trailers_too_large");
            }
            Err(HeadError::Malformed(_)) => return wrong(ErrorCode::PROTOCOL_ERROR, "trailers"),
        }
        stream.wake();
        self.recv_ended(key);
        Ok(())
    }

    /// Server: ends a stream whose head was malformed once its answer is queued (RFC 9113 §8.1.1).
    pub fn reject(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.held = false;
        if stream.is_done() {
            self.settle(key);
            return;
        }
        self.reset(key, ErrorCode::PROTOCOL_ERROR);
    }
}

fn content_length(headers: &HeaderList) -> Option<u64> {
    // The decoder has seen to it that it is one number.
    std::str::from_utf8(headers.get_known(Known::ContentLength)?).ok()?.parse().ok()
}
