//! The line that a TCP connection leaves in the access logs.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::SystemTime;

use weft_telemetry::{PeerInfo, ResponseFlags};
use weft_traffic::access_log::AccessLogs;
use weft_traffic::format::{Ended, FormatContext, Subject};
use weft_traffic::metrics::Metrics;
use weft_traffic::{Endpoint, EndpointAddress};

use crate::access_log;
use crate::http::log::{of_connection, peer};
use crate::worker::{ConnContext, Worker};

/// What became of a connection.
#[derive(Default)]
pub(super) struct Outcome<'o> {
    pub(super) cluster: &'o str,
    pub(super) flags: ResponseFlags,
    /// Why it ended or was not begun, in Envoy's words.
    pub(super) termination: &'o str,
    /// Why no upstream could be reached.
    pub(super) failure: &'o str,
    pub(super) endpoint: Option<&'o Endpoint>,
    pub(super) upstream_local: Option<SocketAddr>,
    pub(super) upstream_identity: &'o str,
    /// From the client, and to it.
    pub(super) bytes: (u64, u64),
    pub(super) source: Option<&'o PeerInfo>,
    pub(super) destination: Option<&'o PeerInfo>,
}

/// Writes the lines.
pub(super) fn write(
    logs: &AccessLogs,
    outcome: &Outcome<'_>,
    conn: &ConnContext,
    worker: &Rc<Worker>,
) {
    with_subject(outcome, conn, worker, |subject| {
        logs.write(subject, worker.random(), |to, line| access_log::hand_on(worker, to, line));
    });
}

/// The values of labels, as far as the connection tells at its beginning.
pub(super) fn values(
    metrics: &Metrics,
    outcome: &Outcome<'_>,
    conn: &ConnContext,
    worker: &Worker,
) -> Vec<Box<str>> {
    with_subject(outcome, conn, worker, |subject| metrics.values(subject))
}

fn with_subject<T>(
    outcome: &Outcome<'_>,
    conn: &ConnContext,
    worker: &Worker,
    see: impl FnOnce(Subject<'_>) -> T,
) -> T {
    let duration = worker.tick().saturating_duration_since(conn.accepted);
    let tls = conn.tls.as_ref();
    let ended = Ended {
        received_bytes: outcome.bytes.0,
        sent_bytes: outcome.bytes.1,
        duration,
        termination_details: outcome.termination,
        upstream_failure: outcome.failure,
        upstream_local: outcome.upstream_local,
        upstream_host_name: outcome.endpoint.map(|to| &*to.hostname).unwrap_or_default(),
        upstream_uri_san: outcome.upstream_identity,
        local_uri_san: &worker.node.peer.principal,
        mtls: tls.is_some_and(|tls| tls.mtls),
        downstream_peer: outcome.source.map(peer).unwrap_or_default(),
        upstream_peer: outcome.destination.map(peer).unwrap_or_default(),
        ..Ended::default()
    };
    let flags = outcome.flags.to_string();
    let context = FormatContext {
        downstream_remote: Some(conn.peer),
        upstream_remote: match outcome.endpoint.map(|endpoint| &endpoint.address) {
            Some(EndpointAddress::Ip(address)) => Some(*address),
            _ => None,
        },
        upstream_cluster: (!outcome.cluster.is_empty()).then_some(outcome.cluster),
        peer_uri_san: tls.and_then(|tls| tls.peer_spiffe.as_deref()),
        start_time: SystemTime::now().checked_sub(duration),
        response_flags: Some(&flags),
        ended: Some(&ended),
        ..of_connection(conn)
    };
    see(Subject { request: None, response: None, context: &context })
}

/// Writes the lines of a connection that no filter chain takes.
pub(crate) fn unrouted(
    logs: &AccessLogs,
    peer: SocketAddr,
    local: SocketAddr,
    worker: &Rc<Worker>,
) {
    let ended = Ended { termination_details: "filter_chain_not_found", ..Ended::default() };
    let context = FormatContext {
        downstream_remote: Some(peer),
        downstream_direct_remote: Some(peer),
        downstream_local: Some(local),
        hostname: Some(access_log::hostname()),
        environment: Some(access_log::environment),
        start_time: Some(SystemTime::now()),
        response_flags: Some("NR"),
        ended: Some(&ended),
        ..FormatContext::default()
    };
    let subject = Subject { request: None, response: None, context: &context };
    logs.write(subject, worker.random(), |to, line| access_log::hand_on(worker, to, line));
}
