//! What is noted of a request that is logged, and the line it leaves behind.
//!
//! A request whose connection manager logs nothing has none of this: every hook is one look at an
//! empty option.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use weft_http::{HeaderList, RequestHead, ResponseHead, Version};
use weft_telemetry::{Outcome, PeerInfo};
use weft_traffic::access_log::AccessLogs;
use weft_traffic::format::{Ended, FormatContext, PeerFacts, Subject};
use weft_traffic::listener::Direction;
use weft_traffic::metrics::Metrics;
use weft_traffic::route::Found;
use weft_traffic::{Cluster, Endpoint, EndpointAddress, HttpConfig};

use super::conn::HttpConn;
use super::request::Request;
use super::why::{self, Way};
use crate::access_log;
use crate::error::{ErrorKind, ProxyError};
use crate::upstream::pool::ConnectionFacts;
use crate::worker::ConnContext;

/// Notes on one request.
pub(crate) struct Notes {
    logs: Option<Arc<AccessLogs>>,
    /// Where metrics have labels that depend on the request.
    metrics: Option<Arc<Metrics>>,
    start: SystemTime,
    route: Box<str>,
    cluster: Option<Arc<Cluster>>,
    /// Of the response, what some line shows.
    response: HeaderList,
    trailers: HeaderList,
    details: &'static str,
    /// Why no upstream could be reached.
    failure: Box<str>,
    why: Box<str>,
    request_ended: Option<Instant>,
    response_began: Option<Instant>,
    upstream: Option<(Rc<ConnectionFacts>, Version, Arc<Endpoint>)>,
}

/// What the record adds at the end.
pub(crate) struct End<'e> {
    pub(crate) received: Instant,
    pub(crate) duration: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) attempts: u32,
    /// The endpoint of an attempt that failed.
    pub(crate) tried: Option<&'e Endpoint>,
    pub(crate) source: &'e PeerInfo,
    pub(crate) destination: Option<&'e PeerInfo>,
}

impl Notes {
    /// None: nothing is logged, and no metric asks.
    pub(crate) fn begin(http: &HttpConfig) -> Option<Box<Notes>> {
        let metrics = http.metrics.as_ref().filter(|metrics| metrics.has_values());
        let logs = http.access_log.as_ref().filter(|logs| !logs.is_empty());
        if logs.is_none() && metrics.is_none() {
            return None;
        }
        Some(Box::new(Notes {
            logs: logs.cloned(),
            metrics: metrics.cloned(),
            start: SystemTime::now(),
            route: "".into(),
            cluster: None,
            response: HeaderList::new(),
            trailers: HeaderList::new(),
            details: "",
            failure: "".into(),
            why: "".into(),
            request_ended: None,
            response_began: None,
            upstream: None,
        }))
    }

    /// The route was found.
    pub(crate) fn routed(&mut self, found: &Found<'_>, conn: &HttpConn) {
        self.route = (*found.route.name).into();
        if self.wants_why() {
            self.why = why::line(conn, Way { found: Some(found), ..Way::default() }).into();
        }
    }

    /// The cluster is known.
    pub(crate) fn calls(&mut self, found: &Found<'_>, cluster: &Arc<Cluster>, conn: &HttpConn) {
        self.cluster = Some(cluster.clone());
        if self.wants_why() {
            let way = Way { found: Some(found), cluster: Some(cluster), endpoint: None };
            self.why = why::line(conn, way).into();
        }
    }

    /// The last byte of the request has come.
    pub(crate) fn request_ended(&mut self) {
        self.request_ended.get_or_insert_with(Instant::now);
    }

    /// The upstream answered, and this is what the client gets.
    pub(crate) fn answered(
        &mut self,
        head: &ResponseHead,
        facts: &Rc<ConnectionFacts>,
        version: Version,
        endpoint: &Arc<Endpoint>,
    ) {
        self.response_began = Some(Instant::now());
        self.details = "via_upstream";
        self.response = self.kept_response(&head.headers);
        self.upstream = Some((facts.clone(), version, endpoint.clone()));
        if self.wants_why() {
            use std::fmt::Write as _;
            let mut why = std::mem::take(&mut self.why).into_string();
            // Writing to a String cannot fail.
            let _ = write!(why, ", endpoint=\"{}\"", endpoint.address);
            self.why = why.into();
        }
    }

    /// The upstream's trailers.
    pub(crate) fn trailers(&mut self, trailers: &HeaderList) {
        if let Some(logs) = &self.logs {
            self.trailers = logs.keep_trailers(trailers);
        }
        if let Some(metrics) = &self.metrics {
            add(&mut self.trailers, &metrics.keep_trailers(trailers));
        }
    }

    fn wants_why(&self) -> bool {
        self.logs.as_ref().is_some_and(|logs| logs.wants_why())
    }

    fn kept_response(&self, headers: &HeaderList) -> HeaderList {
        let kept = self.logs.as_ref().map(|logs| logs.keep_response(headers));
        let mut kept = kept.unwrap_or_default();
        if let Some(metrics) = &self.metrics {
            add(&mut kept, &metrics.keep_response(headers));
        }
        kept
    }

    /// A reply was made here.
    pub(crate) fn replied(&mut self, head: &ResponseHead) {
        self.response = self.kept_response(&head.headers);
        if self.details.is_empty() {
            self.details = "direct_response";
        }
    }

    /// A filter answered.
    pub(crate) fn because(&mut self, details: &'static str) {
        self.details = details;
    }

    /// The request failed.
    pub(crate) fn failed(&mut self, error: &ProxyError) {
        self.details = details(error.kind, self.response_began.is_some());
        if error.is_connect_failure() {
            let source = error.source.as_ref().map(|source| source.to_string());
            self.failure = source.unwrap_or_default().replace(' ', "_").into();
        }
    }

    /// Writes the lines, and gives the values of labels. `request` is missing when its head could not
    /// be read.
    pub(crate) fn write(
        &self,
        request: Option<&Request>,
        end: &End<'_>,
        conn: &HttpConn,
    ) -> Vec<Box<str>> {
        let context = &conn.context;
        let worker = &conn.worker;
        let head = request.map(|request| &request.head);
        let since =
            |when: Option<Instant>| when.map(|when| when.saturating_duration_since(end.received));
        let trace = head.and_then(trace_id);
        let flags = end.outcome.flags.to_string();
        let mut ended = Ended {
            trailers: Some(&self.trailers),
            received_bytes: end.received_bytes,
            sent_bytes: end.sent_bytes,
            duration: end.duration,
            request_duration: since(self.request_ended),
            response_duration: since(self.response_began),
            code_details: self.details,
            upstream_failure: &self.failure,
            attempts: end.attempts,
            grpc_status: end.outcome.grpc_status,
            local_uri_san: &worker.node.peer.principal,
            mtls: conn.is_mtls(),
            trace_id: trace.unwrap_or_default(),
            why: &self.why,
            downstream_peer: peer(end.source),
            upstream_peer: end.destination.map(peer).unwrap_or_default(),
            direction: direction(conn.direction()),
            ..Ended::default()
        };
        let mut endpoint = end.tried;
        if let Some((facts, version, of)) = &self.upstream {
            ended.upstream_local = facts.local;
            ended.upstream_protocol = Some(*version);
            ended.upstream_uri_san = facts.session.peer_spiffe.as_deref().unwrap_or_default();
            endpoint = Some(of);
        }
        if let Some(endpoint) = endpoint {
            ended.upstream_host_name = &endpoint.hostname;
        }
        let facts = FormatContext {
            protocol: request.map(|request| request.version),
            downstream_remote: Some(match request {
                Some(request) if request.client != context.peer.ip() => (request.client, 0).into(),
                _ => context.peer,
            }),
            upstream_remote: match endpoint.map(|endpoint| &endpoint.address) {
                Some(EndpointAddress::Ip(address)) => Some(*address),
                _ => None,
            },
            upstream_cluster: self.cluster.as_ref().map(|cluster| &*cluster.name),
            route_name: Some(&self.route),
            peer_uri_san: conn.peer_spiffe().map(|id| &**id),
            start_time: Some(self.start),
            response_code: Some(end.outcome.code),
            response_flags: Some(&flags),
            ended: Some(&ended),
            ..of_connection(context)
        };
        let subject = Subject { request: head, response: Some(&self.response), context: &facts };
        if let Some(logs) = &self.logs {
            let random = worker.random();
            logs.write(subject, random, |to, line| access_log::hand_on(worker, to, line));
        }
        self.metrics.as_ref().map(|metrics| metrics.values(subject)).unwrap_or_default()
    }
}

fn add(to: &mut HeaderList, more: &HeaderList) {
    for header in more {
        to.append(header.name, header.value);
    }
}

/// What is the same for all that happens on a connection.
pub(crate) fn of_connection(context: &ConnContext) -> FormatContext<'_> {
    FormatContext {
        downstream_direct_remote: Some(context.peer),
        downstream_local: Some(local(context)),
        server_name: context.sni.as_deref(),
        hostname: Some(access_log::hostname()),
        environment: Some(access_log::environment),
        ..FormatContext::default()
    }
}

/// Where the client meant to go.
fn local(context: &ConnContext) -> SocketAddr {
    context.original_dst.unwrap_or(context.local)
}

pub(crate) fn peer(peer: &PeerInfo) -> PeerFacts<'_> {
    PeerFacts {
        workload: &peer.workload,
        namespace: &peer.namespace,
        cluster: &peer.cluster,
        service: &peer.canonical_service,
        revision: &peer.canonical_revision,
        app: &peer.app,
        version: &peer.version,
        principal: &peer.principal,
    }
}

pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
        Direction::Gateway => "gateway",
    }
}

pub(crate) fn trace_id(head: &RequestHead) -> Option<&str> {
    let text = |name: &str| std::str::from_utf8(head.headers.get(name)?).ok();
    match text("x-b3-traceid") {
        Some(id) if !id.is_empty() => Some(id),
        _ => text("traceparent")?.split('-').nth(1),
    }
}

/// Envoy's names for why a request ended as it did.
pub(crate) fn details(kind: ErrorKind, began: bool) -> &'static str {
    match (kind, began) {
        (ErrorKind::NoRoute, _) => "route_not_found",
        (ErrorKind::NoCluster | ErrorKind::NoClusterWith(_), _) => "cluster_not_found",
        (ErrorKind::NoHealthyUpstream, _) => "no_healthy_upstream",
        (ErrorKind::DnsFailed, _) => "dns_resolution_failure",
        (ErrorKind::ConnectFailed, _) => {
            "upstream_reset_before_response_started{remote_connection_failure}"
        }
        (ErrorKind::ConnectTimeout, _) => {
            "upstream_reset_before_response_started{connection_timeout}"
        }
        (ErrorKind::UpstreamTls, _) => {
            "upstream_reset_before_response_started{connection_failure,TLS_error}"
        }
        (ErrorKind::UpstreamReset, false) => {
            "upstream_reset_before_response_started{connection_termination}"
        }
        (ErrorKind::UpstreamReset, true) => {
            "upstream_reset_after_response_started{connection_termination}"
        }
        (ErrorKind::UpstreamStreamReset, false) => {
            "upstream_reset_before_response_started{remote_reset}"
        }
        (ErrorKind::UpstreamStreamReset, true) => {
            "upstream_reset_after_response_started{remote_reset}"
        }
        (ErrorKind::UpstreamRefused, _) => {
            "upstream_reset_before_response_started{remote_refused_stream_reset}"
        }
        (ErrorKind::Overflow, _) => "upstream_reset_before_response_started{overflow}",
        (ErrorKind::UpstreamTimeout | ErrorKind::DeadlineExceeded, _) => "response_timeout",
        (ErrorKind::StreamDuration, _) => "max_duration_timeout",
        (ErrorKind::UpstreamProtocol, false) => {
            "upstream_reset_before_response_started{protocol_error}"
        }
        (ErrorKind::UpstreamProtocol, true) => {
            "upstream_reset_after_response_started{protocol_error}"
        }
        (ErrorKind::DownstreamProtocol(431), _) => "request_headers_too_large",
        (ErrorKind::DownstreamProtocol(_), _) => "http_codec_error",
        (ErrorKind::DownstreamTimeout, _) => "request_header_timeout",
        (ErrorKind::RequestTimeout, _) => "request_overall_timeout",
        (ErrorKind::StreamIdle(_), _) => "stream_idle_timeout",
        (ErrorKind::DownstreamDisconnect, _) => "downstream_remote_disconnect",
        (ErrorKind::GrpcWebText, _) => "grpc_base_64_decode_failed",
        (ErrorKind::UpgradeRefused, _) => "upgrade_failed",
        (ErrorKind::Denied, _) => "rbac_access_denied_matched_policy[none]",
        (ErrorKind::Internal, _) => "internal_error",
    }
}
