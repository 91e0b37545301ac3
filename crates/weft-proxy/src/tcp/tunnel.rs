//! Bytes through an HTTP proxy (`tunneling_config`): at the endpoint the connection is a CONNECT, or the
//! content of a POST. Over HTTP/1 that takes a connection, over HTTP/2 a stream of a shared one.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use weft_http::{BodyLength, HeaderList, Method, RequestHead, Scheme, Target, Version};
use weft_traffic::lb::ActiveRequest;
use weft_traffic::listener::Tunneling;
use weft_traffic::{Cluster, Endpoint};

use super::copy::{End, Limits, Meter};
use crate::error::{ErrorKind, ProxyError, Side};
use crate::http::attempt::Guard;
use crate::http::limits::StreamLimits;
use crate::http::mirror::poll_status;
use crate::http::upgrade;
use crate::http::wire::Wire;
use crate::net::Io;
use crate::upstream::Upstream;
use crate::upstream::connect::Origin;
use crate::upstream::pool::{ConnectionFacts, Opened, Purpose};
use crate::worker::Worker;

/// A tunnel that the endpoint has agreed to.
pub(super) struct Tunnel {
    upstream: Upstream,
    guard: Guard,
    /// What follows on the HTTP/1 connection is the tunnel's.
    raw: bool,
}

impl Tunnel {
    /// Asks an endpoint for the tunnel, which it has the cluster's connect timeout to open.
    ///
    /// # Errors
    /// When it cannot be reached, or does not agree (with a 2xx).
    pub(super) async fn open(
        worker: &Rc<Worker>,
        cluster: &Cluster,
        endpoint: &Endpoint,
        active: ActiveRequest,
        (origin, wanted): (Origin, &Tunneling),
    ) -> Result<Tunnel, ProxyError> {
        let purpose = Purpose { downstream: Version::H11, certain: true, priority: 0, origin };
        let Opened { mut upstream, facts } =
            worker.pools.open(worker, cluster, endpoint, purpose).await?;
        let mut guard = Guard::new(facts, active, None);
        let raw = wanted.post_path.is_none();
        let framing = match (&upstream, raw) {
            (Upstream::H1(_), true) => BodyLength::None,
            (Upstream::H1(_), false) => BodyLength::Chunked,
            (Upstream::H2(_), _) => BodyLength::Streamed,
        };
        upstream.send_request(&head(wanted, upstream.version()), framing, None)?;
        let answer = poll_fn(|cx| {
            // What the endpoint makes of a failed write shows on its answer.
            let _ = upstream.poll_flush(cx);
            poll_status(&mut upstream, cx)
        });
        let status = match tokio::time::timeout(cluster.config.connect_timeout, answer).await {
            Ok(status) => status?,
            Err(_) => return Err(ErrorKind::ConnectTimeout.into()),
        };
        guard.answered(status);
        if !(200..300).contains(&status) {
            let why = format!("the proxy answered {status} instead of a tunnel");
            return Err(ProxyError::new(ErrorKind::ConnectFailed).with_source(why));
        }
        Ok(Tunnel { upstream, guard, raw })
    }

    /// What is known of the connection to the endpoint.
    pub(super) fn facts(&self) -> &Rc<ConnectionFacts> {
        &self.guard.facts
    }

    /// Carries a client's bytes until both sides have ended or something fails.
    pub(super) async fn relay(mut self, io: Io, limits: Limits, meter: &impl Meter) -> End {
        let mut client = Wire::new(io);
        let idle = StreamLimits::idle_only(limits.idle);
        let moved = |received, sent| {
            meter.received(received);
            meter.sent(sent);
        };
        let carry = upgrade::carry(&mut client, &mut self.upstream, self.raw, idle, moved);
        let ended = match limits.whole {
            None => carry.await,
            Some(whole) => match tokio::time::timeout(whole, carry).await {
                Ok(ended) => ended,
                Err(_) => return End::Expired,
            },
        };
        match ended {
            Ok(()) => {
                self.guard.finish();
                End::Closed
            }
            Err(error) if matches!(error.kind, ErrorKind::StreamIdle(_)) => End::Idle,
            Err(error) => {
                let (side, error) = (error.side, std::io::Error::other(error.to_string()));
                match side {
                    Side::Upstream => End::Upstream(error),
                    Side::Downstream | Side::Local => End::Downstream(error),
                }
            }
        }
    }
}

fn head(wanted: &Tunneling, version: Version) -> RequestHead {
    let bytes = |text: &Arc<str>| Bytes::copy_from_slice(text.as_bytes());
    let (method, target) = match &wanted.post_path {
        None => (Method::Connect, Target::Authority),
        Some(path) => (Method::Post, Target::Path(bytes(path))),
    };
    RequestHead {
        method,
        scheme: Scheme::Http,
        authority: Some(bytes(&wanted.authority)),
        target,
        version,
        headers: HeaderList::default(),
    }
}
