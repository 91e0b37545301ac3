//! From a route to a response head: choose an endpoint, send the request, wait for the answer, and
//! do it again elsewhere when that is allowed and safe.
//!
//! Two kinds of repetition: the route's retry policy, with back-off; and the keep-alive race, where
//! an endpoint closed a reused connection as the request was sent (by GOAWAY, with HTTP/2), repeated
//! at once whatever the policy says, but never when the endpoint may have executed a request that is not idempotent.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use weft_http::{Known, RequestHead, Version, rules};
use weft_traffic::circuit::{Circuit, Permit, Resource};
use weft_traffic::cluster::{ClusterKind, DynamicDns, Transport};
use weft_traffic::lb::{ActiveRequest, Host, PickInput, Picked};
use weft_traffic::listener::Direction;
use weft_traffic::outlier::HostOutcome;
use weft_traffic::retry::AttemptOutcome;
use weft_traffic::route::{Found, HostRewrite, SetCookie};
use weft_traffic::timeout::format_grpc_timeout;
use weft_traffic::{Cluster, Endpoint, RetryPolicy, RouteAction};

use super::conn::HttpConn;
use super::exchange::Exchange;
use super::request::Request;
use super::{outbound, record::Attempts, upgrade};
use crate::error::{ErrorKind, ProxyError, RetrySafety};
use crate::upstream::connect::Origin;
use crate::upstream::pool::{ConnectionFacts, Opened, Purpose};
use crate::upstream::{FinalHead, Upstream};

/// Keep-alive races forgiven per request; each takes another stale connection out of the pool.
const RACES_MAX: u32 = 3;

/// Where a request goes; the same for all its attempts.
pub(crate) struct Forward<'r> {
    pub(crate) found: Found<'r>,
    pub(crate) action: &'r RouteAction,
    pub(crate) cluster: &'r Arc<Cluster>,
    pub(crate) conn: &'r HttpConn,
}

/// A request at an endpoint: the last attempt's.
pub(crate) struct Attempted {
    pub(crate) upstream: Upstream,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) guard: Guard,
    /// The final head, once it is here; its body is still to come.
    pub(crate) answer: Option<FinalHead>,
    /// Keeps the client on this endpoint: to be sent with the response.
    pub(crate) set_cookie: Option<SetCookie>,
}

/// One attempt, for those who make and judge it.
struct Attempt {
    /// From 1.
    count: u32,
    /// For a retry: what the circuit breaker gave for it.
    retry: Option<Permit>,
    /// An earlier attempt lost a keep-alive race.
    certain: bool,
    /// Its connection had carried requests before.
    reused: bool,
}

/// The request as the circuit breaker counts it. As in Envoy it is under way from when it has a
/// connection; before that it is pending.
struct UnderWay {
    circuit: Rc<Circuit>,
    permit: Option<Permit>,
}

impl UnderWay {
    fn begin(&mut self) -> Result<(), ErrorKind> {
        if self.permit.is_none() {
            self.permit =
                Some(self.circuit.acquire(Resource::Requests).ok_or(ErrorKind::Overflow)?);
        }
        Ok(())
    }
}

/// What came of an attempt: an answer, or why there is none.
type Outcome<'o> = Result<&'o FinalHead, &'o ProxyError>;

/// What is counted while a request is at an endpoint; dropped unfinished, it counts as failed.
pub(crate) struct Guard {
    pub(crate) facts: Rc<ConnectionFacts>,
    status: u16,
    finished: bool,
    _active: ActiveRequest,
    _retry: Option<Permit>,
    /// Held until the response has passed: a streaming response is a request under way.
    request: Option<Permit>,
}

/// Tries until there is an answer to pass on, or none can be had. The attempt that was answered is
/// left in `place`, which is the caller's: it is large and is never moved.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is given twice")]
pub(crate) fn run(
    forward: &Forward<'_>,
    request: &mut Request,
    exchange: &mut Exchange<'_, '_>,
    attempts: &mut Attempts,
    place: &mut Option<Attempted>,
) -> impl Future<Output = Result<(), ProxyError>> {
    async move {
        let priority = usize::from(forward.action.high_priority);
        let worker = &forward.conn.worker;
        let circuit = worker.balancers.circuit(forward.cluster, priority, worker.now());
        let mut under_way = UnderWay { circuit, permit: None };
        // Drawn once: all attempts start from the same place.
        let (hash, set_cookie) = match forward.action.hash.sources.is_empty() {
            true => (None, None),
            false => forward.action.hash.hash(&request.head, request.client, worker.random()),
        };
        let policy = forward.found.retry().filter(|policy| policy.applies_to(&request.head));
        let policy = policy.map(|policy| &**policy);
        let mut tries = Tries::default();
        if let ClusterKind::Dynamic(dns) = &forward.cluster.config.kind {
            // Boxed: few clusters wait for a name, and their state must not be every request's.
            let named = Box::pin(named(forward, request, dns));
            tries.named = Some(Box::new(exchange.unless_interrupted(named).await?));
        }
        loop {
            attempts.count += 1;
            let picked = pick(forward, request, policy, hash, &tries)?;
            if attempts.count == 1 && !forward.action.mirrors.is_empty() {
                // As in Envoy, what nobody can take is not copied either.
                exchange.mirror(forward, request);
            }
            let mut one = Attempt {
                count: attempts.count,
                retry: tries.permit.take(),
                certain: tries.races > 0,
                reused: false,
            };
            let given = (&mut one, &mut under_way);
            let result = attempt(forward, request, exchange, &picked, given, place).await;
            let outcome = match &result {
                Ok(()) => {
                    let answer = place.as_ref().and_then(|attempted| attempted.answer.as_ref());
                    Ok(answer.expect("an attempt that succeeds was answered"))
                }
                Err(error) => Err(error),
            };
            let circuit = &under_way.circuit;
            let judge = Judge { forward, request, exchange, circuit, picked: &picked, one: &one };
            let policy = match judge.conclude(outcome, policy, &mut tries) {
                Next::Again => None,
                Next::Retry(policy) => Some(policy),
                Next::Over { exhausted } => {
                    attempts.exhausted = exhausted;
                    if let Some(attempted) = place {
                        attempted.set_cookie = set_cookie;
                        attempted.guard.request = under_way.permit;
                    }
                    attempts.host = Some(picked.endpoint);
                    let retried = tries.retries > 0;
                    return result.map_err(|error| ProxyError { retried, ..error });
                }
            };
            // An answer that nobody gets is dropped; its connection is closed, since its body was not
            // read.
            *place = None;
            let Some(policy) = policy else { continue };
            exchange.end_attempt();
            if policy.avoid_previous {
                tries.hosts.push(picked.host);
            }
            if policy.priority_update.is_some() {
                tries.priorities.push(picked.endpoint.priority);
            }
            let delay = policy.backoff.delay(tries.retries, forward.conn.worker.random());
            let slept = async {
                tokio::time::sleep(delay).await;
                Ok(())
            };
            exchange.unless_interrupted(Box::pin(slept)).await?;
            forward.conn.worker.tick();
        }
    }
}

/// What a request has used up of its right to further attempts.
#[derive(Default)]
struct Tries {
    retries: u32,
    races: u32,
    /// The circuit breaker's, for the next attempt.
    permit: Option<Permit>,
    /// Hosts to avoid.
    hosts: Vec<Rc<Host>>,
    /// Priorities of the attempts so far, where the policy asks to leave them.
    priorities: Vec<u32>,
    /// What the request's host resolved to, where that decides.
    named: Option<Box<Target>>,
}

impl Tries {
    /// As Envoy's `previous_priorities`: after every `priority_update` attempts the next one is
    /// made without the priorities used so far.
    fn priorities_to_avoid(&self, policy: Option<&RetryPolicy>) -> &[u32] {
        let every = policy.and_then(|policy| policy.priority_update).map(|every| every as usize);
        match every {
            Some(every) if self.priorities.len().is_multiple_of(every) => &self.priorities,
            _ => &[],
        }
    }
}

/// What follows an attempt.
enum Next<'p> {
    /// It is the last. `exhausted`: because the policy allows no more.
    Over { exhausted: bool },
    /// The same at once: it lost a race with the endpoint's end of the connection.
    Again,
    /// Another as the policy says.
    Retry(&'p RetryPolicy),
}

/// What an attempt is judged by.
struct Judge<'j, 'x, 'c> {
    forward: &'j Forward<'j>,
    request: &'j Request,
    exchange: &'j Exchange<'x, 'c>,
    circuit: &'j Rc<Circuit>,
    picked: &'j Picked,
    one: &'j Attempt,
}

impl Judge<'_, '_, '_> {
    fn conclude<'p>(
        self,
        outcome: Outcome<'_>,
        policy: Option<&'p RetryPolicy>,
        tries: &mut Tries,
    ) -> Next<'p> {
        let Judge { forward, request, exchange, circuit, picked, one } = self;
        // Only outlier detection and another attempt ask for the time.
        if outcome.is_err() || forward.cluster.config.outlier.is_some() {
            forward.conn.worker.tick();
        }
        report(forward, &picked.host, outcome);
        if let Err(error) = outcome
            && exchange.repeatable()
            && lost_race(error, &request.head, one.reused, tries.races)
        {
            tries.races += 1;
            return Next::Again;
        }
        let wanted = policy.filter(|policy| wants_retry(policy, outcome));
        let Some(policy) = wanted.filter(|_| !exchange.timed_out() && exchange.repeatable()) else {
            return Next::Over { exhausted: false };
        };
        if tries.retries >= policy.retries_max {
            return Next::Over { exhausted: true };
        }
        circuit.tick(forward.conn.worker.now());
        tries.permit = circuit.acquire(Resource::Retries);
        if tries.permit.is_none() {
            return Next::Over { exhausted: false };
        }
        tries.retries += 1;
        Next::Retry(policy)
    }
}

fn pick(
    forward: &Forward<'_>,
    request: &Request,
    policy: Option<&RetryPolicy>,
    hash: Option<u64>,
    tries: &Tries,
) -> Result<Picked, ProxyError> {
    let worker = &forward.conn.worker;
    let own;
    let target = match &tries.named {
        Some(named) => named,
        None => {
            own = Target::of(forward, request)?;
            &own
        }
    };
    let input = PickInput {
        hash,
        avoid: &tries.hosts,
        avoid_priorities: tries.priorities_to_avoid(policy),
        avoid_attempts: policy.map_or(0, |policy| policy.host_selection_attempts),
        destination: target.address,
        host: target.host.as_ref(),
        now: worker.now(),
    };
    let picked = worker.balancers.pick(forward.cluster, &input, &mut || worker.random());
    picked.ok_or_else(|| ErrorKind::NoHealthyUpstream.into())
}

/// Where requests go to clusters without endpoints of their own.
struct Target {
    address: Option<SocketAddr>,
    /// The host that TLS asks for.
    host: Option<Arc<str>>,
}

impl Target {
    fn of(forward: &Forward<'_>, request: &Request) -> Result<Target, ProxyError> {
        let address = original_dst(forward, request)?;
        let named = address.is_some() && forward.cluster.config.http.auto_sni;
        let host = if named { request_host(request).map(|(host, _)| host) } else { None };
        Ok(Target { address, host })
    }
}

/// What the request's host resolves to. Without a port it is the scheme's, as in Envoy.
async fn named(
    forward: &Forward<'_>,
    request: &Request,
    dns: &DynamicDns,
) -> Result<Target, ProxyError> {
    let Some((host, port)) = request_host(request) else {
        return Err(ErrorKind::DnsFailed.into());
    };
    let port = port.unwrap_or(match forward.cluster.config.transport {
        Transport::Plain => 80,
        Transport::Tls(_) => 443,
    });
    let ip = forward.conn.worker.names.address(&host, dns).await?;
    Ok(Target { address: Some(SocketAddr::new(ip, port)), host: Some(host) })
}

/// Host and port of the request's authority.
fn request_host(request: &Request) -> Option<(Arc<str>, Option<u16>)> {
    let authority = std::str::from_utf8(request.head.authority.as_deref()?).ok()?;
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of an IPv6 address is not a port's.
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    Some((host.into(), port))
}

/// Where the client's connection meant to go, for clusters without endpoints of their own.
fn original_dst(
    forward: &Forward<'_>,
    request: &Request,
) -> Result<Option<std::net::SocketAddr>, ProxyError> {
    let ClusterKind::OriginalDst { header, .. } = &forward.cluster.config.kind else {
        return Ok(None);
    };
    if let Some(name) = header
        && let Some(value) = request.head.headers.get(&**name)
    {
        let address = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        return Ok(address);
    }
    match forward.conn.context.captured_dst() {
        Some(original) => Ok(Some(original)),
        // Not captured: the destination would be this very listener, for ever.
        None => Err(ProxyError::new(ErrorKind::NoHealthyUpstream)
            .with_source("no original destination but this proxy itself")),
    }
}

#[expect(clippy::manual_async_fn, reason = "an async fn keeps what it is given twice")]
fn attempt(
    forward: &Forward<'_>,
    request: &mut Request,
    exchange: &mut Exchange<'_, '_>,
    picked: &Picked,
    (one, under_way): (&mut Attempt, &mut UnderWay),
    place: &mut Option<Attempted>,
) -> impl Future<Output = Result<(), ProxyError>> {
    async move {
        let worker = &forward.conn.worker;
        exchange.start_attempt();
        let active = picked.host.begin();
        let purpose = Purpose {
            downstream: request.version,
            certain: one.certain || !request.head.method.is_idempotent(),
            priority: usize::from(forward.action.high_priority),
            origin: Origin::of(forward.cluster, &forward.conn.context),
        };
        let (pools, cluster, endpoint) = (&worker.pools, forward.cluster, &*picked.endpoint);
        let open = match pools.reuse(worker, cluster, endpoint, purpose)? {
            Some(opened) => Open::Now(Some(opened)),
            // Boxed: most requests need not wait for a connection.
            None => Open::Later(Box::pin(pools.open(worker, cluster, endpoint, purpose))),
        };
        let Opened { upstream, facts } = exchange.unless_interrupted(open).await?;
        if let Err(overflow) = under_way.begin() {
            upstream.finish(forward.conn.worker.now());
            return Err(overflow.into());
        }
        one.reused = upstream.reused();
        let guard = Guard::new(facts, active, one.retry.take());
        let endpoint = picked.endpoint.clone();
        // From here on a failure drops it, and with it the connection.
        let attempted =
            place.insert(Attempted { upstream, endpoint, guard, answer: None, set_cookie: None });
        let Attempted { upstream, guard, answer: place, .. } = attempted;
        exchange.spelling.up = guard.facts.session.carries_spelling();
        let to = (upstream.version(), exchange.spelling.up);
        let tunnel = match (&mut *upstream, request.connection.upgrade) {
            (Upstream::H2(stream), Some(_)) => {
                let open = upgrade::open_over_h2(stream, request);
                exchange.unless_interrupted(Box::pin(open)).await?;
                Some(upgrade::WEBSOCKET)
            }
            _ => None,
        };
        prepare(forward, request, to, &picked.endpoint);
        if forward.found.host.attempt_count_upstream {
            let headers = &mut request.head.headers;
            match one.count {
                1 => headers.set_known(Known::XEnvoyAttemptCount, "1"),
                count => headers.set_known(Known::XEnvoyAttemptCount, count.to_string()),
            }
        }
        if request.grpc
            && let Some(limit) = exchange.grpc_timeout(one.count == 1)
        {
            request.head.headers.set_known(Known::GrpcTimeout, format_grpc_timeout(limit));
        }
        let framing = rules::request_framing(
            &request.head.method,
            request.body,
            request.version,
            upstream.version(),
        );
        upstream.send_request(&request.head, framing, tunnel)?;
        exchange.await_answer(upstream, place).await?;
        if let Some(answer) = place {
            if request.connection.upgrade.is_some() {
                upgrade::answered(answer, request, tunnel.is_some())?;
            }
            guard.answered(answer.head.status);
        }
        Ok(())
    }
}

/// A connection that is there, or on its way.
enum Open<F> {
    Now(Option<Opened>),
    Later(Pin<Box<F>>),
}

impl<F: Future<Output = Result<Opened, ProxyError>>> Future for Open<F> {
    type Output = Result<Opened, ProxyError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Open::Now(opened) => Poll::Ready(Ok(opened.take().expect("polled until it is ready"))),
            Open::Later(open) => open.as_mut().poll(cx),
        }
    }
}

/// Makes the head fit for this endpoint, its version, and whether it takes the spelling of names.
fn prepare(
    forward: &Forward<'_>,
    request: &mut Request,
    (to, carries): (Version, bool),
    endpoint: &Endpoint,
) {
    let head = &mut request.head;
    // What an earlier attempt sent was for its endpoint alone.
    head.headers.remove_known(Known::XWeftSpelling);
    match to {
        Version::H2 => {
            if request.spelling.is_none() {
                request.spelling = rules::note_spelling(&head.headers);
            }
            rules::request_to_h2(head, &request.connection);
            if let (Some(list), true) = (&request.spelling, carries) {
                head.headers.append_known(Known::XWeftSpelling, list);
            }
        }
        Version::H10 | Version::H11 => {
            if let Some(list) = request.spelling.take() {
                let authority = head.authority.clone();
                rules::respell(&mut head.headers, &list, authority.as_deref(), request.body);
            }
            if !request.stripped {
                rules::strip_request(&mut head.headers, &request.connection, Version::H11);
            }
            rules::request_to_h1(head);
        }
    }
    request.stripped = true;
    if head.authority.is_none() {
        // HTTP/1.1 and HTTP/2 need one; RFC 9112 §3.2 allows an empty Host.
        head.authority = Some(bytes::Bytes::new());
    }
    if let Some(HostRewrite::Auto) = &forward.action.host_rewrite
        && !endpoint.hostname.is_empty()
    {
        head.authority = Some(bytes::Bytes::copy_from_slice(endpoint.hostname.as_bytes()));
    }
    if forward.conn.direction() != Direction::Inbound {
        outbound::introduce(head, endpoint, forward.conn);
    }
}

/// Whether the connection was ended by the endpoint as we reused it, and repeating is safe.
fn lost_race(error: &ProxyError, head: &RequestHead, reused: bool, races: u32) -> bool {
    let ended = match error.kind {
        ErrorKind::UpstreamReset => reused,
        // A connection can be going away from its first stream on.
        ErrorKind::UpstreamRefused => true,
        _ => false,
    };
    ended
        && match error.retry {
            RetrySafety::NotSent => races < RACES_MAX,
            // Once, as gRPC does: more is for the route's policy to say.
            RetrySafety::NotProcessed => races == 0,
            RetrySafety::MaybeProcessed => races < RACES_MAX && head.method.is_idempotent(),
            RetrySafety::Never => false,
        }
}

fn wants_retry(policy: &RetryPolicy, outcome: Outcome<'_>) -> bool {
    let outcome = match outcome {
        Ok(answer) => {
            AttemptOutcome::Response { status: answer.head.status, headers: &answer.head.headers }
        }
        Err(error) => match error.kind {
            ErrorKind::ConnectFailed | ErrorKind::ConnectTimeout | ErrorKind::UpstreamTls => {
                AttemptOutcome::ConnectFailure
            }
            ErrorKind::UpstreamReset | ErrorKind::UpstreamStreamReset => AttemptOutcome::Reset {
                request_started: error.retry != RetrySafety::NotSent,
                refused: false,
            },
            ErrorKind::UpstreamRefused => {
                AttemptOutcome::Reset { request_started: true, refused: true }
            }
            ErrorKind::UpstreamTimeout => AttemptOutcome::PerTryTimeout,
            _ => return false,
        },
    };
    policy.should_retry(&outcome)
}

/// Tells outlier detection.
fn report(forward: &Forward<'_>, host: &Host, outcome: Outcome<'_>) {
    if forward.cluster.config.outlier.is_none() {
        return;
    }
    let outcome = match outcome {
        Ok(answer) => HostOutcome::Response(answer.head.status),
        Err(error) => match error.kind {
            ErrorKind::ConnectFailed | ErrorKind::ConnectTimeout | ErrorKind::UpstreamTls => {
                HostOutcome::ConnectFailure
            }
            ErrorKind::UpstreamTimeout | ErrorKind::DeadlineExceeded => HostOutcome::Timeout,
            ErrorKind::UpstreamReset
            | ErrorKind::UpstreamStreamReset
            | ErrorKind::UpstreamProtocol => HostOutcome::Reset,
            _ => return,
        },
    };
    let worker = &forward.conn.worker;
    worker.balancers.report(forward.cluster, host, outcome, worker.now(), worker.random());
}

impl Guard {
    pub(crate) fn new(
        facts: Rc<ConnectionFacts>,
        active: ActiveRequest,
        retry: Option<Permit>,
    ) -> Guard {
        facts.active.counters().rq_total.inc();
        facts.active.counters().rq_active.inc();
        Guard { facts, status: 0, finished: false, _active: active, _retry: retry, request: None }
    }

    /// The final head has this status.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// The response was passed on whole.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let counters = self.facts.active.counters();
        counters.rq_active.dec();
        match self.finished && self.status < 500 {
            true => counters.rq_success.inc(),
            false => counters.rq_error.inc(),
        }
    }
}
