//! What the mesh and a proxy's own configuration (`defaultConfig`, ProxyConfig resources, the
//! annotation `proxy.istio.io/config`) say of every connection manager and route of a proxy.

use weft_model::spec::{
    ClientCertDetails, ForwardClientCert, NormalizationType, ProxyConfig, ProxyHeaders,
};
use weft_xds::pb::envoy::config::listener::v3::Listener;
use weft_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use weft_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as manager;

use crate::build::hcm::{Side, router_with};
use crate::build::{boolean, listener_filter};
use crate::listener::Built;
use crate::scope::Scope;
use crate::view::{Flavor, ProxyKind};

/// The part that connection managers need.
#[derive(Debug, Default)]
pub(crate) struct HttpSettings {
    headers: ProxyHeaders,
    /// What a gateway does with client certificates, where its topology says so.
    gateway_forward: ForwardClientCert,
    trusted_proxies: u32,
    path: NormalizationType,
}

impl HttpSettings {
    pub(crate) fn of(scope: &Scope<'_>) -> Self {
        let ProxyConfig { proxy_headers, gateway_topology, .. } = scope.config();
        let topology = gateway_topology.as_ref();
        HttpSettings {
            headers: proxy_headers.clone().unwrap_or_default(),
            gateway_forward: topology.map(|t| t.forward_client_cert_details).unwrap_or_default(),
            trusted_proxies: topology.map_or(0, |topology| topology.num_trusted_proxies),
            path: scope.snapshot.mesh().path_normalization.unwrap_or_default().normalization,
        }
    }

    /// Sets what differs from Istio's defaults.
    pub(crate) fn apply(
        &self,
        side: Side,
        flavor: Flavor,
        config: &mut hcm::HttpConnectionManager,
    ) {
        if side == Side::Gateway {
            config.xff_num_trusted_hops = self.trusted_proxies;
        }
        self.path(config);
        let headers = &self.headers;
        let switched_off = |switch: Option<weft_model::spec::HeaderSwitch>| {
            switch.is_some_and(|switch| switch.disabled)
        };
        if let Some(server) = headers.server.as_ref().filter(|server| !server.value.is_empty()) {
            config.server_name.clone_from(&server.value);
        }
        if switched_off(headers.request_id) {
            config.generate_request_id = boolean(false);
        }
        if headers.x_forwarded_port.is_some_and(|port| port.enabled) {
            config.append_x_forwarded_port = true;
        }
        if headers.preserve_http1_header_case == Some(false)
            && let Some(options) = &mut config.http_protocol_options
        {
            options.header_key_format = None;
        }
        if switched_off(headers.envoy_debug_headers) && flavor == Flavor::Envoy {
            let quiet = Router { suppress_envoy_headers: true, ..Default::default() };
            if let Some(last) = config.http_filters.last_mut() {
                *last = router_with(&quiet);
            }
        }
        let forward = match side {
            Side::Gateway if self.gateway_forward != ForwardClientCert::Undefined => {
                self.gateway_forward
            }
            Side::Gateway => ForwardClientCert::Undefined,
            Side::Inbound | Side::Outbound => headers.forwarded_client_cert,
        };
        client_cert(forward, headers.set_current_client_cert_details, config);
    }

    fn path(&self, config: &mut hcm::HttpConnectionManager) {
        match self.path {
            NormalizationType::Default | NormalizationType::Base => {}
            NormalizationType::None => config.normalize_path = boolean(false),
            NormalizationType::MergeSlashes => config.merge_slashes = true,
            NormalizationType::DecodeAndMergeSlashes => {
                config.merge_slashes = true;
                config.path_with_escaped_slashes_action =
                    manager::PathWithEscapedSlashesAction::UnescapeAndForward as i32;
            }
        }
    }
}

fn client_cert(
    forward: ForwardClientCert,
    details: Option<ClientCertDetails>,
    config: &mut hcm::HttpConnectionManager,
) {
    use manager::ForwardClientCertDetails as Pb;
    let forward = match forward {
        ForwardClientCert::Undefined => return,
        ForwardClientCert::Sanitize => Pb::Sanitize,
        ForwardClientCert::ForwardOnly => Pb::ForwardOnly,
        ForwardClientCert::AppendForward => Pb::AppendForward,
        ForwardClientCert::SanitizeSet => Pb::SanitizeSet,
        ForwardClientCert::AlwaysForwardOnly => Pb::AlwaysForwardOnly,
    };
    config.forward_client_cert_details = forward as i32;
    let sets = matches!(forward, Pb::AppendForward | Pb::SanitizeSet);
    let ClientCertDetails { subject, cert, chain, dns, uri } = details.unwrap_or_default();
    config.set_current_client_cert_details = sets.then(|| manager::SetCurrentClientCertDetails {
        subject: boolean(subject.unwrap_or(true)),
        cert: cert.unwrap_or(false),
        chain: chain.unwrap_or(false),
        dns: dns.unwrap_or(true),
        uri: uri.unwrap_or(true),
        ..Default::default()
    });
}

/// What is not a connection manager's: attempt counts of routes, the PROXY protocol at a gateway.
pub(crate) fn apply(scope: &Scope<'_>, built: &mut Built) {
    let ProxyConfig { proxy_headers, gateway_topology, .. } = scope.config();
    let attempts = proxy_headers.as_ref().and_then(|headers| headers.attempt_count);
    if attempts.is_some_and(|attempts| attempts.disabled) {
        let hosts = built.routes.iter_mut().flat_map(|routes| &mut routes.virtual_hosts);
        hosts.for_each(|host| host.include_request_attempt_count = false);
    }
    let topology = gateway_topology.as_ref();
    if scope.view.kind == ProxyKind::Gateway
        && topology.is_some_and(|topology| topology.proxy_protocol.is_some())
    {
        built.listeners.iter_mut().for_each(expect_proxy_protocol);
    }
}

fn expect_proxy_protocol(listener: &mut Listener) {
    const NAME: &str = "envoy.filters.listener.proxy_protocol";
    if listener.listener_filters.iter().all(|filter| filter.name != NAME) {
        listener.listener_filters.insert(0, listener_filter(NAME, &ProxyProtocol::default()));
    }
}
