//! gRPC's framing of one stream's two bodies.
//!
//! In place of tonic's codec, which keeps per stream a buffer as large as the largest message
//! that ever went through it: here nothing stays once a message is through. Must not know what the
//! messages say.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body as _, Frame};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;

use super::REQUEST_BYTES_MAX;
use super::encode::Chunks;
use crate::session::Push;

/// Compression flag and length of a message.
const HEAD: usize = 5;

/// The client's messages.
pub(super) struct Messages {
    body: Body,
    /// Received and not taken.
    received: BytesMut,
}

impl Messages {
    pub(super) fn new(body: Body) -> Messages {
        Messages { body, received: BytesMut::new() }
    }

    /// The next message, `None` when the client has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// The stream broke, or a message was compressed, too large or cut off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                None if self.received.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended inside a message")),
                Some(Err(error)) => return Err(error),
                Some(Ok(frame)) => {
                    // Trailers say nothing to a server.
                    if let Ok(data) = frame.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((head, rest)) = self.received.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [compressed, length @ ..] = *head;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed requests are not understood"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > REQUEST_BYTES_MAX {
            let text = format!("a request of {length} bytes, at most {REQUEST_BYTES_MAX} are read");
            return Err(Status::out_of_range(text));
        }
        if rest.len() < length {
            return Ok(None);
        }
        // Taken whole, so that what came behind is all that stays.
        let mut message = std::mem::take(&mut self.received);
        message.advance(HEAD);
        let behind = message.split_off(length);
        if !behind.is_empty() {
            self.received.extend_from_slice(&behind);
        }
        Ok(Some(message.freeze()))
    }
}

/// The body of our answer: responses as they come, then the status as trailers.
pub(super) struct Reply {
    responses: mpsc::Receiver<Result<Push, Status>>,
    sending: Option<Chunks>,
    ended: bool,
}

impl Reply {
    pub(super) fn new(responses: mpsc::Receiver<Result<Push, Status>>) -> Reply {
        Reply { responses, sending: None, ended: false }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        self.responses.close();
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // A text no header can carry: the code alone says enough.
            trailers.clear();
            _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Frame::trailers(trailers)
    }
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(chunk) = self.sending.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            self.sending = None;
            let status = match ready!(self.responses.poll_recv(cx)) {
                Some(Ok(push)) => match Chunks::new(push) {
                    Some(chunks) => {
                        self.sending = Some(chunks);
                        continue;
                    }
                    None => Status::out_of_range("a response of more than 4 GiB"),
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            return Poll::Ready(Some(Ok(self.end(&status))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Mode, Set};
    use crate::type_url::ResourceType;
    use http_body_util::{BodyExt as _, Full, StreamBody};

    fn message(text: &str) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    /// The messages of a stream that comes in pieces of this size.
    async fn read(stream: &[u8], piece: usize) -> Result<Vec<Bytes>, Status> {
        let frames = stream.chunks(piece).map(Bytes::copy_from_slice);
        let frames: Vec<_> = frames.map(|piece| Ok::<_, Status>(Frame::data(piece))).collect();
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let mut messages = Messages::new(body);
        let mut all = Vec::new();
        while let Some(message) = messages.next().await? {
            all.push(message);
        }
        assert_eq!(messages.received.capacity(), 0, "nothing is kept");
        Ok(all)
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let stream = [message("one"), message(""), message("three")].concat();
        for piece in 1..=stream.len() {
            let found = read(&stream, piece).await.unwrap();
            assert_eq!(found, ["one", "", "three"], "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream() {
        let compressed = [&[1][..], &message("x")[1..]].concat();
        assert_eq!(read(&compressed, 9).await.unwrap_err().code(), tonic::Code::Unimplemented);
        let large = [0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(read(&large, 9).await.unwrap_err().code(), tonic::Code::OutOfRange);
        assert_eq!(read(&message("cut")[..6], 9).await.unwrap_err().code(), tonic::Code::Internal);
        assert!(read(&[], 1).await.unwrap().is_empty());
        let body = Body::new(Full::new(Bytes::from(message("whole"))));
        assert_eq!(Messages::new(body).next().await.unwrap().unwrap(), "whole");
    }

    #[tokio::test]
    async fn a_status_is_the_end() {
        let (sender, receiver) = mpsc::channel(2);
        let push = Push {
            mode: Mode::Delta,
            ty: ResourceType::Cluster,
            version: String::new(),
            nonce: "1".into(),
            resources: Set::default(),
            removed: Vec::new(),
        };
        let length = Chunks::new(push.clone()).unwrap().map(|chunk| chunk.len()).sum::<usize>();
        sender.send(Ok(push)).await.unwrap();
        sender.send(Err(Status::unavailable("bye\u{7f}"))).await.unwrap();
        let collected = Reply::new(receiver).collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        let message = collected.to_bytes();
        assert_eq!(message.len(), length);
        assert_eq!(usize::from(message[4]), length - HEAD);
        let (_, receiver) = mpsc::channel(1);
        let collected = Reply::new(receiver).collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    }
}
