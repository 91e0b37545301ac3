//! Mirrored requests (`requestMirrorPolicies`): copies whose answers are thrown away.
//!
//! A copy can neither slow nor fail the request it was made of. It lives in a task of its own, takes
//! its body from a queue that the request fills as it goes, and is given up when it falls behind,
//! fails, or takes too long. It is never retried and counts in no request metric, as in Envoy.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use weft_http::h1::Connection;
use weft_http::{BodyLength, Frame, Known, RequestHead, Version, rules};
use weft_traffic::circuit::{Permit, Resource};
use weft_traffic::lb::{PickInput, Picked};
use weft_traffic::listener::Direction;
use weft_traffic::route::Mirror;
use weft_traffic::timeout::format_grpc_timeout;
use weft_traffic::{Cluster, RouteAction, Tables};

use super::attempt::{Forward, Guard};
use super::conn::HttpConn;
use super::exchange::frame_bytes;
use super::outbound;
use super::request::Request;
use crate::error::{ErrorKind, ProxyError};
use crate::upstream::connect::Origin;
use crate::upstream::pool::{Opened, Purpose};
use crate::upstream::{Answer, Upstream};
use crate::worker::Worker;

/// Body waiting for one copy's endpoint. A copy that falls further behind is given up.
const QUEUED_BYTES_MAX: usize = 1024 * 1024;
/// Limit of a copy whose route sets none.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The request's side of its copies; usually there are none.
#[derive(Default)]
pub(crate) struct Copies {
    feeds: Vec<Feed>,
}

/// Fills one copy's body. Dropped before the end, it cuts the copy off.
struct Feed {
    parts: UnboundedSender<Part>,
    queued: Rc<Cell<usize>>,
}

enum Part {
    Frame(Frame),
    End,
}

impl Copies {
    /// Passes a frame of the request body on.
    pub(crate) fn frame(&mut self, frame: &Frame) {
        self.feeds.retain(|feed| {
            let queued = feed.queued.get() + frame_bytes(frame);
            feed.queued.set(queued);
            queued <= QUEUED_BYTES_MAX && feed.parts.send(Part::Frame(frame.clone())).is_ok()
        });
    }

    /// The request body is complete.
    pub(crate) fn end(&mut self) {
        for feed in self.feeds.drain(..) {
            // Where the copy is gone already there is nobody to tell.
            let _ = feed.parts.send(Part::End);
        }
    }
}

/// Starts the copies that the route asks for. The head must be as it goes upstream, but for
/// `grpc-timeout`, which becomes `told`.
pub(crate) fn start(forward: &Forward<'_>, request: &Request, told: Option<Duration>) -> Copies {
    let Forward { action, conn, .. } = *forward;
    let tables = conn.worker.tables();
    let mut copies = Copies::default();
    if request.connection.upgrade.is_some() {
        return copies;
    }
    for mirror in &action.mirrors {
        if mirror.fraction.hit(conn.worker.random())
            && let Some(mut copy) = Copy::new(mirror, action, &tables, request, conn)
        {
            if let Some(limit) = told {
                copy.head.headers.set_known(Known::GrpcTimeout, format_grpc_timeout(limit));
            }
            let (parts, receive) = unbounded_channel();
            let queued = Rc::<Cell<usize>>::default();
            copies.feeds.push(Feed { parts, queued: queued.clone() });
            tokio::task::spawn_local(copy.run(Body {
                parts: receive,
                queued,
                state: State::Sending,
            }));
        }
    }
    copies
}

struct Copy {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    picked: Picked,
    head: RequestHead,
    body: BodyLength,
    connection: Connection,
    /// The version the client spoke.
    version: Version,
    priority: usize,
    time_max: Duration,
    _permit: Permit,
}

impl Copy {
    /// None: there is nowhere to send it, or no room for it.
    fn new(
        mirror: &Mirror,
        action: &RouteAction,
        tables: &Tables,
        request: &Request,
        conn: &HttpConn,
    ) -> Option<Copy> {
        let worker = conn.worker.clone();
        let cluster = tables.cluster(mirror.cluster.draw(0).resolve(&request.head)?)?.clone();
        let now = worker.tick();
        let input = PickInput::plain(now);
        let picked = worker.balancers.pick(&cluster, &input, &mut || worker.random())?;
        let priority = usize::from(action.high_priority);
        let permit =
            worker.balancers.circuit(&cluster, priority, now).acquire(Resource::Requests)?;
        let mut head = request.head.clone();
        head.authority = Some(match (&mirror.host_rewrite, mirror.keep_host) {
            (Some(host), _) => host.clone(),
            (None, true) => head.authority.clone().unwrap_or_default(),
            (None, false) => shadow_of(head.authority()),
        });
        if conn.direction() != Direction::Inbound {
            outbound::introduce(&mut head, &picked.endpoint, conn);
        }
        Some(Copy {
            worker,
            cluster,
            picked,
            head,
            body: request.body,
            connection: request.connection,
            version: request.version,
            priority,
            time_max: action.timeouts.request.unwrap_or(TIME_MAX),
            _permit: permit,
        })
    }

    async fn run(self, body: Body) {
        let limit = self.time_max;
        match tokio::time::timeout(limit, self.send(body)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(?error, "mirrored request failed"),
            Err(_) => tracing::debug!("mirrored request took too long"),
        }
    }

    async fn send(mut self, mut body: Body) -> Result<(), ProxyError> {
        let active = self.picked.host.begin();
        // There are no retries to make up for a connection that is dead.
        let purpose = Purpose {
            downstream: self.version,
            certain: true,
            priority: self.priority,
            // A copy comes from us, not from the client.
            origin: Origin::default(),
        };
        let endpoint = self.picked.endpoint.clone();
        let open = self.worker.pools.open(&self.worker, &self.cluster, &endpoint, purpose);
        let Opened { mut upstream, facts } = open.await?;
        let mut guard = Guard::new(facts, active, None);
        self.fit_for(upstream.version());
        let framing =
            rules::request_framing(&self.head.method, self.body, self.version, upstream.version());
        upstream.send_request(&self.head, framing, None)?;
        let status = poll_fn(|cx| {
            body.poll_into(&mut upstream, cx)?;
            poll_status(&mut upstream, cx)
        });
        guard.answered(status.await?);
        poll_fn(|cx| {
            body.poll_into(&mut upstream, cx)?;
            poll_discard(&mut upstream, cx)
        })
        .await?;
        guard.finish();
        if body.state == State::Ended {
            upstream.finish(Instant::now());
        }
        Ok(())
    }

    fn fit_for(&mut self, version: Version) {
        match version {
            Version::H2 => rules::request_to_h2(&mut self.head, &self.connection),
            Version::H10 | Version::H11 => {
                rules::strip_request(&mut self.head.headers, &self.connection, Version::H11);
                rules::request_to_h1(&mut self.head);
            }
        }
    }
}

pub(crate) fn poll_status(
    upstream: &mut Upstream,
    cx: &mut Context<'_>,
) -> Poll<Result<u16, ProxyError>> {
    let mut answer = None;
    while answer.is_none() {
        match ready!(upstream.poll_answer(cx, &mut answer)) {
            Ok(Answer::Final | Answer::Informational(_)) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(answer.map_or(0, |answer| answer.head.status)))
}

fn poll_discard(upstream: &mut Upstream, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
    while !upstream.input_done() {
        match upstream.poll_frame(cx) {
            Poll::Ready(Some(frame)) => upstream.release(frame_bytes(&frame?)),
            Poll::Ready(None) => break,
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(Ok(()))
}

/// The copy's side of its body.
struct Body {
    parts: UnboundedReceiver<Part>,
    queued: Rc<Cell<usize>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Sending,
    Ended,
    /// The endpoint takes no more; its answer may come all the same.
    Refused,
}

impl Body {
    /// Moves what is there. An error gives the copy up: the request it was made of is gone.
    fn poll_into(
        &mut self,
        upstream: &mut Upstream,
        cx: &mut Context<'_>,
    ) -> Result<(), ProxyError> {
        while self.state == State::Sending {
            match upstream.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.state = State::Refused;
                    return Ok(());
                }
                Poll::Pending => return Ok(()),
            }
            match self.parts.poll_recv(cx) {
                Poll::Ready(Some(Part::Frame(frame))) => {
                    self.queued.set(self.queued.get() - frame_bytes(&frame));
                    upstream.send(frame)?;
                }
                Poll::Ready(Some(Part::End)) => {
                    upstream.end()?;
                    self.state = State::Ended;
                }
                Poll::Ready(None) => return Err(ErrorKind::DownstreamDisconnect.into()),
                Poll::Pending => break,
            }
        }
        if matches!(upstream.poll_flush(cx), Poll::Ready(Err(_))) {
            self.state = State::Refused;
        }
        Ok(())
    }
}

/// `host:port` → `host-shadow:port`, so that logs tell copies apart.
fn shadow_of(authority: &[u8]) -> Bytes {
    let port = match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) if authority[colon + 1..].iter().all(u8::is_ascii_digit) => colon,
        _ => authority.len(),
    };
    [&authority[..port], b"-shadow", &authority[port..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_keep_their_port() {
        for (authority, expect) in
            [("a.com", "a.com-shadow"), ("a.com:80", "a.com-shadow:80"), ("", "-shadow")]
        {
            assert_eq!(shadow_of(authority.as_bytes()), expect.as_bytes());
        }
    }
}
