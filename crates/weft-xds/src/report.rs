//! Load reports from proxies to the control plane: `weft.telemetry.v1.LoadReporting`.
//!
//! Envoy's `envoy.service.load_stats.v3` has no room for who called whom, so this is a service of
//! ours; a control plane that is not ours answers `UNIMPLEMENTED`, and nothing more is sent. A report
//! says what was added up since the one before, names each workload and service once, and is
//! acknowledged by its answer; one whose answer was lost is sent again under the same number, so that
//! nothing counts twice. Owns messages and both ends of the method. Must not know what is counted.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;

use crate::unary;

/// The full gRPC service name.
pub const SERVICE_NAME: &str = "weft.telemetry.v1.LoadReporting";
/// The path of the one method.
pub const REPORT: &str = "/weft.telemetry.v1.LoadReporting/Report";
/// Largest report we accept, in bytes; a busy proxy's is some 50 KiB.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One report.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportRequest {
    /// xDS node id; who sends is what the token proves.
    #[prost(string, tag = "1")]
    pub node: String,
    /// Random, of the proxy's process.
    #[prost(fixed64, tag = "2")]
    pub instance: u64,
    /// Counts this process' reports, from 1.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// Requests that no report tells of, since the process began.
    #[prost(uint64, tag = "4")]
    pub lost: u64,
    /// What the sender calls its own workload.
    #[prost(message, optional, tag = "5")]
    pub own: Option<Peer>,
    /// Workloads that `loads` and `records` name by index.
    #[prost(message, repeated, tag = "6")]
    pub peers: Vec<Peer>,
    /// Services that they name by index.
    #[prost(message, repeated, tag = "7")]
    pub services: Vec<Service>,
    #[prost(message, repeated, tag = "8")]
    pub loads: Vec<Load>,
    #[prost(message, repeated, tag = "9")]
    pub records: Vec<Access>,
    /// Records that found no room, since the process began.
    #[prost(uint64, tag = "10")]
    pub records_lost: u64,
    /// A gateway: its clients are outside.
    #[prost(bool, tag = "11")]
    pub gateway: bool,
}

/// A workload, as far as known; empty is unknown.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Peer {
    #[prost(string, tag = "1")]
    pub workload: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub app: String,
    #[prost(string, tag = "4")]
    pub version: String,
    /// SPIFFE id, where TLS proved it.
    #[prost(string, tag = "5")]
    pub principal: String,
    #[prost(string, tag = "6")]
    pub cluster: String,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    pub host: String,
    /// Also `PassthroughCluster` and `BlackHoleCluster`, as in Istio's metrics.
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// Which side tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Side {
    /// The caller's proxy, or a gateway.
    Source = 0,
    /// The called workload's.
    Destination = 1,
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Protocol {
    Http = 0,
    Grpc = 1,
    Tcp = 2,
}

/// What was added up for one interface of one pair.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Load {
    #[prost(enumeration = "Side", tag = "1")]
    pub side: i32,
    /// Index into `peers`.
    #[prost(uint32, tag = "2")]
    pub source: u32,
    #[prost(uint32, tag = "3")]
    pub destination: u32,
    /// Index into `services`.
    #[prost(uint32, tag = "4")]
    pub service: u32,
    #[prost(enumeration = "Protocol", tag = "5")]
    pub protocol: i32,
    /// Over mutual TLS, as far as this side knows.
    #[prost(bool, tag = "6")]
    pub mtls: bool,
    #[prost(string, tag = "7")]
    pub method: String,
    /// Template of the path.
    #[prost(string, tag = "8")]
    pub path: String,
    #[prost(uint64, tag = "9")]
    pub requests: u64,
    #[prost(message, repeated, tag = "10")]
    pub ends: Vec<Ends>,
    /// Buckets of `weft_telemetry::load`, ascending, and requests in each.
    #[prost(uint32, repeated, tag = "11")]
    pub buckets: Vec<u32>,
    #[prost(uint32, repeated, tag = "12")]
    pub counts: Vec<u32>,
    #[prost(uint64, tag = "13")]
    pub duration_us: u64,
    #[prost(uint64, tag = "14")]
    pub request_bytes: u64,
    #[prost(uint64, tag = "15")]
    pub response_bytes: u64,
    /// TCP connections.
    #[prost(uint64, tag = "16")]
    pub opened: u64,
    #[prost(uint64, tag = "17")]
    pub closed: u64,
}

/// How many requests ended in one way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ends {
    /// HTTP status; 0: the client left before there was one.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Envoy's short names, separated by commas; empty for none.
    #[prost(string, tag = "2")]
    pub flags: String,
    /// gRPC status and one; 0: none.
    #[prost(uint32, tag = "3")]
    pub grpc: u32,
    #[prost(uint64, tag = "4")]
    pub requests: u64,
}

/// One request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Access {
    /// Start, microseconds since 1970.
    #[prost(uint64, tag = "1")]
    pub time_us: u64,
    #[prost(enumeration = "Side", tag = "2")]
    pub side: i32,
    #[prost(uint32, tag = "3")]
    pub source: u32,
    #[prost(uint32, tag = "4")]
    pub destination: u32,
    #[prost(uint32, tag = "5")]
    pub service: u32,
    #[prost(enumeration = "Protocol", tag = "6")]
    pub protocol: i32,
    #[prost(string, tag = "7")]
    pub method: String,
    #[prost(string, tag = "8")]
    pub host: String,
    #[prost(string, tag = "9")]
    pub path: String,
    #[prost(uint32, tag = "10")]
    pub code: u32,
    #[prost(string, tag = "11")]
    pub flags: String,
    /// gRPC status and one; 0: none.
    #[prost(uint32, tag = "12")]
    pub grpc: u32,
    #[prost(uint64, tag = "13")]
    pub duration_us: u64,
    /// The client's address, `IP` or `IP:PORT`.
    #[prost(string, tag = "14")]
    pub source_address: String,
    /// The endpoint's.
    #[prost(string, tag = "15")]
    pub destination_address: String,
    #[prost(string, tag = "16")]
    pub request_id: String,
    #[prost(string, tag = "17")]
    pub trace_id: String,
    #[prost(uint64, tag = "18")]
    pub request_bytes: u64,
    #[prost(uint64, tag = "19")]
    pub response_bytes: u64,
}

/// The answer: received, and what is wanted from now on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportResponse {
    /// Time between reports, milliseconds.
    #[prost(uint32, tag = "1")]
    pub interval_ms: u32,
    /// Records of requests that failed (status 400 and above, or any flag).
    #[prost(bool, tag = "2")]
    pub errors: bool,
    /// Records of other requests, of a million.
    #[prost(uint32, tag = "3")]
    pub share: u32,
    /// Records a second, at most.
    #[prost(uint32, tag = "4")]
    pub records_max: u32,
}

/// Sends one report, with the token and the cluster it is from.
///
/// # Errors
/// `Unimplemented` from a control plane that wants none.
pub async fn send(
    channel: Channel,
    token: (Option<&str>, Option<&str>),
    report: ReportRequest,
) -> Result<ReportResponse, Status> {
    unary::call(channel, REPORT, token, report).await
}

/// The server half: a tower service for `tonic::transport::Server::add_service`.
pub struct ReportServer<M>(Arc<M>);

impl<M> ReportServer<M> {
    /// Every report goes to `method`.
    pub fn new(method: Arc<M>) -> Self {
        Self(method)
    }
}

impl<M> Clone for ReportServer<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> NamedService for ReportServer<M> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<M> tower::Service<http::Request<Body>> for ReportServer<M>
where
    M: unary::Method<ReportRequest, ReportResponse>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Arc::clone(&self.0);
        Box::pin(async move {
            match request.uri().path() {
                REPORT => Ok(unary::serve(method, REQUEST_BYTES_MAX, request).await),
                _ => Ok(Status::unimplemented("no such method").into_http()),
            }
        })
    }
}
