//! Replies made here: errors, redirects, direct responses, in the client's dialect.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use weft_http::{BodyLength, Frame, HeaderList, Known, ResponseHead, Version, rules};
use weft_traffic::http::ServerHeader;

use super::conn::HttpConn;
use super::downstream::Downstream;
use super::grpc_web::Web;
use super::limits::{Standing, StreamLimits};
use super::rate_limit;
use super::record::Record;
use crate::error::{ErrorKind, ProxyError};

/// Answers a failed request.
pub(crate) async fn error(
    down: &mut Downstream<'_>,
    error: &ProxyError,
    record: &mut Record,
    conn: &HttpConn,
) {
    let head = match record.reply.take() {
        Some(head) => *head,
        None => head_of(error, record.is_grpc()),
    };
    let text = match error.text() {
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    };
    // Whether the client still takes it changes nothing any more.
    let _ = send(down, head, text, record, conn).await;
}

/// The head of the reply to a failure.
pub(crate) fn head_of(error: &ProxyError, grpc: bool) -> ResponseHead {
    let mut head = rules::local_reply(error.status(), error.text().len());
    if grpc {
        // Not always the one that stands for the HTTP status.
        head.headers.append("grpc-status", error.kind.grpc_status().to_string());
    }
    if error.kind == ErrorKind::Overflow {
        head.headers.append("x-envoy-overloaded", "true");
    }
    head
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
    conn.worker.counters.limits.failed(&failure);
    error(down, &failure, &mut record, conn).await;
    record.finish(None, conn);
}

/// The head that sends the client elsewhere.
pub(crate) fn redirection(status: u16, location: &[u8]) -> ResponseHead {
    let mut head = rules::local_reply(status, 0);
    head.headers.append("location", location);
    head
}

/// Sends a whole reply, to a gRPC caller as gRPC. The request's body is not waited for: if it has
/// not arrived by now, an HTTP/1 connection is closed after the reply.
pub(crate) async fn send(
    down: &mut Downstream<'_>,
    mut head: ResponseHead,
    mut body: Bytes,
    record: &mut Record,
    conn: &HttpConn,
) -> Result<(), ProxyError> {
    if let Some(owed) = &record.cors {
        let (policy, origin) = &**owed;
        policy.on_response(origin, &mut head.headers);
    }
    if let Some(left) = &record.left {
        rate_limit::tell(**left, &mut head.headers);
    }
    if let Some(why) = record.why.take() {
        head.headers.append(Known::XWeftWhy.name(), why.as_bytes());
    }
    if let Some(web) = record.web {
        web.answer(&mut head);
        if !body.is_empty() {
            Web::explain(&mut head, &body);
            body = Bytes::new();
        }
    } else if record.is_grpc() {
        rules::into_grpc_reply(&mut head, &body);
        body = Bytes::new();
    } else if body.is_empty() && down.version() == Version::H2 {
        // The end of the stream says it.
        head.headers.remove("content-length");
    }
    sign(&mut head.headers, &conn.http.server_header);
    let grpc_status = super::grpc::status(&head.headers);
    record.replied(&head, grpc_status, body.len() as u64);
    poll_fn(|cx| {
        if let Downstream::H1(side) = down {
            side.give_up_input(cx);
        }
        Poll::Ready(())
    })
    .await;
    let length = match grpc_status {
        // Trailers-only: on HTTP/2 the head ends the stream.
        Some(_) => BodyLength::None,
        None => BodyLength::Exact(body.len() as u64),
    };
    down.send_head(&mut head, length)?;
    if !body.is_empty() {
        flush(down, record.client_stall, Downstream::poll_ready).await?;
        down.send(Frame::Data(body))?;
    }
    down.end()?;
    flush(down, record.client_stall, Downstream::poll_flush).await
}

/// Who says it, and when.
fn sign(headers: &mut HeaderList, server: &ServerHeader) {
    if !headers.contains_known(Known::Date) {
        headers.append_known(Known::Date, httpdate::fmt_http_date(SystemTime::now()));
    }
    match server {
        ServerHeader::PassThrough(Some(name)) if !headers.contains_known(Known::Server) => {
            headers.append_known(Known::Server, &**name);
        }
        _ => name_server(headers, server),
    }
}

/// What a response says of its server, by `server_header_transformation`.
pub(crate) fn name_server(headers: &mut HeaderList, server: &ServerHeader) {
    match server {
        ServerHeader::PassThrough(_) => {}
        ServerHeader::Overwrite(name) => headers.set_known(Known::Server, &**name),
        ServerHeader::AppendIfAbsent(name) => {
            if !headers.contains_known(Known::Server) {
                headers.append_known(Known::Server, &**name);
            }
        }
    }
}

/// Waits until `ready`, unless the client takes nothing for `stall`.
async fn flush<'c>(
    down: &mut Downstream<'c>,
    stall: Duration,
    ready: fn(&mut Downstream<'c>, &mut Context<'_>) -> Poll<Result<(), ProxyError>>,
) -> Result<(), ProxyError> {
    let mut limits = StreamLimits::idle_only((!stall.is_zero()).then_some(stall));
    poll_fn(|cx| match ready(down, cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => {
            let moved_bytes = down.unsent_bytes() as u64;
            let standing = Standing { moved_bytes, request_ended: true, on_client: true };
            limits.poll(cx, standing).map(Err)
        }
    })
    .await
}
