//! What operators print.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use weft_http::{HeaderList, Version};

/// Facts about the request that operators print. What is unknown prints as nothing, but a missing
/// response code as `0` and missing flags as `-`, as in Envoy.
#[derive(Debug, Clone, Copy, Default)]
pub struct FormatContext<'a> {
    /// What the client spoke; None: what the head says, which is fitted to the endpoint's version.
    pub protocol: Option<Version>,
    /// The client, after `x-forwarded-for` and PROXY protocol.
    pub downstream_remote: Option<SocketAddr>,
    /// The TCP peer.
    pub downstream_direct_remote: Option<SocketAddr>,
    /// Where the client meant to go.
    pub downstream_local: Option<SocketAddr>,
    pub upstream_remote: Option<SocketAddr>,
    pub upstream_cluster: Option<&'a str>,
    pub route_name: Option<&'a str>,
    /// Server name of the client's TLS.
    pub server_name: Option<&'a str>,
    /// URI SAN of the client's certificate.
    pub peer_uri_san: Option<&'a str>,
    pub start_time: Option<SystemTime>,
    pub response_code: Option<u16>,
    /// Envoy's short names, separated by commas.
    pub response_flags: Option<&'a str>,
    /// This host's name.
    pub hostname: Option<&'a str>,
    /// Reads the environment (`%ENVIRONMENT(X)%`).
    pub environment: Option<fn(&str) -> Option<String>>,
    /// What only the end of a request tells: logs know it, header edits do not.
    pub ended: Option<&'a Ended<'a>>,
}

/// What is known at the end of a request or connection. Empty text is not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended<'a> {
    /// What `%TRAILER(X)%` reads.
    pub trailers: Option<&'a HeaderList>,
    /// Content of the request, or bytes from the client.
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub duration: Duration,
    /// From the start to the last byte of the request.
    pub request_duration: Option<Duration>,
    /// From the start to the first byte of the response.
    pub response_duration: Option<Duration>,
    /// `via_upstream`, or why we answered ourselves.
    pub code_details: &'a str,
    /// Why we ended a connection, if we did.
    pub termination_details: &'a str,
    /// Why no upstream could be reached.
    pub upstream_failure: &'a str,
    pub attempts: u32,
    pub grpc_status: Option<u8>,
    pub upstream_local: Option<SocketAddr>,
    /// The endpoint's host name, where it has one.
    pub upstream_host_name: &'a str,
    pub upstream_protocol: Option<Version>,
    /// URI SAN of the endpoint's certificate.
    pub upstream_uri_san: &'a str,
    /// URI SAN of our own certificate.
    pub local_uri_san: &'a str,
    /// The client showed a certificate that we verified.
    pub mtls: bool,
    /// The trace that the request belongs to, in hexadecimal.
    pub trace_id: &'a str,
    /// What decided the request's way, as `x-weft-why` tells.
    pub why: &'a str,
    /// Who calls, and who is called.
    pub downstream_peer: PeerFacts<'a>,
    pub upstream_peer: PeerFacts<'a>,
    /// Name of the listener's traffic direction: `inbound`, `outbound`.
    pub direction: &'a str,
}

/// A workload at the other end, as far as known. Empty text is not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerFacts<'a> {
    pub workload: &'a str,
    pub namespace: &'a str,
    pub cluster: &'a str,
    pub service: &'a str,
    pub revision: &'a str,
    pub app: &'a str,
    pub version: &'a str,
    pub principal: &'a str,
}

impl<'a> PeerFacts<'a> {
    /// By the names of Istio's workload object.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        let value = match name {
            "workload" | "name" => self.workload,
            "namespace" => self.namespace,
            "cluster" => self.cluster,
            "service" => self.service,
            "revision" => self.revision,
            "app" => self.app,
            "version" => self.version,
            "principal" | "identity" => self.principal,
            _ => "",
        };
        (!value.is_empty()).then_some(value)
    }
}
