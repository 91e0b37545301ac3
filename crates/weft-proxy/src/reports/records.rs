//! A single request as the control plane keeps it for a moment: who asked whom for what.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use weft_telemetry::{Amounts, Outcome, PeerInfo, Protocol, Reporter, RequestLabels, ServiceInfo};
use weft_traffic::{Endpoint, EndpointAddress};

use crate::http::conn::HttpConn;
use crate::http::request::Request;

/// Longest text kept of what a client sent. Bytes.
const TEXT_BYTES_MAX: usize = 256;

/// One finished request.
#[derive(Debug)]
pub(crate) struct Access {
    pub(super) time_us: u64,
    pub(super) reporter: Reporter,
    pub(super) source: Arc<PeerInfo>,
    pub(super) destination: Arc<PeerInfo>,
    pub(super) service: Arc<ServiceInfo>,
    pub(super) protocol: Protocol,
    pub(super) method: Box<str>,
    pub(super) host: Box<str>,
    pub(super) path: Box<str>,
    pub(super) outcome: Outcome,
    pub(super) duration_us: u64,
    pub(super) client: String,
    pub(super) endpoint: String,
    pub(super) request_id: Box<str>,
    pub(super) trace_id: Box<str>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
}

impl Access {
    /// `endpoint`: the one asked last.
    pub(crate) fn new(
        labels: &RequestLabels<'_>,
        request: &Request,
        (outcome, amounts): (Outcome, &Amounts),
        endpoint: Option<&Endpoint>,
        conn: &HttpConn,
    ) -> Self {
        let head = &request.head;
        let peer = conn.context.peer;
        let client = match request.client == peer.ip() {
            true => peer.to_string(),
            false => request.client.to_string(),
        };
        let start = SystemTime::now().checked_sub(amounts.duration);
        let since = start.and_then(|start| start.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            time_us: since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0)),
            reporter: labels.reporter,
            source: labels.source.clone(),
            destination: labels.destination.clone(),
            service: labels.service.clone(),
            protocol: labels.protocol,
            method: text(head.method.as_bytes()),
            host: text(head.authority()),
            path: text(head.path()),
            outcome,
            duration_us: u64::try_from(amounts.duration.as_micros()).unwrap_or(u64::MAX),
            client,
            endpoint: address(endpoint, conn),
            request_id: text(head.headers.get("x-request-id").unwrap_or_default()),
            trace_id: text(crate::http::log::trace_id(head).unwrap_or_default().as_bytes()),
            request_bytes: amounts.request_bytes,
            response_bytes: amounts.response_bytes,
        }
    }
}

/// Where the request went, or was meant to go.
fn address(endpoint: Option<&Endpoint>, conn: &HttpConn) -> String {
    let meant = || -> SocketAddr { conn.context.original_dst.unwrap_or(conn.context.local) };
    match endpoint.map(|endpoint| &endpoint.address) {
        Some(EndpointAddress::Ip(address)) => address.to_string(),
        Some(other) => other.to_string(),
        None => meant().to_string(),
    }
}

fn text(bytes: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES_MAX)]).into()
}
