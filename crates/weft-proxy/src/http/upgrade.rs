//! After 101: a tunnel of bytes between two HTTP/1 connections, each direction until its own end.
//! Nothing passes before the 101, so an endpoint that does not upgrade never sees raw bytes.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use super::exchange::Tally;
use super::limits::{Standing, StreamLimits};
use super::wire::Wire;
use crate::error::ProxyError;

/// Copies both ways until both sides have ended, one fails or nothing moves for the limit. `down`
/// may still hold the 101.
pub(crate) async fn tunnel(
    down: &mut Wire,
    up: &mut Wire,
    tally: &mut Tally,
    mut idle: StreamLimits,
) -> Result<(), ProxyError> {
    let mut request = Direction::default();
    let mut response = Direction::default();
    poll_fn(|cx| {
        let sent = request.poll(down, up, cx).map_err(ProxyError::disconnect)?;
        let received = response.poll(up, down, cx).map_err(ProxyError::disconnect)?;
        tally.request_bytes += std::mem::take(&mut request.bytes);
        tally.response_bytes += std::mem::take(&mut response.bytes);
        match (sent, received) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => {
                let moved_bytes = tally.request_bytes.wrapping_add(tally.response_bytes);
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
    /// Moves what is there. Ready once the end has been passed on.
    fn poll(
        &mut self,
        from: &mut Wire,
        to: &mut Wire,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        loop {
            if self.closed {
                return Ok(Poll::Ready(()));
            }
            if !from.input.is_empty() && to.has_room() {
                self.bytes += from.input.len() as u64;
                to.output.push(from.input.split().freeze());
            }
            match to.poll_flush(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending => return Ok(Poll::Pending),
            }
            if self.ended {
                match to.poll_shutdown(cx)? {
                    Poll::Ready(()) => self.closed = true,
                    Poll::Pending => return Ok(Poll::Pending),
                }
                continue;
            }
            match from.poll_fill(cx)? {
                Poll::Ready(more) => self.ended = !more,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }
}
