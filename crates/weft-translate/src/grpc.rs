//! Proxyless gRPC: one API listener for each name a client may dial, one route configuration for
//! each service port.
//!
//! grpc's client asks for listeners by the name in `xds:///NAME`, so all names of a service are
//! there; it subscribes to the ones it wants.

use weft_model::gateway_api::Route;
use weft_model::{MESH_GATEWAY, MeshService, Protocol};
use weft_xds::names;
use weft_xds::pb::envoy::config::listener::v3::{ApiListener, Listener};
use weft_xds::pb::envoy::config::route::v3 as route;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use crate::build::hcm::router;
use crate::build::{ads, any};
use crate::findings::{Findings, NOT_IMPLEMENTED};
use crate::listener::Built;
use crate::route::{Place, api, default_route, of_virtual_service, vhost};
use crate::scope::{Egress, Scope};

pub(crate) fn all(scope: &Scope<'_>, built: &mut Built, findings: &mut Findings) {
    for egress in scope.egress() {
        for service in egress.services(scope) {
            let dialable = |protocol| protocol != Protocol::Udp;
            for port in service.ports.iter().filter(|port| dialable(port.protocol)) {
                add(scope, &egress, service, port.number, built, findings);
            }
        }
    }
}

fn add<'a>(
    scope: &Scope<'a>,
    egress: &Egress<'a>,
    service: &MeshService,
    port: u16,
    built: &mut Built,
    findings: &mut Findings,
) {
    let routes = names::grpc_route(&service.host, port);
    if built.routes.iter().any(|other| other.name == routes) {
        return;
    }
    for host in vhost::names_of(&service.host, &scope.view.namespace) {
        built.listeners.push(api_listener(names::grpc_listener(&host, port), &routes));
    }
    let place = Place { gateway: MESH_GATEWAY, port };
    let rules = egress.virtual_service(scope, &service.host);
    let attached = scope.snapshot.mesh_routes(&service.host, port, &scope.view.namespace, true);
    report_unsupported(&attached, findings);
    let mut list = match (rules, attached.is_empty()) {
        (_, false) => api::routes(scope, &attached, &place, false),
        (Some(rules), true) => of_virtual_service(scope, rules, &place, findings),
        (None, true) => Vec::new(),
    };
    if list.is_empty() && attached.is_empty() {
        let cluster = names::outbound_cluster(port, "", &service.host);
        list = vec![default_route(scope, cluster, &service.host, port)];
    }
    built.routes.push(vhost::configuration(
        &routes,
        vec![route::VirtualHost {
            name: format!("{}:{port}", service.host),
            // The client has chosen the service already; its authority may be anything.
            domains: vec!["*".to_owned()],
            routes: list,
            ..Default::default()
        }],
    ));
}

/// Filters that proxies act on and gRPC's own clients do not.
fn report_unsupported(attached: &[&Route], findings: &mut Findings) {
    for route in attached {
        for (path, filter) in route.filters() {
            if matches!(filter.filter_type.as_str(), "RequestMirror" | "CORS") {
                let message = "not done by gRPC's own clients; the filter has no effect there";
                let origin = &route.meta().origin;
                findings.add_to(route.key(), origin, NOT_IMPLEMENTED, &path, message);
            }
        }
    }
}

fn api_listener(name: String, routes: &str) -> Listener {
    let manager = hcm::HttpConnectionManager {
        stat_prefix: name.clone(),
        http_filters: vec![router()],
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: routes.to_owned(),
        })),
        ..Default::default()
    };
    Listener {
        name,
        api_listener: Some(ApiListener { api_listener: Some(any(&manager)) }),
        ..Default::default()
    }
}
