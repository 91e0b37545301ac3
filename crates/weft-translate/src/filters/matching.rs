//! What a patch is for: Istio's match rules on listeners, chains, filters, routes and clusters.
//! An outer object is matched before an inner one.

use weft_model::spec::{ApplyTo, FilterChainMatch, ListenerMatch, PatchContext, RouteActionKind};
use weft_xds::names::{self, ClusterName};
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::core::v3::address::Address;
use weft_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_xds::pb::envoy::config::listener::v3::{FilterChain, Listener};
use weft_xds::pb::envoy::config::route::v3::{
    Route, RouteConfiguration, VirtualHost, route::Action,
};
use weft_xds::pb::google::protobuf::value::Kind;

use super::compile::Compiled;

/// One listener for all ports: the port of the match is then that of a chain.
fn is_virtual(listener: &Listener) -> bool {
    matches!(listener.name.as_str(), names::VIRTUAL_INBOUND | names::VIRTUAL_OUTBOUND)
}

fn port_of(listener: &Listener) -> Option<u32> {
    match listener.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
            PortSpecifier::PortValue(port) => Some(*port),
            PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

impl Compiled {
    fn listener_match(&self) -> Option<&ListenerMatch> {
        self.matches.listener.as_ref()
    }

    fn chain_match(&self) -> Option<&FilterChainMatch> {
        self.listener_match()?.filter_chain.as_ref()
    }

    pub(super) fn is_of_listener(&self, listener: &Listener) -> bool {
        let Some(wanted) = self.listener_match() else { return true };
        if !wanted.name.is_empty() && wanted.name != listener.name {
            return false;
        }
        let by_chain = self.apply_to != ApplyTo::Listener && is_virtual(listener);
        by_chain || wanted.port_number == 0 || port_of(listener) == Some(wanted.port_number)
    }

    pub(super) fn is_of_chain(&self, listener: &Listener, chain: &FilterChain) -> bool {
        let Some(wanted) = self.listener_match() else { return true };
        let matching = chain.filter_chain_match.as_ref();
        let port = matching.and_then(|m| m.destination_port).map(|port| port.value);
        if is_virtual(listener) && wanted.port_number != 0 && port != Some(wanted.port_number) {
            return false;
        }
        let Some(wanted) = &wanted.filter_chain else { return true };
        let FilterChainMatch {
            name,
            sni,
            transport_protocol,
            application_protocols,
            filter: _,
            destination_port,
            transport_socket,
        } = wanted;
        let has_all = |wanted: &str| {
            matching.is_some_and(|m| {
                wanted.split(',').all(|one| m.application_protocols.iter().any(|p| p == one))
            })
        };
        (name.is_empty() || *name == chain.name)
            && (sni.is_empty() || matching.is_some_and(|m| m.server_names.contains(sni)))
            && (transport_protocol.is_empty()
                || matching.is_some_and(|m| m.transport_protocol == *transport_protocol))
            && (application_protocols.is_empty() || has_all(application_protocols))
            && (*destination_port == 0 || port == Some(*destination_port))
            && (transport_socket.is_empty()
                || chain.transport_socket.as_ref().is_some_and(|s| s.name == *transport_socket))
    }

    /// The listener filter that is looked for, if one is.
    pub(super) fn listener_filter(&self) -> Option<&str> {
        let name = self.listener_match()?.listener_filter.as_str();
        (!name.is_empty()).then_some(name)
    }

    /// The network filter that is looked for, if one is.
    pub(super) fn network_filter(&self) -> Option<&str> {
        Some(self.chain_match()?.filter.as_ref()?.name.as_str())
    }

    /// The HTTP filter that is looked for, if one is.
    pub(super) fn http_filter(&self) -> Option<&str> {
        Some(self.chain_match()?.filter.as_ref()?.sub_filter.as_ref()?.name.as_str())
    }

    pub(super) fn is_of_routes(&self, context: PatchContext, routes: &RouteConfiguration) -> bool {
        let Some(wanted) = &self.matches.route_configuration else { return true };
        if !wanted.name.is_empty() && wanted.name != routes.name {
            return false;
        }
        let (port, port_name, gateway) = match context {
            PatchContext::Gateway => gateway_route(&routes.name),
            // `PORT`, `HOST:PORT`, or the inbound cluster's name.
            _ => match ClusterName::parse(&routes.name) {
                Some(ClusterName::Inbound { port }) => (Some(u32::from(port)), "", String::new()),
                _ => {
                    let port = routes.name.rsplit(':').next().and_then(|port| port.parse().ok());
                    (port, "", String::new())
                }
            },
        };
        let at_port = wanted.port_number == 0 || port == Some(wanted.port_number);
        let at_gateway = context != PatchContext::Gateway
            || ((wanted.port_name.is_empty() || wanted.port_name == port_name)
                && (wanted.gateway.is_empty() || wanted.gateway == gateway));
        at_port && at_gateway
    }

    pub(super) fn is_of_host(&self, host: &VirtualHost) -> bool {
        let wanted = self.matches.route_configuration.as_ref().and_then(|m| m.vhost.as_ref());
        wanted.is_none_or(|wanted| {
            (wanted.name.is_empty() || wanted.name == host.name)
                && (wanted.domain_name.is_empty() || host.domains.contains(&wanted.domain_name))
        })
    }

    /// Does it look for a route by name or action?
    pub(super) fn names_route(&self) -> bool {
        let host = self.matches.route_configuration.as_ref().and_then(|m| m.vhost.as_ref());
        host.is_some_and(|host| host.route.is_some())
    }

    pub(super) fn is_of_route(&self, route: &Route) -> bool {
        let host = self.matches.route_configuration.as_ref().and_then(|m| m.vhost.as_ref());
        let Some(wanted) = host.and_then(|host| host.route.as_ref()) else { return true };
        let action = match (wanted.action, &route.action) {
            (RouteActionKind::Any, _) => true,
            (wanted, Some(Action::Route(_))) => wanted == RouteActionKind::Route,
            (wanted, Some(Action::Redirect(_))) => wanted == RouteActionKind::Redirect,
            (wanted, Some(Action::DirectResponse(_))) => wanted == RouteActionKind::DirectResponse,
            (_, _) => true,
        };
        action && (wanted.name.is_empty() || wanted.name == route.name)
    }

    pub(super) fn is_of_cluster(&self, cluster: &Cluster) -> bool {
        let Some(wanted) = &self.matches.cluster else { return true };
        if !wanted.name.is_empty() {
            return wanted.name == cluster.name;
        }
        let (port, subset, hosts) = match ClusterName::parse(&cluster.name) {
            Some(ClusterName::Outbound { port, subset, host }) => {
                (u32::from(port), subset, vec![host.to_owned()])
            }
            Some(ClusterName::Inbound { port }) => (u32::from(port), "", inbound_hosts(cluster)),
            _ => (0, "", Vec::new()),
        };
        (wanted.subset.is_empty() || wanted.subset == subset)
            && (wanted.service.is_empty() || hosts.contains(&wanted.service))
            && (wanted.port_number == 0 || wanted.port_number == port)
    }
}

/// `http.80` or `https.443.NAME.GATEWAY.NAMESPACE`: port, its name, and the Gateway.
fn gateway_route(name: &str) -> (Option<u32>, &str, String) {
    let mut parts = name.split('.').skip(1);
    let port = parts.next().and_then(|port| port.parse().ok());
    let port_name = parts.next().unwrap_or("");
    let gateway = match (parts.next(), parts.next()) {
        (Some(gateway), Some(namespace)) => format!("{namespace}/{gateway}"),
        _ => String::new(),
    };
    (port, port_name, gateway)
}

/// Hosts of the services behind an inbound cluster: `filter_metadata.istio.services`.
fn inbound_hosts(cluster: &Cluster) -> Vec<String> {
    let istio = cluster.metadata.as_ref().and_then(|all| all.filter_metadata.get("istio"));
    let services = istio.and_then(|istio| istio.fields.get("services"));
    let Some(Kind::ListValue(services)) = services.and_then(|value| value.kind.as_ref()) else {
        return Vec::new();
    };
    let host = |service: &weft_xds::pb::google::protobuf::Value| match service.kind.as_ref()? {
        Kind::StructValue(fields) => match fields.fields.get("host")?.kind.as_ref()? {
            Kind::StringValue(host) => Some(host.clone()),
            _ => None,
        },
        _ => None,
    };
    services.values.iter().filter_map(host).collect()
}
