//! Requests of our own to a cluster, such as reports to a collector: one attempt, whole bodies, the
//! answer's status and gRPC's. They use the worker's pools and balancers like anybody's.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use weft_http::h1::Connection;
use weft_http::{BodyLength, Frame, HeaderList, RequestHead, Version, rules};
use weft_traffic::Cluster;
use weft_traffic::circuit::Resource;
use weft_traffic::lb::PickInput;

use super::attempt::Guard;
use super::exchange::frame_bytes;
use crate::error::{ErrorKind, ProxyError};
use crate::upstream::connect::Origin;
use crate::upstream::pool::{Opened, Purpose};
use crate::upstream::{Answer, Upstream};
use crate::worker::Worker;

/// Sends a request with this body and takes the answer; gives what it said.
pub(crate) async fn call(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    mut head: RequestHead,
    body: Bytes,
) -> Result<Reply, ProxyError> {
    let now = worker.tick();
    let picked = worker.balancers.pick(cluster, &PickInput::plain(now), &mut || worker.random());
    let picked = picked.ok_or(ErrorKind::NoHealthyUpstream)?;
    let permit = worker.balancers.circuit(cluster, 0, now).acquire(Resource::Requests);
    let _permit = permit.ok_or(ErrorKind::Overflow)?;
    let active = picked.host.begin();
    // There are no retries to make up for a connection that is dead.
    let purpose =
        Purpose { downstream: Version::H11, certain: true, priority: 0, origin: Origin::default() };
    let Opened { mut upstream, facts } =
        worker.pools.open(worker, cluster, &picked.endpoint, purpose).await?;
    let mut guard = Guard::new(facts, active, None);
    match upstream.version() {
        Version::H2 => rules::request_to_h2(&mut head, &CONNECTION),
        Version::H10 | Version::H11 => rules::request_to_h1(&mut head),
    }
    let length = BodyLength::Exact(body.len() as u64);
    let framing = rules::request_framing(&head.method, length, Version::H11, upstream.version());
    upstream.send_request(&head, framing, None)?;
    let mut body = Some(body);
    let answer = poll_fn(|cx| {
        if body.is_some() && upstream.poll_ready(cx)?.is_ready() {
            if let Some(body) = body.take() {
                upstream.send(Frame::Data(body))?;
            }
            upstream.end()?;
        }
        // What the endpoint makes of a failed write shows on its answer.
        let _ = upstream.poll_flush(cx);
        poll_answer(&mut upstream, cx)
    });
    let mut reply = answer.await?;
    guard.answered(reply.status);
    poll_fn(|cx| match upstream.poll_flush(cx) {
        Poll::Ready(Err(_)) | Poll::Pending | Poll::Ready(Ok(())) => {
            poll_end(&mut upstream, &mut reply, cx)
        }
    })
    .await?;
    guard.finish();
    if body.is_none() {
        upstream.finish(Instant::now());
    }
    Ok(reply)
}

/// What an answer said.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Of the trailers, or of the head where there are none.
    pub(crate) grpc_status: Option<u32>,
}

fn grpc_status(headers: &HeaderList) -> Option<u32> {
    std::str::from_utf8(headers.get("grpc-status")?).ok()?.trim().parse().ok()
}

fn poll_answer(upstream: &mut Upstream, cx: &mut Context<'_>) -> Poll<Result<Reply, ProxyError>> {
    let mut answer = None;
    while answer.is_none() {
        match ready!(upstream.poll_answer(cx, &mut answer)) {
            Ok(Answer::Final | Answer::Informational(_)) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(answer.map_or(Reply { status: 0, grpc_status: None }, |answer| Reply {
        status: answer.head.status,
        grpc_status: grpc_status(&answer.head.headers),
    })))
}

fn poll_end(
    upstream: &mut Upstream,
    reply: &mut Reply,
    cx: &mut Context<'_>,
) -> Poll<Result<(), ProxyError>> {
    while !upstream.input_done() {
        match ready!(upstream.poll_frame(cx)) {
            Some(frame) => {
                let frame = frame?;
                upstream.release(frame_bytes(&frame));
                if let Frame::Trailers(trailers) = &frame {
                    reply.grpc_status = grpc_status(trailers).or(reply.grpc_status);
                }
            }
            None => break,
        }
    }
    Poll::Ready(Ok(()))
}

const CONNECTION: Connection =
    Connection { keep_alive: true, upgrade: None, expect_continue: false };
