//! Listeners and the route configurations they refer to.
//!
//! `bound` is for sidecars without capture, `captured` for those behind iptables, `gateway` for
//! the edge; `inbound` and `bytes` build filter chains for them.

mod bound;
pub(crate) mod bytes;
mod captured;
mod gateway;
mod gateway_routes;
mod gateway_tls;
mod inbound;

use weft_model::{Kind, MtlsMode, Protocol};
use weft_xds::pb::envoy::config::core::v3::{Address, TrafficDirection};
use weft_xds::pb::envoy::config::listener::v3::{FilterChain, Listener, ListenerFilter};
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;
use weft_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use weft_xds::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use weft_xds::pb::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use weft_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

use inbound::OwnTls;

use crate::build::hcm::{Http, Routes, Side, http};
use crate::build::{duration, listener_filter};
use crate::findings::{Findings, NOT_IMPLEMENTED};
use crate::grpc;
use crate::ports::WorkloadPort;
use crate::scope::Scope;
use crate::settings::HttpSettings;
use crate::telemetry::{access_logs, listener_logs, tracing};
use crate::view::{Interception, ProxyKind};

/// What listeners need besides clusters.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) routes: Vec<RouteConfiguration>,
}

impl Built {
    /// Connections that no filter chain takes are logged, too.
    fn log_unrouted(&mut self, scope: &Scope<'_>, side: Side) {
        let logs = listener_logs(scope, side);
        for listener in &mut self.listeners {
            listener.access_log.clone_from(&logs);
        }
    }
}

/// A client's side: what its application's requests need.
pub(crate) fn outbound(scope: &Scope<'_>, findings: &mut Findings) -> Built {
    let mut built = Built::default();
    match scope.view.kind {
        ProxyKind::Gateway => {}
        ProxyKind::Grpc => grpc::all(scope, &mut built, findings),
        ProxyKind::Sidecar => {
            bound::egress(scope, &mut built, findings);
            if scope.view.interception != Interception::None {
                captured::outbound(scope, &mut built, findings);
            }
            built.log_unrouted(scope, Side::Outbound);
        }
    }
    built
}

/// A sidecar's side towards its own application.
pub(crate) fn inbound(scope: &Scope<'_>, findings: &mut Findings) -> Built {
    let mut built = Built::default();
    bound::ingress(scope, &mut built, findings);
    if scope.view.interception != Interception::None {
        built.listeners.push(captured::virtual_inbound(scope, findings));
    }
    built.log_unrouted(scope, Side::Inbound);
    built
}

pub(crate) fn gateway(scope: &Scope<'_>, findings: &mut Findings) -> Built {
    let mut built = Built::default();
    gateway::all(scope, &mut built, findings);
    built.log_unrouted(scope, Side::Gateway);
    built
}

/// A listener with its fixed fields.
fn listener(name: String, address: Address, direction: TrafficDirection) -> Listener {
    Listener {
        name,
        address: Some(address),
        traffic_direction: direction as i32,
        ..Default::default()
    }
}

/// Istio's mark of connections that come from the proxy with the client's address; the capture
/// rules know them by it.
const TPROXY_MARK: u32 = 1337;

/// What a listener finds out of a connection before it chooses a chain.
#[derive(Debug, Clone, Copy, Default)]
struct Inspection {
    original_dst: bool,
    /// The application is to see the client's address.
    original_src: bool,
    tls: bool,
    http: bool,
}

impl Inspection {
    fn add(&mut self, other: Inspection) {
        self.original_dst |= other.original_dst;
        self.original_src |= other.original_src;
        self.tls |= other.tls;
        self.http |= other.http;
    }

    fn filters(self) -> Vec<ListenerFilter> {
        let mut filters = Vec::new();
        if self.original_dst {
            let config = OriginalDst::default();
            filters.push(listener_filter("envoy.filters.listener.original_dst", &config));
        }
        if self.original_src {
            let config = OriginalSrc { mark: TPROXY_MARK, ..Default::default() };
            filters.push(listener_filter("envoy.filters.listener.original_src", &config));
        }
        if self.tls {
            let config = TlsInspector::default();
            filters.push(listener_filter("envoy.filters.listener.tls_inspector", &config));
        }
        if self.http {
            let config = HttpInspector::default();
            filters.push(listener_filter("envoy.filters.listener.http_inspector", &config));
        }
        filters
    }

    /// Sets the filters and how long they wait for bytes (`protocolDetectionTimeout`; Istio's
    /// default is for ever).
    fn apply(self, scope: &Scope<'_>, listener: &mut Listener) {
        listener.listener_filters = self.filters();
        if self.tls || self.http {
            let timeout = scope.snapshot.mesh().protocol_detection_timeout.unwrap_or_default();
            listener.listener_filters_timeout = duration(timeout);
            listener.continue_on_listener_filters_timeout = !timeout.is_zero();
        }
    }

    fn of_inbound(port: &inbound::InboundPort) -> Self {
        let (tls, http) = inbound::inspection(port);
        Inspection { tls, http, ..Default::default() }
    }
}

/// The inbound side's view of a workload port.
fn inbound_port(
    scope: &Scope<'_>,
    port: &WorkloadPort<'_>,
    findings: &mut Findings,
) -> inbound::InboundPort {
    let own_tls = own_tls(scope, port, findings);
    let protocol = match (&own_tls, port.protocol) {
        (OwnTls::No, protocol) => protocol,
        (_, Protocol::Https) => Protocol::Http,
        (_, protocol) if protocol.is_tls() => Protocol::Tcp,
        (_, protocol) => protocol,
    };
    let tcp = port.pool.and_then(|pool| pool.tcp.as_ref());
    inbound::InboundPort {
        port: port.port,
        service_port: port.service_port,
        protocol,
        mode: port.mode,
        cluster: weft_xds::names::inbound_cluster(port.port),
        host: port
            .service
            .map_or_else(|| "localhost".to_owned(), |service| service.host.to_string()),
        own_tls,
        idle_timeout: tcp.and_then(|tcp| tcp.idle_timeout),
        duration_max: tcp.and_then(|tcp| tcp.max_connection_duration),
    }
}

/// As in Istio: only where PeerAuthentication switches the mesh's own TLS off for the port.
fn own_tls(scope: &Scope<'_>, port: &WorkloadPort<'_>, findings: &mut Findings) -> OwnTls {
    let (Some(sidecar), Some((index, declared))) = (scope.sidecar, port.ingress) else {
        return OwnTls::No;
    };
    let Some(tls) = &declared.tls else { return OwnTls::No };
    if port.mode != MtlsMode::Disable {
        let message = "clients use the mesh's mutual TLS here; this needs a PeerAuthentication \
                       with mode DISABLE for the port";
        let path = format!("spec.ingress[{index}].tls");
        findings.add(Kind::Sidecar, &sidecar.meta, NOT_IMPLEMENTED, &path, message);
        return OwnTls::No;
    }
    let owner = gateway_tls::Owner::Ingress { sidecar, index };
    let alpn = ["h2", "http/1.1"];
    let is_http =
        port.protocol.is_http() || matches!(port.protocol, Protocol::Https | Protocol::Auto);
    let alpn = if is_http { &alpn[..] } else { &[] };
    match gateway_tls::socket(scope, owner, tls, alpn, findings) {
        Some(socket) => OwnTls::Socket(Box::new(socket)),
        None => OwnTls::Broken,
    }
}

/// An outbound HTTP connection manager whose routes come over RDS.
fn outbound_http(
    scope: &Scope<'_>,
    stat_prefix: String,
    routes: &str,
    grpc_web: bool,
) -> FilterChain {
    FilterChain {
        filters: vec![http(Http {
            stat_prefix,
            routes: Routes::Rds(routes.to_owned()),
            side: Side::Outbound,
            flavor: scope.view.flavor,
            tracing: tracing(scope, Side::Outbound),
            stats: crate::metrics::of_http(scope, Side::Outbound),
            access_log: access_logs(scope, Side::Outbound),
            settings: HttpSettings::of(scope),
            grpc_web,
            names: scope.resolves_on_demand().then(|| scope.lookup_family() as i32),
        })],
        ..Default::default()
    }
}

/// What undeclared workload ports accept.
fn default_mode(scope: &Scope<'_>) -> MtlsMode {
    scope.snapshot.peer_mode_for(&scope.view.namespace, &scope.view.labels, 0)
}
