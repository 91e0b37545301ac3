//! What is recorded of a request: gathered on its way, counted exactly once at its end, whatever
//! the end was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use weft_http::ResponseHead;
use weft_telemetry::load::Interface;
use weft_telemetry::{
    Amounts, Outcome, PeerInfo, Protocol, Reporter, RequestLabels, ResponseFlags, SecurityPolicy,
    ServiceInfo,
};
use weft_traffic::cors::CorsPolicy;
use weft_traffic::listener::Direction;
use weft_traffic::metrics::Metrics;
use weft_traffic::rate_limit::Left;
use weft_traffic::{Cluster, Endpoint, HttpConfig};

use super::conn::HttpConn;
use super::exchange::Tally;
use super::grpc::Messages;
use super::grpc_web::Web;
use super::log::{End, Notes};
use super::request::Request;
use super::span;
use crate::error::ProxyError;
use crate::reports::Access;

/// One request's record.
pub(crate) struct Record {
    pub(crate) received: Instant,
    /// When the response had been passed on, if it was.
    pub(crate) ended: Option<Instant>,
    /// How long the client may leave us waiting.
    pub(crate) client_stall: Duration,
    protocol: Protocol,
    /// The caller speaks gRPC-Web; the application hears gRPC.
    pub(crate) web: Option<Web>,
    /// What a reply made here owes a page of this origin.
    pub(crate) cors: Option<Box<(Arc<CorsPolicy>, Bytes)>>,
    /// The head of the reply to a failure, where the route changes it.
    pub(crate) reply: Option<Box<weft_http::ResponseHead>>,
    /// What a reply made here says of how the request was decided, if that was asked for.
    pub(crate) why: Option<Box<str>>,
    /// What a rate limit tells of its bucket.
    pub(crate) left: Option<Box<Left>>,
    /// Of a request that is sampled.
    pub(crate) span: Option<Box<span::Notes>>,
    flags: ResponseFlags,
    /// The local reply's status, when there was one.
    replied: Option<u16>,
    pub(crate) tally: Tally,
    pub(crate) attempts: Attempts,
    pub(crate) response: Response,
    pub(crate) parties: Parties,
}

/// Who calls what; with who answers, the labels of a request.
pub(crate) struct Parties {
    source: Arc<PeerInfo>,
    service: Option<Arc<ServiceInfo>>,
    /// None: the standard metrics.
    metrics: Option<Arc<Metrics>>,
}

/// What the attempts left behind.
#[derive(Default)]
pub(crate) struct Attempts {
    pub(crate) count: u32,
    /// The policy would have retried once more.
    pub(crate) exhausted: bool,
    /// The endpoint tried last.
    pub(crate) host: Option<Arc<Endpoint>>,
}

/// What the upstream's response said.
#[derive(Default)]
pub(crate) struct Response {
    /// 0: there was none.
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u8>,
    /// Who answered, as far as known (outbound).
    pub(crate) peer: Option<Arc<PeerInfo>>,
}

impl Record {
    pub(crate) fn new(received: Instant, request: &Request, conn: &HttpConn) -> Self {
        Self::of(received, if request.grpc { Protocol::Grpc } else { Protocol::Http }, conn)
    }

    /// For a request whose head could not be read.
    pub(crate) fn unread(received: Instant, conn: &HttpConn) -> Self {
        let mut record = Self::of(received, Protocol::Http, conn);
        record.configured(&conn.http);
        record
    }

    /// What is noted and counted is what is configured as the request comes.
    pub(crate) fn configured(&mut self, http: &HttpConfig) {
        self.tally.log = Notes::begin(http);
        self.parties.metrics.clone_from(&http.metrics);
    }

    fn of(received: Instant, protocol: Protocol, conn: &HttpConn) -> Self {
        let peers = &conn.worker.pools.peers;
        Self {
            received,
            ended: None,
            client_stall: conn.worker.limits.client_stall,
            protocol,
            web: None,
            cors: None,
            reply: None,
            why: None,
            span: None,
            left: None,
            flags: ResponseFlags::NONE,
            replied: None,
            tally: Tally {
                messages: (protocol == Protocol::Grpc).then(|| Messages::new(conn)),
                ..Tally::default()
            },
            attempts: Attempts::default(),
            response: Response::default(),
            parties: Parties {
                source: match conn.direction() {
                    Direction::Inbound => peers.unknown(conn.peer_spiffe()),
                    Direction::Outbound | Direction::Gateway => peers.own(&conn.worker.node, true),
                },
                service: None,
                metrics: None,
            },
        }
    }

    /// The caller speaks gRPC-Web.
    pub(crate) fn speaks_web(&mut self, web: Web, conn: &HttpConn) {
        self.web = Some(web);
        self.protocol = Protocol::Grpc;
        self.tally.messages = Some(Messages::new(conn));
    }

    /// The caller speaks gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// The caller introduced itself.
    pub(crate) fn called_by(&mut self, request: &Request, conn: &HttpConn) {
        if let (Direction::Inbound, Some(caller)) = (conn.direction(), &request.caller) {
            self.parties.source = caller.clone();
        }
    }

    /// The route was found.
    pub(crate) fn calls(&mut self, cluster: &Cluster, request: &Request, conn: &HttpConn) {
        let authority = match conn.direction() {
            Direction::Outbound => Some(request.head.authority()),
            Direction::Inbound | Direction::Gateway => None,
        };
        let service = conn.worker.pools.peers.service(cluster, authority, &conn.worker.metrics);
        self.parties.service = Some(service);
    }

    /// The request failed.
    pub(crate) fn failed(&mut self, error: &ProxyError) {
        self.flags = self.flags.with(flag(error.flag()));
        if let Some(log) = &mut self.tally.log {
            log.failed(error);
        }
        let Attempts { count, host, .. } = &self.attempts;
        let upstream = host.as_ref().map(|endpoint| &endpoint.address);
        tracing::debug!(%error, attempts = count, ?upstream, "request failed");
    }

    /// Something befell the request that is no failure of ours.
    pub(crate) fn flagged(&mut self, name: &str) {
        self.flags = self.flags.with(flag(name));
    }

    /// A fault held the request up.
    pub(crate) fn is_delayed(&self) -> bool {
        self.flags.contains(ResponseFlags::DELAY_INJECTED)
    }

    /// A reply made here was sent.
    pub(crate) fn replied(&mut self, head: &ResponseHead, grpc_status: Option<u8>, bytes: u64) {
        self.replied = Some(head.status);
        if let Some(log) = &mut self.tally.log {
            log.replied(head);
        }
        self.response.grpc_status = grpc_status;
        self.tally.response_bytes = bytes;
    }

    /// Counts the request, and logs it. `request` is missing when its head could not be read.
    pub(crate) fn finish(self, request: Option<&Request>, conn: &HttpConn) {
        let code = self.replied.unwrap_or(self.response.status);
        let grpc_status = self.tally.grpc_status.or(self.response.grpc_status);
        let flags = match self.attempts.exhausted {
            true => self.flags.with(ResponseFlags::RETRY_LIMIT_EXCEEDED),
            false => self.flags,
        };
        let grpc_status = if self.is_grpc() { grpc_status } else { None };
        let messages = self.tally.messages.as_ref();
        let outcome = Outcome { code, grpc_status, flags };
        let amounts = Amounts {
            duration: self
                .ended
                .unwrap_or_else(|| conn.worker.tick())
                .saturating_duration_since(self.received),
            request_bytes: self.tally.request_bytes,
            response_bytes: self.tally.response_bytes,
            request_messages: messages.map_or(0, |both| both.request.unreported()),
            response_messages: messages.map_or(0, |both| both.response.unreported()),
            exemplar: match (&self.span, request) {
                (Some(span), Some(request)) => span.exemplar(request),
                _ => None,
            },
        };
        let callee = (self.response.peer.as_ref(), self.attempts.host.as_deref());
        if let (Some(span), Some(request)) = (self.span, request) {
            let end = span::End {
                duration: amounts.duration,
                outcome,
                received_bytes: amounts.request_bytes,
                sent_bytes: amounts.response_bytes,
                endpoint: self.attempts.host.as_deref(),
            };
            span.report(request, &end, conn);
        }
        let mut values = Vec::new();
        if let Some(log) = &self.tally.log {
            let end = End {
                received: self.received,
                duration: amounts.duration,
                outcome,
                received_bytes: amounts.request_bytes,
                sent_bytes: amounts.response_bytes,
                attempts: self.attempts.count,
                tried: self.attempts.host.as_deref(),
                source: &self.parties.source,
                destination: self.response.peer.as_deref(),
            };
            values = log.write(request, &end, conn);
        }
        self.parties.with_labels(self.protocol, callee, conn, |labels| {
            let labels = &RequestLabels { values: &values, ..*labels };
            conn.worker.metrics.request(labels, outcome, &amounts);
            report(labels, request, (outcome, &amounts), callee.1, conn);
        });
    }
}

/// Tells the control plane, in time.
fn report(
    labels: &RequestLabels<'_>,
    request: Option<&Request>,
    (outcome, amounts): (Outcome, &Amounts),
    endpoint: Option<&Endpoint>,
    conn: &HttpConn,
) {
    let loads = &conn.worker.loads;
    let interface = match request {
        Some(request) => {
            let method = std::str::from_utf8(request.head.method.as_bytes()).unwrap_or("?");
            Interface { method, path: request.head.path() }
        }
        None => Interface { method: "", path: b"" },
    };
    loads.request(labels, interface, outcome, amounts);
    if let Some(request) = request
        && loads.wants_record(outcome, || conn.worker.random())
    {
        loads.record(|| Access::new(labels, request, (outcome, amounts), endpoint, conn));
    }
}

impl Parties {
    /// For counting messages while this response streams.
    pub(crate) fn reporting<'r>(
        &'r self,
        response: &'r Response,
        conn: &'r HttpConn,
    ) -> Reporting<'r> {
        Reporting { parties: self, peer: response.peer.as_ref(), conn }
    }

    /// `callee`: who answered, as far as known, and the endpoint that was asked.
    fn with_labels(
        &self,
        protocol: Protocol,
        callee: (Option<&Arc<PeerInfo>>, Option<&Endpoint>),
        conn: &HttpConn,
        count: impl FnOnce(&RequestLabels<'_>),
    ) {
        let peers = &conn.worker.pools.peers;
        let destination = match (conn.direction(), callee) {
            (Direction::Inbound, _) => peers.own(&conn.worker.node, conn.is_mtls()),
            (_, (Some(peer), _)) => peer.clone(),
            (_, (None, Some(endpoint))) => {
                peers.of_endpoint(endpoint, None).unwrap_or_else(PeerInfo::unknown)
            }
            (_, (None, None)) => PeerInfo::unknown(),
        };
        let service = match &self.service {
            Some(service) => service.clone(),
            None => unknown_service(),
        };
        count(&RequestLabels {
            reporter: match conn.direction() {
                Direction::Inbound => Reporter::Destination,
                Direction::Outbound | Direction::Gateway => Reporter::Source,
            },
            source: &self.source,
            destination: &destination,
            service: &service,
            protocol,
            security: match (conn.direction(), conn.is_mtls()) {
                (Direction::Inbound, true) => SecurityPolicy::MutualTls,
                (Direction::Inbound, false) => SecurityPolicy::None,
                (Direction::Outbound | Direction::Gateway, _) => SecurityPolicy::Unknown,
            },
            view: self.metrics.as_ref().map(|metrics| &metrics.view),
            values: &[],
        });
    }
}

/// Counts the messages of a gRPC stream while it is open, as Istio does, every few seconds.
pub(crate) struct Reporting<'r> {
    parties: &'r Parties,
    peer: Option<&'r Arc<PeerInfo>>,
    conn: &'r HttpConn,
}

impl Reporting<'_> {
    /// Counts what has come since the last report, if it is time for one.
    pub(crate) fn report(&self, messages: &mut Messages) {
        let worker = &self.conn.worker;
        if self.parties.metrics.as_ref().is_some_and(|metrics| metrics.has_values()) {
            // Only the end tells the labels.
            return;
        }
        let Some((request, response)) = messages.due(worker.report_round()) else { return };
        let callee = (self.peer, None);
        self.parties.with_labels(Protocol::Grpc, callee, self.conn, |labels| {
            worker.metrics.flow(labels).messages(request, response);
        });
    }
}

fn unknown_service() -> Arc<ServiceInfo> {
    static UNKNOWN: std::sync::OnceLock<Arc<ServiceInfo>> = std::sync::OnceLock::new();
    UNKNOWN.get_or_init(Arc::default).clone()
}

fn flag(name: &str) -> ResponseFlags {
    ResponseFlags::from_name(name).unwrap_or(ResponseFlags::NONE)
}
