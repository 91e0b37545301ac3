//! Replies made here: errors, redirects, direct responses, in the client's dialect.

use std::future::poll_fn;
use std::time::Instant;

use bytes::Bytes;
use weft_http::{BodyLength, Frame, ResponseHead, rules};

use super::conn::HttpConn;
use super::downstream::Downstream;
use super::record::Record;
use crate::error::{ErrorKind, ProxyError};

/// Answers a failed request. A gRPC caller gets its error as gRPC, in the head alone.
pub(crate) async fn error(
    down: &mut Downstream<'_>,
    error: &ProxyError,
    grpc: bool,
    record: &mut Record,
) {
    let facts = error.kind.facts();
    let (mut head, body) = match grpc {
        true => (rules::grpc_reply(facts.status, facts.text, down.version()), Bytes::new()),
        false => {
            let body = Bytes::from_static(facts.text.as_bytes());
            (rules::local_reply(facts.status, body.len()), body)
        }
    };
    if error.kind == ErrorKind::Overflow {
        head.headers.append("x-envoy-overloaded", "true");
    }
    // Whether the client still takes it changes nothing any more.
    let _ = send(down, head, body, record).await;
}

/// Answers a request whose head could not be read, and records it.
pub(crate) async fn refuse(
    down: &mut Downstream<'_>,
    failure: ProxyError,
    received: Instant,
    conn: &HttpConn,
) {
    let mut record = Record::unread(received, conn);
    record.failed(&failure);
    error(down, &failure, false, &mut record).await;
    record.finish(conn);
}

/// Sends the client elsewhere.
pub(crate) async fn redirect(
    down: &mut Downstream<'_>,
    status: u16,
    location: &[u8],
    record: &mut Record,
) -> Result<(), ProxyError> {
    let mut head = rules::local_reply(status, 0);
    head.headers.append("location", location);
    send(down, head, Bytes::new(), record).await
}

/// Sends a whole reply. The request's body is not waited for: if it has not arrived by now, an
/// HTTP/1 connection is closed after the reply.
pub(crate) async fn send(
    down: &mut Downstream<'_>,
    mut head: ResponseHead,
    body: Bytes,
    record: &mut Record,
) -> Result<(), ProxyError> {
    let grpc_status = super::grpc::status(&head.headers);
    record.replied(head.status, grpc_status, body.len() as u64);
    poll_fn(|cx| {
        if let Downstream::H1(side) = down {
            side.give_up_input(cx);
        }
        std::task::Poll::Ready(())
    })
    .await;
    let length = match grpc_status {
        // Trailers-only: on HTTP/2 the head ends the stream.
        Some(_) => BodyLength::None,
        None => BodyLength::Exact(body.len() as u64),
    };
    down.send_head(&mut head, length)?;
    if !body.is_empty() {
        poll_fn(|cx| down.poll_ready(cx)).await?;
        down.send(Frame::Data(body))?;
    }
    down.end()?;
    poll_fn(|cx| down.poll_flush(cx)).await
}
