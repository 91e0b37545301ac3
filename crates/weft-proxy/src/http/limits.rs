//! Time limits of one stream that depend on bytes moving: `stream_idle_timeout`, `request_timeout`
//! and how long a client may leave us waiting. Must not know what moves the bytes: it is told how
//! many there were and who is waited for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use weft_traffic::http::ConnectionTimeouts;

use crate::error::{ErrorKind, ProxyError};

/// An idle limit is looked at this often within its length, so that it holds to a quarter while
/// bytes that move cost no timer operation.
const LOOKS: u32 = 4;

/// The limits of one request, and what was seen of it.
pub(crate) struct StreamLimits {
    /// Nothing moved in either direction, whoever is to blame.
    idle: Option<Duration>,
    /// Nothing moved and it is the client's turn.
    stall: Option<Duration>,
    /// The whole request must have come by then.
    request_due: Option<Instant>,
    moved_bytes: u64,
    moved: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where a stream stands when nothing more can be done at the moment.
#[derive(Clone, Copy)]
pub(crate) struct Standing {
    /// Anything that grows, or changes, when bytes move.
    pub(crate) moved_bytes: u64,
    pub(crate) request_ended: bool,
    /// The client owes bytes of its request, or has to take some of the response.
    pub(crate) on_client: bool,
}

impl StreamLimits {
    /// For a request whose head came at `received`. `route_idle` overrides the listener's, and
    /// `stall` is the process' limit for clients, zero for none.
    pub(crate) fn new(
        timeouts: &ConnectionTimeouts,
        route_idle: Option<Option<Duration>>,
        stall: Duration,
        received: Instant,
    ) -> Self {
        Self {
            idle: route_idle.unwrap_or(timeouts.stream_idle),
            stall: (!stall.is_zero()).then_some(stall),
            request_due: timeouts.request.and_then(|limit| received.checked_add(limit)),
            moved_bytes: 0,
            moved: received,
            timer: None,
        }
    }

    /// For a stream without a request of its own (a tunnel, the rest of a reply).
    pub(crate) fn idle_only(idle: Option<Duration>) -> Self {
        let moved = Instant::now();
        Self { idle, stall: None, request_due: None, moved_bytes: 0, moved, timer: None }
    }

    /// Ready with the limit that was passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, standing: Standing) -> Poll<ProxyError> {
        let request_due = self.request_due.filter(|_| !standing.request_ended);
        let stall = self.stall.filter(|_| standing.on_client);
        let limit = match (self.idle, stall) {
            (Some(idle), Some(stall)) => Some(idle.min(stall)),
            (idle, stall) => idle.or(stall),
        };
        if limit.is_none() && request_due.is_none() {
            return Poll::Pending;
        }
        loop {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                None => {
                    let now = Instant::now();
                    let (moved_bytes, moved) = (standing.moved_bytes, now);
                    (self.moved_bytes, self.moved) = (moved_bytes, moved);
                    let look = next_look(now, moved, limit, request_due);
                    self.timer.insert(Box::pin(tokio::time::sleep_until(look.into())))
                }
            };
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if request_due.is_some_and(|due| due <= now) {
                return Poll::Ready(ErrorKind::RequestTimeout.into());
            }
            if standing.moved_bytes != self.moved_bytes {
                (self.moved_bytes, self.moved) = (standing.moved_bytes, now);
            }
            if limit.is_some_and(|limit| self.moved + limit <= now) {
                // As Envoy: the client's fault as long as it owes us its request.
                let status = if standing.request_ended { 504 } else { 408 };
                return Poll::Ready(ErrorKind::StreamIdle(status).into());
            }
            let look = next_look(now, self.moved, limit, request_due);
            timer.as_mut().reset(look.into());
        }
    }
}

/// When to look again: at a limit's end, or on the way there.
fn next_look(
    now: Instant,
    moved: Instant,
    limit: Option<Duration>,
    request_due: Option<Instant>,
) -> Instant {
    let idle = limit.map(|limit| (now + limit / LOOKS).min(moved + limit));
    // One of the two is there, or nobody would ask.
    [idle, request_due].into_iter().flatten().min().unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn limits(idle_ms: u64) -> StreamLimits {
        StreamLimits::idle_only(Some(Duration::from_millis(idle_ms)))
    }

    fn standing(moved_bytes: u64, request_ended: bool) -> Standing {
        Standing { moved_bytes, request_ended, on_client: false }
    }

    #[tokio::test]
    async fn only_rest_ends_a_stream() {
        let mut limits = limits(10);
        let since = Instant::now();
        // Every look finds that something moved, however late it comes.
        for moved in 0.. {
            let polled = poll_fn(|cx| Poll::Ready(limits.poll(cx, standing(moved, true)))).await;
            assert!(polled.is_pending());
            if since.elapsed() > Duration::from_millis(60) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let error = poll_fn(|cx| limits.poll(cx, standing(0, true))).await;
        assert_eq!((error.status(), error.flag()), (504, "SI"));
    }

    #[tokio::test]
    async fn who_owes_its_request_is_told_so() {
        let mut limits = limits(1);
        let error = poll_fn(|cx| limits.poll(cx, standing(0, false))).await;
        assert_eq!((error.status(), error.flag()), (408, "SI"));
    }

    #[tokio::test]
    async fn without_limits_there_is_no_timer() {
        let mut limits = StreamLimits::idle_only(None);
        let polled = poll_fn(|cx| Poll::Ready(limits.poll(cx, standing(0, false)))).await;
        assert!(polled.is_pending() && limits.timer.is_none());
    }
}
