//! Filter chains of one workload port: mutual TLS or plaintext, HTTP or bytes, as
//! PeerAuthentication and the port's protocol say.
//!
//! Where no single chain can tell, the order of Envoy's matching decides: destination port, then
//! transport protocol (TLS or not), then the protocols the client offered.

use std::time::Duration;

use weft_model::{MtlsMode, Protocol};
use weft_xds::names;
use weft_xds::pb::envoy::config::core::v3::TransportSocket;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::config::route::v3 as route;

use super::gateway_tls::version;
use crate::build::hcm::{Http, Routes, Side, http};
use crate::build::tcp::{Tcp, tcp, tcp_to};
use crate::build::tls::{
    Certificate, ClientCheck, MESH_ROOTS, ServerParams, Trust, WORKLOAD_CERT, downstream,
};
use crate::build::uint32;
use crate::route::action::timeouts;
use crate::route::matching::everything;
use crate::scope::Scope;
use crate::settings::HttpSettings;
use crate::telemetry::{access_logs, tracing};

/// What Istio's clients offer in ALPN when they speak mutual TLS, by what they know is inside.
const ISTIO_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const ISTIO_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];
/// What clients outside the mesh offer when they speak HTTP over TLS.
const OFFERED_HTTP: [&str; 3] = ["h2", "http/1.1", "http/1.0"];
/// What the HTTP inspector reports for plaintext HTTP.
const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// One port on which the workload receives traffic.
#[derive(Debug, Clone)]
pub(crate) struct InboundPort {
    /// The workload's port (a Service's target port).
    pub(crate) port: u16,
    /// The Service's port, by which EnvoyFilters know it.
    pub(crate) service_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: MtlsMode,
    /// Cluster that leads to the application.
    pub(crate) cluster: String,
    /// Host of the service, for the trace operation name.
    pub(crate) host: String,
    pub(crate) own_tls: OwnTls,
    /// Of connections that carry bytes.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) duration_max: Option<Duration>,
}

/// TLS that the Sidecar's `ingress` asks for, for clients outside the mesh.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OwnTls {
    No,
    Socket(Box<TransportSocket>),
    /// There is nothing to serve with; serving in plain text would be worse than not at all.
    Broken,
}

/// What a chain does with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Http,
    Bytes,
}

/// Which connections a chain takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    /// TLS that we terminate as mutual TLS.
    Mutual,
    /// TLS that we terminate with the workload's own server certificate.
    Own,
    /// TLS that belongs to the application; passed on untouched.
    Foreign,
    Plain,
}

struct Chain {
    transport: Transport,
    offered: &'static [&'static str],
    content: Content,
}

/// All ALPN names of Istio's clients.
pub(super) const ISTIO_ANY: [&str; 5] =
    ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// Chains of a port; with `by_port` they match on the destination port (one listener for all
/// ports), else the listener is the port's own.
pub(crate) fn chains(
    scope: &Scope<'_>,
    port: &InboundPort,
    by_port: bool,
) -> Vec<listener::FilterChain> {
    let content = content(port.protocol);
    let wanted = match port.own_tls {
        OwnTls::No => plan(port.mode, content),
        OwnTls::Socket(_) | OwnTls::Broken => own_tls_plan(content),
    };
    wanted.iter().map(|chain| build(scope, port, chain, by_port)).collect()
}

/// Does choosing among the port's chains need to look at the first bytes? (TLS, HTTP)
pub(crate) fn inspection(port: &InboundPort) -> (bool, bool) {
    let own_tls = port.own_tls != OwnTls::No;
    let tls = port.mode != MtlsMode::Disable || own_tls;
    let http = content(port.protocol).is_none() && port.mode != MtlsMode::Strict && !own_tls;
    (tls, http)
}

/// `None`: not declared, to be found out per connection.
fn content(protocol: Protocol) -> Option<Content> {
    if protocol == Protocol::Auto {
        return None;
    }
    Some(if protocol.is_http() { Content::Http } else { Content::Bytes })
}

fn plan(mode: MtlsMode, content: Option<Content>) -> Vec<Chain> {
    let chain = |transport, offered, content| Chain { transport, offered, content };
    match (mode, content) {
        (MtlsMode::Disable, Some(known)) => vec![chain(Transport::Plain, &[], known)],
        (MtlsMode::Disable, None) => vec![
            chain(Transport::Plain, &PLAIN_HTTP, Content::Http),
            chain(Transport::Plain, &[], Content::Bytes),
        ],
        (MtlsMode::Strict, Some(known)) => vec![chain(Transport::Mutual, &[], known)],
        (MtlsMode::Strict, None) => vec![
            chain(Transport::Mutual, &ISTIO_HTTP, Content::Http),
            chain(Transport::Mutual, &[], Content::Bytes),
        ],
        (MtlsMode::Permissive, Some(known)) => vec![
            chain(Transport::Mutual, &ISTIO_ANY, known),
            chain(Transport::Plain, &[], known),
            chain(Transport::Foreign, &[], Content::Bytes),
        ],
        (MtlsMode::Permissive, None) => vec![
            chain(Transport::Mutual, &ISTIO_HTTP, Content::Http),
            chain(Transport::Mutual, &ISTIO_TCP, Content::Bytes),
            chain(Transport::Plain, &PLAIN_HTTP, Content::Http),
            chain(Transport::Plain, &[], Content::Bytes),
            chain(Transport::Foreign, &[], Content::Bytes),
        ],
    }
}

fn own_tls_plan(content: Option<Content>) -> Vec<Chain> {
    let chain = |offered, content| Chain { transport: Transport::Own, offered, content };
    match content {
        Some(known) => vec![chain(&[], known)],
        None => vec![chain(&OFFERED_HTTP, Content::Http), chain(&[], Content::Bytes)],
    }
}

fn build(
    scope: &Scope<'_>,
    port: &InboundPort,
    chain: &Chain,
    by_port: bool,
) -> listener::FilterChain {
    let filter = match chain.content {
        _ if port.own_tls == OwnTls::Broken => {
            tcp_to(names::BLACK_HOLE_CLUSTER, access_logs(scope, Side::Inbound))
        }
        Content::Http => http(Http {
            stat_prefix: format!("inbound_0.0.0.0_{}", port.port),
            routes: Routes::Inline(Box::new(routes(port))),
            side: Side::Inbound,
            flavor: scope.view.flavor,
            tracing: tracing(scope, Side::Inbound),
            stats: crate::metrics::of_http(scope, Side::Inbound),
            access_log: access_logs(scope, Side::Inbound),
            settings: HttpSettings::of(scope),
            grpc_web: port.protocol == Protocol::GrpcWeb,
            names: None,
        }),
        Content::Bytes => tcp(Tcp {
            stat_prefix: port.cluster.clone(),
            clusters: vec![(port.cluster.clone(), 1)],
            idle_timeout: port.idle_timeout,
            duration_max: port.duration_max,
            access_log: access_logs(scope, Side::Inbound),
            ..Default::default()
        }),
    };
    let transport_protocol = match chain.transport {
        Transport::Mutual | Transport::Own | Transport::Foreign => "tls",
        // A listener that is never inspected cannot match on "not TLS".
        Transport::Plain if port.mode == MtlsMode::Disable => "",
        Transport::Plain => "raw_buffer",
    };
    let matching = listener::FilterChainMatch {
        destination_port: if by_port { uint32(u32::from(port.port)) } else { None },
        transport_protocol: transport_protocol.to_owned(),
        application_protocols: chain.offered.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    listener::FilterChain {
        name: chain_name(port.port, chain),
        filter_chain_match: (matching != Default::default()).then_some(matching),
        filters: vec![filter],
        transport_socket: match (chain.transport, &port.own_tls) {
            (Transport::Mutual, _) => Some(mutual_tls(scope)),
            (Transport::Own, OwnTls::Socket(socket)) => Some((**socket).clone()),
            (Transport::Own | Transport::Foreign | Transport::Plain, _) => None,
        },
        ..Default::default()
    }
}

fn chain_name(port: u16, chain: &Chain) -> String {
    let transport = match chain.transport {
        Transport::Mutual => "mtls",
        Transport::Own => "own_tls",
        Transport::Foreign => "tls",
        Transport::Plain => "plain",
    };
    let content = match chain.content {
        Content::Http => "http",
        Content::Bytes => "tcp",
    };
    format!("0.0.0.0_{port}_{transport}_{content}")
}

/// Clients prove an identity of our trust domains.
pub(crate) fn mutual_tls(scope: &Scope<'_>) -> TransportSocket {
    let trust = Trust::Sds { roots: MESH_ROOTS.to_owned(), names: scope.trusted_clients() };
    let certificate = Certificate::Sds(WORKLOAD_CERT.to_owned());
    let mesh = scope.snapshot.mesh().mesh_mtls.as_ref();
    downstream(
        &[certificate],
        &trust,
        ClientCheck::Required,
        &["h2", "http/1.1"],
        &ServerParams {
            minimum: mesh.and_then(|tls| version(tls.min_protocol_version)),
            suites: scope.mesh_suites(),
            ..Default::default()
        },
    )
}

/// All requests to the application.
fn routes(port: &InboundPort) -> route::RouteConfiguration {
    let mut action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
            port.cluster.clone(),
        )),
        ..Default::default()
    };
    timeouts(&mut action, Duration::ZERO, false);
    let only = route::Route {
        name: "default".to_owned(),
        r#match: Some(everything()),
        decorator: Some(route::Decorator {
            operation: format!("{}:{}/*", port.host, port.port),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    route::RouteConfiguration {
        name: port.cluster.clone(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{}", port.service_port),
            domains: vec!["*".to_owned()],
            routes: vec![only],
            ..Default::default()
        }],
        validate_clusters: crate::build::boolean(false),
        ..Default::default()
    }
}
