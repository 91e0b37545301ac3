//! Upgrades: what asks for a tunnel on either version, and the tunnel of bytes after the answer,
//! each direction until its own end. HTTP/1 says 101, HTTP/2 an extended CONNECT and 2xx (RFC 8441);
//! in between, on the request path, an upgrade is HTTP/1's.
//!
//! Nothing passes before the answer, so an endpoint that does not upgrade never sees raw bytes.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use weft_http::{Frame, Method, rules};

use super::downstream::Downstream;
use super::exchange::Tally;
use super::limits::{Standing, StreamLimits};
use super::request::Request;
use super::server_h2::H2Server;
use super::wire::Wire;
use crate::error::{ErrorKind, ProxyError};
use crate::upstream::h1::H1Client;
use crate::upstream::h2::H2Client;
use crate::upstream::{FinalHead, Upstream};

/// The one protocol that passes.
pub(crate) const WEBSOCKET: &[u8] = b"websocket";
/// What a WebSocket server adds to the client's key (RFC 6455 §1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Ready when this HTTP/2 endpoint can be asked for the tunnel.
///
/// # Errors
/// When the endpoint opens none (SETTINGS_ENABLE_CONNECT_PROTOCOL), or HTTP/2 could not say the
/// request: an extended CONNECT has neither content nor another method than WebSocket's GET.
pub(crate) async fn open_over_h2(
    stream: &mut H2Client,
    request: &Request,
) -> Result<(), ProxyError> {
    if request.head.method != Method::Get || !request.body.is_empty() {
        return Err(ErrorKind::UpgradeRefused.into());
    }
    match poll_fn(|cx| stream.poll_opens_tunnels(cx)).await {
        true => Ok(()),
        false => Err(ProxyError::new(ErrorKind::UpstreamProtocol)
            .with_source("the endpoint takes no extended CONNECT")),
    }
}

/// Makes the answer to an upgrade HTTP/1's: 101, or the tunnel was refused.
///
/// # Errors
/// When an HTTP/1 endpoint goes on without the upgrade and the client would take its 2xx for it.
pub(crate) fn answered(
    answer: &mut FinalHead,
    request: &Request,
    over_h2: bool,
) -> Result<(), ProxyError> {
    let success = (200..300).contains(&answer.head.status);
    match (over_h2, success) {
        (true, true) => {
            let accept = request.head.headers.get("sec-websocket-key").map(accept_of);
            answer.connection = rules::h2_switch_to_h1(&mut answer.head, accept.as_deref());
            Ok(())
        }
        (false, true) if request.version == weft_http::Version::H2 => {
            Err(ProxyError::new(ErrorKind::UpstreamProtocol)
                .with_source("the endpoint answered without the upgrade"))
        }
        _ => Ok(()),
    }
}

fn accept_of(key: &[u8]) -> String {
    let text = [key, KEY_SUFFIX].concat();
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// Copies both ways until both sides have ended, one fails or nothing moves for the limit. `down`
/// may still hold the answer.
pub(crate) async fn tunnel(
    down: &mut Downstream<'_>,
    up: &mut Upstream,
    tally: &mut Tally,
    idle: StreamLimits,
) -> Result<(), ProxyError> {
    let down = match down {
        Downstream::H1(side) => End::Bytes(side.wire()),
        Downstream::H2(side) => End::Server(side),
    };
    let up = match up {
        Upstream::H1(side) => End::Bytes(side.wire()),
        Upstream::H2(side) => End::Client(side),
    };
    let moved = |sent, received| {
        tally.request_bytes += sent;
        tally.response_bytes += received;
    };
    copy(down, up, idle, moved).await
}

/// As [`tunnel`], of a client's connection that is no HTTP: its bytes are what follows (`raw`) or the
/// content of a request that an endpoint has answered. `moved` is told of bytes to it and back.
pub(crate) async fn carry(
    client: &mut Wire,
    up: &mut Upstream,
    raw: bool,
    idle: StreamLimits,
    moved: impl FnMut(u64, u64),
) -> Result<(), ProxyError> {
    let up = match (up, raw) {
        (Upstream::H1(side), true) => End::Bytes(side.wire()),
        (Upstream::H1(side), false) => End::Content(side),
        (Upstream::H2(side), _) => End::Client(side),
    };
    copy(End::Bytes(client), up, idle, moved).await
}

async fn copy(
    mut down: End<'_>,
    mut up: End<'_>,
    mut idle: StreamLimits,
    mut moved: impl FnMut(u64, u64),
) -> Result<(), ProxyError> {
    let mut request = Direction::default();
    let mut response = Direction::default();
    let mut moved_bytes = 0u64;
    poll_fn(|cx| {
        let sent = request.poll(&mut down, &mut up, cx)?;
        let received = response.poll(&mut up, &mut down, cx)?;
        let bytes = (std::mem::take(&mut request.bytes), std::mem::take(&mut response.bytes));
        if bytes != (0, 0) {
            moved(bytes.0, bytes.1);
            moved_bytes = moved_bytes.wrapping_add(bytes.0).wrapping_add(bytes.1);
        }
        match (sent, received) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => {
                if let Poll::Ready(error) = down.poll_gone(cx) {
                    return Poll::Ready(Err(error));
                }
                let standing = Standing { moved_bytes, request_ended: true, on_client: false };
                idle.poll(cx, standing).map(Err)
            }
        }
    })
    .await
}

#[derive(Default)]
struct Direction {
    bytes: u64,
    ended: bool,
    closed: bool,
}

impl Direction {
    /// Moves what is there and the other side takes. Ready once the end has been passed on.
    fn poll(
        &mut self,
        from: &mut End<'_>,
        to: &mut End<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, ProxyError> {
        while !self.ended {
            match to.poll_room(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending => return Ok(Poll::Pending),
            }
            match from.poll_take(cx)? {
                Poll::Ready(Some(data)) => {
                    self.bytes += data.len() as u64;
                    from.release(data.len());
                    to.put(data)?;
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    return to.poll_flush(cx).map(|_| Poll::Pending);
                }
            }
        }
        if !self.closed {
            match to.poll_end(cx)? {
                Poll::Ready(()) => self.closed = true,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// One end of the tunnel.
enum End<'e> {
    /// All that follows on an HTTP/1 connection.
    Bytes(&'e mut Wire),
    /// The content of a client's HTTP/2 stream.
    Server(&'e mut H2Server),
    /// The content of an HTTP/2 stream to an endpoint.
    Client(&'e mut H2Client),
    /// The content of a request to an HTTP/1 endpoint and of its answer.
    Content(&'e mut H1Client),
}

impl End<'_> {
    /// What has come; `None` at the end.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Result<Poll<Option<Bytes>>, ProxyError> {
        let frame = match self {
            Self::Bytes(wire) => return take_bytes(wire, cx),
            Self::Server(side) => side.poll_frame(cx),
            Self::Client(side) => side.poll_frame(cx),
            Self::Content(side) => side.poll_frame(cx),
        };
        Ok(match frame {
            Poll::Ready(Some(frame)) => match frame? {
                Frame::Data(data) => Poll::Ready(Some(data)),
                // A tunnel has no trailers; they end it all the same.
                Frame::Trailers(_) => Poll::Ready(None),
            },
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
    }

    /// What was taken will be put.
    fn release(&mut self, bytes: usize) {
        match self {
            Self::Bytes(_) | Self::Content(_) => {}
            Self::Server(side) => side.release(bytes),
            Self::Client(side) => side.release(bytes),
        }
    }

    /// Ready when more may be put.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ProxyError> {
        let room = match self {
            Self::Bytes(wire) if wire.has_room() => return Ok(Poll::Ready(())),
            Self::Bytes(wire) => wire.poll_flush(cx).map_err(ProxyError::disconnect),
            Self::Server(side) => side.poll_ready(cx),
            Self::Client(side) => side.poll_ready(cx),
            Self::Content(side) => side.poll_ready(cx),
        };
        transpose(room)
    }

    fn put(&mut self, data: Bytes) -> Result<(), ProxyError> {
        match self {
            Self::Bytes(wire) => wire.output.push(data),
            Self::Server(side) => side.send(Frame::Data(data)),
            Self::Client(side) => side.send(Frame::Data(data)),
            Self::Content(side) => side.send(Frame::Data(data))?,
        }
        Ok(())
    }

    /// Hands what was put to the kernel (HTTP/2: it is with the connection).
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ProxyError> {
        match self {
            Self::Bytes(wire) => transpose(wire.poll_flush(cx).map_err(ProxyError::disconnect)),
            Self::Content(side) => transpose(side.poll_flush(cx)),
            Self::Server(_) | Self::Client(_) => Ok(Poll::Ready(())),
        }
    }

    /// Says that nothing more will be put, after what was.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ProxyError> {
        match self {
            Self::Bytes(wire) => transpose(shut_down(wire, cx).map_err(ProxyError::disconnect)),
            Self::Server(side) => {
                side.end();
                Ok(Poll::Ready(()))
            }
            Self::Client(side) => {
                side.end_tunnel();
                Ok(Poll::Ready(()))
            }
            Self::Content(side) => {
                side.end_content()?;
                transpose(side.poll_flush(cx))
            }
        }
    }

    /// Ready when the stream was reset: reading alone would not notice after its end.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<ProxyError> {
        match self {
            Self::Server(side) => side.poll_gone(cx),
            Self::Bytes(_) | Self::Client(_) | Self::Content(_) => Poll::Pending,
        }
    }
}

fn take_bytes(wire: &mut Wire, cx: &mut Context<'_>) -> Result<Poll<Option<Bytes>>, ProxyError> {
    while wire.input.is_empty() {
        match wire.poll_fill(cx).map_err(ProxyError::disconnect) {
            Poll::Ready(Ok(true)) => {}
            Poll::Ready(Ok(false)) => return Ok(Poll::Ready(None)),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(Poll::Pending),
        }
    }
    Ok(Poll::Ready(Some(wire.input.split().freeze())))
}

fn shut_down(wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(wire.poll_flush(cx))?;
    wire.poll_shutdown(cx)
}

fn transpose(polled: Poll<Result<(), ProxyError>>) -> Result<Poll<()>, ProxyError> {
    match polled {
        Poll::Ready(result) => result.map(Poll::Ready),
        Poll::Pending => Ok(Poll::Pending),
    }
}

#[cfg(test)]
mod tests {
    use super::accept_of;

    #[test]
    fn the_key_of_rfc_6455_is_accepted_as_there() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
