//! What the Gateway API's resources mean together: which listeners are served, which routes attach
//! to them or to Services, which references hold. `attach` finds that out, `reference` judges one
//! reference, `status` says it in the API's conditions.

mod attach;
mod policy;
mod reference;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Snapshot;
use super::table::Table;
use crate::names::resolve_host;
use crate::object::{Kind, Labels, Meta, Resource, ResourceKey};
use crate::spec;
use crate::spec::gateway_api as api;

pub use policy::BackendTls;
pub use reference::{Backend, RefProblem};
pub(in crate::snapshot) use status::findings;
pub use status::{Condition, ListenerStatus, ParentStatus, Status};

/// Istio's name as a controller of Gateways.
pub const CONTROLLER: &str = "istio.io/gateway-controller";
/// The class that exists without a GatewayClass resource, as Istio makes it on its own.
const BUILT_IN_CLASS: &str = "istio";
/// Label of the proxies that were made for a Gateway.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Istio's older spelling of it.
const OLD_GATEWAY_NAME_LABEL: &str = "istio.io/gateway-name";

/// The resources as they are, by kind.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    pub(crate) classes: Table<Resource<api::GatewayClass>>,
    pub(crate) gateways: Table<Resource<api::Gateway>>,
    pub(crate) listener_sets: Table<Resource<api::ListenerSet>>,
    pub(crate) http_routes: Table<Resource<api::HttpRoute>>,
    pub(crate) grpc_routes: Table<Resource<api::GrpcRoute>>,
    pub(crate) tls_routes: Table<Resource<api::TlsRoute>>,
    pub(crate) tcp_routes: Table<Resource<api::TcpRoute>>,
    pub(crate) udp_routes: Table<Resource<api::TcpRoute>>,
    pub(crate) backend_tls_policies: Table<Resource<api::BackendTlsPolicy>>,
    pub(crate) reference_grants: Table<Resource<api::ReferenceGrant>>,
}

impl Tables {
    /// Whether both are the very same tables.
    pub(crate) fn is_same(&self, other: &Tables) -> bool {
        let Tables {
            classes,
            gateways,
            listener_sets,
            http_routes,
            grpc_routes,
            tls_routes,
            tcp_routes,
            udp_routes,
            backend_tls_policies,
            reference_grants,
        } = self;
        classes.is_same(&other.classes)
            && gateways.is_same(&other.gateways)
            && listener_sets.is_same(&other.listener_sets)
            && http_routes.is_same(&other.http_routes)
            && grpc_routes.is_same(&other.grpc_routes)
            && tls_routes.is_same(&other.tls_routes)
            && tcp_routes.is_same(&other.tcp_routes)
            && udp_routes.is_same(&other.udp_routes)
            && backend_tls_policies.is_same(&other.backend_tls_policies)
            && reference_grants.is_same(&other.reference_grants)
    }
}

/// Listeners with their routes, and the mesh's routes.
#[derive(Debug, Default)]
pub struct GatewayApi {
    /// Gateways of our classes, the oldest first.
    pub gateways: Vec<ServedGateway>,
    /// Routes whose parent is a service (GAMMA), by the service's host, the oldest first.
    mesh: BTreeMap<String, Vec<MeshRoute>>,
    /// What every parent reference of every route came to.
    parents: Vec<Attempt>,
}

/// A Gateway with all its listeners, those of its ListenerSets too.
#[derive(Debug)]
pub struct ServedGateway {
    pub resource: Arc<Resource<api::Gateway>>,
    /// The Gateway's own first, then ListenerSets', the oldest first.
    pub listeners: Vec<ServedListener>,
    /// ListenerSets that name the Gateway, and whether it lets them.
    sets: Vec<(Arc<Resource<api::ListenerSet>>, bool)>,
}

#[derive(Debug)]
pub struct ServedListener {
    /// Where it is written: a Gateway or a ListenerSet.
    pub owner: ResourceKey,
    /// Index in the owner's `spec.listeners`.
    pub index: usize,
    pub spec: api::Listener,
    /// The same in the words of Istio's Gateway: one server, named after owner and listener.
    pub as_istio: Resource<spec::Gateway>,
    /// Routes that attach, the oldest first.
    pub routes: Vec<Attachment>,
    /// Certificates that may be served, as `(namespace, name)` of their Secrets.
    pub certificates: Vec<(String, String)>,
    /// Where clients' certificates must come from, when they are asked for.
    pub client: Option<ClientTrust>,
    problems: Problems,
    kinds: Vec<Kind>,
}

/// What keeps a listener from being what it says; `(reason, message)` each.
#[derive(Debug, Default)]
struct Problems {
    conflict: Option<(&'static str, String)>,
    accepted: Option<(&'static str, String)>,
    references: Option<(&'static str, String)>,
}

impl ServedListener {
    /// Are connections to be served?
    pub fn is_usable(&self) -> bool {
        self.problems.conflict.is_none()
            && self.problems.accepted.is_none()
            && !(self.terminates() && self.certificates.is_empty())
    }

    /// TLS ends here.
    pub fn terminates(&self) -> bool {
        let mode = self.spec.tls.as_ref().map_or(api::TlsMode::Terminate, |tls| tls.mode);
        matches!(self.spec.protocol.as_str(), "HTTPS" | "TLS") && mode == api::TlsMode::Terminate
    }

    /// The host or pattern it serves.
    pub fn hostname(&self) -> &str {
        self.spec.hostname.as_deref().filter(|host| !host.is_empty()).unwrap_or("*")
    }
}

/// CA certificates that clients' certificates are judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTrust {
    /// ConfigMap or Secret, namespace, name.
    pub roots: (Kind, String, String),
    pub mode: api::FrontendMode,
}

/// A route on a listener.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub route: Route,
    /// Of each overlapping pair of listener's and route's hosts the narrower; `*`: any.
    pub hostnames: Vec<String>,
}

/// A route on a service.
#[derive(Debug, Clone)]
pub struct MeshRoute {
    pub route: Route,
    /// One port only.
    pub port: Option<u16>,
    /// For clients of this namespace only: the route's, when it is not the service's.
    pub consumer: Option<Arc<str>>,
}

/// A route of any kind.
#[derive(Debug, Clone)]
pub enum Route {
    Http(Arc<Resource<api::HttpRoute>>),
    Grpc(Arc<Resource<api::GrpcRoute>>),
    Tls(Arc<Resource<api::TlsRoute>>),
    Tcp(Arc<Resource<api::TcpRoute>>),
}

impl Route {
    pub fn meta(&self) -> &Meta {
        match self {
            Route::Http(route) => &route.meta,
            Route::Grpc(route) => &route.meta,
            Route::Tls(route) => &route.meta,
            Route::Tcp(route) => &route.meta,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Route::Http(_) => Kind::HttpRoute,
            Route::Grpc(_) => Kind::GrpcRoute,
            Route::Tls(_) => Kind::TlsRoute,
            Route::Tcp(_) => Kind::TcpRoute,
        }
    }

    pub fn is_http(&self) -> bool {
        matches!(self, Route::Http(_) | Route::Grpc(_))
    }

    pub fn key(&self) -> ResourceKey {
        let meta = self.meta();
        ResourceKey {
            kind: self.kind(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        }
    }

    fn parents(&self) -> &[api::ParentRef] {
        match self {
            Route::Http(route) => &route.spec.parent_refs,
            Route::Grpc(route) => &route.spec.parent_refs,
            Route::Tls(route) => &route.spec.parent_refs,
            Route::Tcp(route) => &route.spec.parent_refs,
        }
    }

    fn hostnames(&self) -> &[String] {
        match self {
            Route::Http(route) => &route.spec.hostnames,
            Route::Grpc(route) => &route.spec.hostnames,
            Route::Tls(route) => &route.spec.hostnames,
            Route::Tcp(_) => &[],
        }
    }

    /// Filters and backends of each rule.
    fn rules(&self) -> Vec<(&[api::RouteFilter], &[api::BackendRef])> {
        match self {
            Route::Http(route) => {
                route.spec.rules.iter().map(|rule| (&*rule.filters, &*rule.backend_refs)).collect()
            }
            Route::Grpc(route) => {
                route.spec.rules.iter().map(|rule| (&*rule.filters, &*rule.backend_refs)).collect()
            }
            Route::Tls(route) => bytes_rules(&route.spec.rules),
            Route::Tcp(route) => bytes_rules(&route.spec.rules),
        }
    }

    /// Every filter, the backends' too, with its field path.
    pub fn filters(&self) -> Vec<(String, &api::RouteFilter)> {
        let mut found = Vec::new();
        for (rule, (filters, backends)) in self.rules().into_iter().enumerate() {
            for (index, filter) in filters.iter().enumerate() {
                found.push((format!("spec.rules[{rule}].filters[{index}]"), filter));
            }
            for (to, backend) in backends.iter().enumerate() {
                for (index, filter) in backend.filters.iter().enumerate() {
                    let path = format!("spec.rules[{rule}].backendRefs[{to}].filters[{index}]");
                    found.push((path, filter));
                }
            }
        }
        found
    }

    /// Everything the route sends traffic to, with its field path.
    pub fn backends(&self) -> Vec<(String, api::ObjectRef)> {
        let mut found = Vec::new();
        for (path, filter) in self.filters() {
            if let Some(mirror) = &filter.request_mirror {
                let path = format!("{path}.requestMirror.backendRef");
                found.push((path, mirror.backend_ref.clone()));
            }
        }
        for (rule, (_, backends)) in self.rules().into_iter().enumerate() {
            for (index, backend) in backends.iter().enumerate() {
                let path = format!("spec.rules[{rule}].backendRefs[{index}]");
                found.push((path, backend.object()));
            }
        }
        found
    }
}

fn bytes_rules(rules: &[api::BytesRule]) -> Vec<(&[api::RouteFilter], &[api::BackendRef])> {
    rules.iter().map(|rule| (&[][..], &*rule.backend_refs)).collect()
}

/// Age first, then namespace, then name: who comes first where the API lets the oldest win.
fn seniority(a: &Meta, b: &Meta) -> std::cmp::Ordering {
    let age = |meta: &Meta| meta.creation.unwrap_or(i64::MAX);
    age(a)
        .cmp(&age(b))
        .then_with(|| a.namespace.cmp(&b.namespace))
        .then_with(|| a.name.cmp(&b.name))
}

/// One parent reference of one route, and what came of it.
#[derive(Debug)]
struct Attempt {
    route: Route,
    /// Index in `spec.parentRefs`.
    index: usize,
    refused: Option<(&'static str, String)>,
}

impl Route {
    /// The API's order of equal matches; see [`crate::Meta::age_order`] for Istio's.
    pub fn seniority(&self, other: &Route) -> std::cmp::Ordering {
        seniority(self.meta(), other.meta())
    }
}

impl Snapshot {
    /// The Gateway API's resources put together; made when first asked for.
    pub fn gateway_api(&self) -> &GatewayApi {
        self.inner.attached.get_or_init(|| Arc::new(attach::all(self)))
    }

    /// Gateways that a proxy serves: those it is labelled for, and those whose addresses name a
    /// service of its own (`own`: their hosts).
    pub fn served_gateways<'a>(
        &'a self,
        namespace: &str,
        labels: &Labels,
        own: &[&str],
    ) -> Vec<&'a ServedGateway> {
        let gateways = self.gateway_api().gateways.iter();
        gateways.filter(|gateway| gateway.is_served_by(namespace, labels, own)).collect()
    }

    /// Routes for a port of a service, as a client in a namespace has them: its namespace's own
    /// before those of the service's namespace; the oldest first. Empty: the service has none.
    pub fn mesh_routes(&self, host: &str, port: u16, client: &str, http: bool) -> Vec<&Route> {
        let Some(routes) = self.gateway_api().mesh.get(host) else { return Vec::new() };
        let here = |route: &&MeshRoute| {
            route.port.is_none_or(|own| own == port) && route.route.is_http() == http
        };
        let own = |route: &&MeshRoute| route.consumer.as_deref() == Some(client);
        let consumers: Vec<&Route> =
            routes.iter().filter(here).filter(own).map(|route| &route.route).collect();
        if !consumers.is_empty() {
            return consumers;
        }
        let producers = routes.iter().filter(here).filter(|route| route.consumer.is_none());
        producers.map(|route| &route.route).collect()
    }

    /// Hosts that routes of a service send its clients to.
    pub fn mesh_route_targets(&self, host: &str, client: &str) -> Vec<String> {
        let Some(routes) = self.gateway_api().mesh.get(host) else { return Vec::new() };
        let here = |route: &&MeshRoute| route.consumer.as_deref().is_none_or(|own| own == client);
        let backends = routes.iter().filter(here).flat_map(|route| {
            let of = route.route.backends().into_iter();
            of.filter_map(|(_, to)| self.backend(&route.route, &to).ok())
        });
        backends.map(|backend| backend.host).collect()
    }
}

impl ServedGateway {
    fn is_served_by(&self, namespace: &str, labels: &Labels, own: &[&str]) -> bool {
        let meta = &self.resource.meta;
        let services = self.services();
        if !services.is_empty() {
            return services.iter().any(|host| own.contains(&host.as_str()));
        }
        let label = labels.get(GATEWAY_NAME_LABEL).or_else(|| labels.get(OLD_GATEWAY_NAME_LABEL));
        namespace == &*meta.namespace && label.is_some_and(|name| **name == *meta.name)
    }

    /// Hosts of the Services its addresses name (Istio's manual deployment).
    fn services(&self) -> Vec<String> {
        let named = self
            .resource
            .spec
            .addresses
            .iter()
            .filter(|address| address.address_type == "Hostname" && !address.value.is_empty());
        named.map(|address| resolve_host(&address.value, &self.resource.meta.namespace)).collect()
    }
}
