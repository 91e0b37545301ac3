//! Which routes attach where, and what stands in the way.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reference::From;
use super::{
    Attachment, Attempt, BUILT_IN_CLASS, CONTROLLER, ClientTrust, GatewayApi, MeshRoute, Problems,
    Route, ServedGateway, ServedListener, api, seniority,
};
use crate::names::{CLUSTER_DOMAIN, host_matches};
use crate::object::{Kind, Labels, Meta, Resource, ResourceKey};
use crate::snapshot::Snapshot;
use crate::spec;
use crate::spec::gateway_api::{FromNamespaces, LabelSelector};

pub(super) fn all(snapshot: &Snapshot) -> GatewayApi {
    let tables = &snapshot.inner.gateway_api;
    let mut gateways: Vec<_> =
        tables.gateways.iter().filter(|one| is_ours(snapshot, &one.spec)).collect();
    gateways.sort_by(|a, b| seniority(&a.meta, &b.meta));
    let mut found = GatewayApi {
        gateways: gateways.into_iter().map(|one| gateway(snapshot, one)).collect(),
        mesh: BTreeMap::new(),
        parents: Vec::new(),
    };
    for route in routes(snapshot) {
        for (index, parent) in route.parents().iter().enumerate() {
            let outcome = match (parent.group.as_str(), parent.kind.as_str()) {
                (api::GROUP, "Gateway" | "ListenerSet") => {
                    to_listeners(snapshot, &mut found.gateways, &route, parent)
                }
                ("", "Service") | ("networking.istio.io", "ServiceEntry") => {
                    Some(to_service(snapshot, &mut found.mesh, &route, parent))
                }
                // Another implementation's business.
                _ => None,
            };
            if let Some(outcome) = outcome {
                let refused = outcome.err();
                found.parents.push(Attempt { route: route.clone(), index, refused });
            }
        }
    }
    found
}

/// Does the Gateway's class belong to us?
pub(super) fn is_ours(snapshot: &Snapshot, gateway: &api::Gateway) -> bool {
    let class = snapshot.inner.gateway_api.classes.get("", &gateway.gateway_class_name);
    match class {
        Some(class) => class.spec.controller_name == CONTROLLER,
        None => gateway.gateway_class_name == BUILT_IN_CLASS,
    }
}

/// All routes, the oldest first.
pub(super) fn routes(snapshot: &Snapshot) -> Vec<Route> {
    let tables = &snapshot.inner.gateway_api;
    let http = tables.http_routes.iter().map(|route| Route::Http(route.clone()));
    let grpc = tables.grpc_routes.iter().map(|route| Route::Grpc(route.clone()));
    let tls = tables.tls_routes.iter().map(|route| Route::Tls(route.clone()));
    let tcp = tables.tcp_routes.iter().map(|route| Route::Tcp(route.clone()));
    let mut all: Vec<Route> = http.chain(grpc).chain(tls).chain(tcp).collect();
    all.sort_by(|a, b| seniority(a.meta(), b.meta()));
    all
}

fn gateway(snapshot: &Snapshot, resource: &Arc<Resource<api::Gateway>>) -> ServedGateway {
    let Meta { namespace, name, .. } = &resource.meta;
    let mut sets: Vec<_> = snapshot
        .inner
        .gateway_api
        .listener_sets
        .iter()
        .filter(|set| {
            let parent = &set.spec.parent_ref;
            let home = parent.namespace.as_deref().unwrap_or(&set.meta.namespace);
            (parent.group.as_str(), parent.kind.as_str()) == (api::GROUP, "Gateway")
                && home == &**namespace
                && parent.name == **name
        })
        .collect();
    sets.sort_by(|a, b| seniority(&a.meta, &b.meta));
    let allowed = &resource.spec.allowed_listeners.namespaces;
    let sets: Vec<_> = sets
        .into_iter()
        .map(|set| {
            let selector = allowed.selector.as_ref();
            let home = &set.meta.namespace;
            (set.clone(), selected(snapshot, allowed.from, selector, namespace, home))
        })
        .collect();
    let mut listeners = Vec::new();
    let key =
        ResourceKey { kind: Kind::KubeGateway, namespace: namespace.clone(), name: name.clone() };
    add_listeners(snapshot, resource, &key, &resource.spec.listeners, &mut listeners);
    for (set, _) in sets.iter().filter(|(_, allowed)| *allowed) {
        let key = ResourceKey {
            kind: Kind::ListenerSet,
            namespace: set.meta.namespace.clone(),
            name: set.meta.name.clone(),
        };
        add_listeners(snapshot, resource, &key, &set.spec.listeners, &mut listeners);
    }
    ServedGateway { resource: resource.clone(), listeners, sets }
}

fn add_listeners(
    snapshot: &Snapshot,
    gateway: &Resource<api::Gateway>,
    owner: &ResourceKey,
    declared: &[api::Listener],
    listeners: &mut Vec<ServedListener>,
) {
    for (index, spec) in declared.iter().enumerate() {
        let mut problems = Problems { conflict: conflict(spec, listeners), ..Problems::default() };
        let kinds = kinds(spec, &mut problems);
        let certificates = certificates(snapshot, owner, spec, &mut problems);
        let client = client_trust(snapshot, gateway, spec, &mut problems);
        let as_istio = as_istio(gateway, owner, spec, &certificates, client.as_ref());
        listeners.push(ServedListener {
            owner: owner.clone(),
            index,
            spec: spec.clone(),
            as_istio,
            routes: Vec::new(),
            certificates,
            client,
            problems,
            kinds,
        });
    }
}

/// Listeners of one port must agree on the protocol and differ in their hosts.
fn conflict(spec: &api::Listener, earlier: &[ServedListener]) -> Option<(&'static str, String)> {
    let is_tls = |protocol: &str| matches!(protocol, "HTTPS" | "TLS");
    let in_force =
        |other: &&ServedListener| other.problems.conflict.is_none() && other.spec.port == spec.port;
    for other in earlier.iter().filter(in_force) {
        let (own, theirs) = (spec.protocol.as_str(), other.spec.protocol.as_str());
        if own != theirs && !(is_tls(own) && is_tls(theirs)) {
            let message =
                format!("listener {:?} has port {} for {theirs}", other.spec.name, spec.port);
            return Some(("ProtocolConflict", message));
        }
        let host = spec.hostname.as_deref().filter(|host| !host.is_empty()).unwrap_or("*");
        if other.hostname() == host {
            let message =
                format!("listener {:?} has port {} for {host:?}", other.spec.name, spec.port);
            return Some(("HostnameConflict", message));
        }
    }
    None
}

/// Route kinds the listener takes; what else it asks for is a problem.
fn kinds(spec: &api::Listener, problems: &mut Problems) -> Vec<Kind> {
    let fitting: &[Kind] = match spec.protocol.as_str() {
        "HTTP" | "HTTPS" => &[Kind::HttpRoute, Kind::GrpcRoute],
        "TLS" => &[Kind::TlsRoute],
        "TCP" => &[Kind::TcpRoute],
        other => {
            let message =
                format!("protocol {other:?} is not supported; HTTP, HTTPS, TLS and TCP are");
            problems.accepted = Some(("UnsupportedProtocol", message));
            return Vec::new();
        }
    };
    let wanted = &spec.allowed_routes.kinds;
    if wanted.is_empty() {
        return fitting.to_vec();
    }
    let is = |kind: &Kind, one: &api::RouteGroupKind| {
        one.group == api::GROUP && one.kind == kind.as_str()
    };
    for one in wanted.iter().filter(|one| !fitting.iter().any(|kind| is(kind, one))) {
        let message = format!("{} does not go with protocol {}", one.kind, spec.protocol);
        problems.references = Some(("InvalidRouteKinds", message));
    }
    fitting.iter().copied().filter(|kind| wanted.iter().any(|one| is(kind, one))).collect()
}

fn certificates(
    snapshot: &Snapshot,
    owner: &ResourceKey,
    spec: &api::Listener,
    problems: &mut Problems,
) -> Vec<(String, String)> {
    let Some(tls) = spec.tls.as_ref().filter(|tls| tls.mode == api::TlsMode::Terminate) else {
        if spec.protocol == "HTTPS" && spec.tls.is_none() {
            let message = "an HTTPS listener needs tls.certificateRefs".to_owned();
            problems.references = Some(("InvalidCertificateRef", message));
        }
        return Vec::new();
    };
    let from = From { kind: owner.kind, namespace: &owner.namespace };
    let mut found = Vec::new();
    for reference in &tls.certificate_refs {
        match snapshot.certificate(from, reference) {
            Ok(certificate) => found.push(certificate),
            Err(problem) => problems.references = Some((problem.reason, problem.message)),
        }
    }
    if tls.certificate_refs.is_empty() {
        let message = "options alone give no certificate; set tls.certificateRefs".to_owned();
        problems.references = Some(("InvalidCertificateRef", message));
    }
    found
}

/// `tls.frontend` of the Gateway, as far as it is about this listener.
fn client_trust(
    snapshot: &Snapshot,
    gateway: &Resource<api::Gateway>,
    spec: &api::Listener,
    problems: &mut Problems,
) -> Option<ClientTrust> {
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    if spec.protocol != "HTTPS" {
        return None;
    }
    let of_port = frontend.per_port.iter().find(|one| one.port == spec.port);
    let config = of_port.map_or(&frontend.default, |one| &one.tls);
    let validation = config.validation.as_ref()?;
    let own = &*gateway.meta.namespace;
    let from = From { kind: Kind::KubeGateway, namespace: own };
    let mut found = None;
    for to in &validation.ca_certificate_refs {
        let home = to.namespace.as_deref().unwrap_or(own);
        match snapshot.roots(from, &to.group, &to.kind, home, &to.name) {
            // One set of roots is what SDS carries; the API asks for support of one.
            Ok(roots) => {
                found = found.or(Some(ClientTrust { roots, mode: validation.mode }));
            }
            Err(problem) => {
                let reason = match problem.reason {
                    "InvalidKind" => "InvalidCACertificateKind",
                    reason => reason,
                };
                problems.references = Some((reason, problem.message));
            }
        }
    }
    if found.is_none() {
        // Serving without the check would let everybody in.
        let message = "no CA certificate to judge clients by".to_owned();
        problems.accepted = Some(("NoValidCACertificate", message));
    }
    found
}

/// One server of an Istio Gateway, named as Istio names what it makes of a listener.
fn as_istio(
    gateway: &Resource<api::Gateway>,
    owner: &ResourceKey,
    listener: &api::Listener,
    certificates: &[(String, String)],
    client: Option<&ClientTrust>,
) -> Resource<spec::Gateway> {
    let host = listener.hostname.clone().filter(|host| !host.is_empty());
    let tls = listener.tls.as_ref().map(|tls| spec::ServerTlsSettings {
        mode: match (tls.mode, client.map(|client| client.mode)) {
            (api::TlsMode::Passthrough, _) => spec::ServerTlsMode::Passthrough,
            (api::TlsMode::Terminate, None) => spec::ServerTlsMode::Simple,
            (api::TlsMode::Terminate, Some(api::FrontendMode::AllowValidOnly)) => {
                spec::ServerTlsMode::Mutual
            }
            (api::TlsMode::Terminate, Some(api::FrontendMode::AllowInsecureFallback)) => {
                spec::ServerTlsMode::OptionalMutual
            }
        },
        credential_names: certificates.iter().map(|(ns, name)| format!("{ns}/{name}")).collect(),
        ca_cert_credential_name: client.map(ClientTrust::credential).unwrap_or_default(),
        ..Default::default()
    });
    let server = spec::Server {
        port: Some(spec::Port {
            number: u32::from(listener.port),
            protocol: listener.protocol.clone(),
            name: listener.name.clone(),
            target_port: None,
        }),
        hosts: vec![format!("*/{}", host.as_deref().unwrap_or("*"))],
        tls,
        ..Default::default()
    };
    let what = match owner.kind {
        Kind::ListenerSet => "listenerset",
        _ => "gateway",
    };
    let name = format!("{}-istio-autogenerated-k8s-{what}-{}", owner.name, listener.name);
    Resource {
        meta: Meta {
            name: Arc::from(name),
            namespace: owner.namespace.clone(),
            origin: gateway.meta.origin.clone(),
            ..Meta::default()
        },
        spec: spec::Gateway { servers: vec![server], selector: Labels::new() },
    }
}

impl ClientTrust {
    /// How the proxy asks for the roots: Secrets as Istio's credentials, ConfigMaps marked as such.
    pub fn credential(&self) -> String {
        let (kind, namespace, name) = &self.roots;
        match kind {
            Kind::ConfigMap => format!("configmap:{namespace}/{name}"),
            _ => format!("{namespace}/{name}"),
        }
    }
}

/// Is a namespace among those that `from` and `selector` allow, seen from `own`?
fn selected(
    snapshot: &Snapshot,
    from: FromNamespaces,
    selector: Option<&LabelSelector>,
    own: &str,
    other: &Arc<str>,
) -> bool {
    match from {
        FromNamespaces::All => true,
        FromNamespaces::None => false,
        FromNamespaces::Same => own == &**other,
        FromNamespaces::Selector => selector.is_some_and(|selector| {
            let mut labels = (*snapshot.namespace_labels(other)).clone();
            // The API server sets it everywhere; files need not.
            labels.insert("kubernetes.io/metadata.name".into(), other.to_string());
            selector.selects(&labels)
        }),
    }
}

/// Attaches a route to the listeners that one parent reference means. `None`: the parent is not
/// ours (or not there), so that its status is not ours to write.
fn to_listeners(
    snapshot: &Snapshot,
    gateways: &mut [ServedGateway],
    route: &Route,
    parent: &api::ParentRef,
) -> Option<Result<(), (&'static str, String)>> {
    let own = route.meta().namespace.clone();
    let home = parent.namespace.as_deref().unwrap_or(&own);
    let kind = if parent.kind == "Gateway" { Kind::KubeGateway } else { Kind::ListenerSet };
    let is_parent = |key: &ResourceKey| {
        key.kind == kind && &*key.namespace == home && *key.name == *parent.name
    };
    let gateway = gateways.iter_mut().find(|gateway| {
        let meta = &gateway.resource.meta;
        let set = |(set, allowed): &(Arc<Resource<api::ListenerSet>>, bool)| {
            *allowed && *set.meta.namespace == *home && *set.meta.name == *parent.name
        };
        match kind {
            Kind::KubeGateway => *meta.namespace == *home && *meta.name == *parent.name,
            _ => gateway.sets.iter().any(set),
        }
    })?;
    let mut failure = ("NoMatchingParent", "no listener has this sectionName and port".to_owned());
    let mut rank = 0;
    let mut attached = false;
    for listener in gateway.listeners.iter_mut().filter(|listener| is_parent(&listener.owner)) {
        let named = parent.section_name.as_deref().filter(|name| !name.is_empty());
        if named.is_some_and(|name| name != listener.spec.name)
            || parent.port.is_some_and(|port| port != listener.spec.port)
        {
            continue;
        }
        let mut fail = |at: u8, reason: &'static str, message: String| {
            if at > rank {
                (rank, failure) = (at, (reason, message));
            }
        };
        let allowed = &listener.spec.allowed_routes.namespaces;
        let name = &listener.spec.name;
        if !listener.kinds.contains(&route.kind()) {
            let message = format!("listener {name:?} does not take {}s", route.kind().as_str());
            fail(1, "NotAllowedByListeners", message);
            continue;
        }
        let selector = allowed.selector.as_ref();
        if !selected(snapshot, allowed.from, selector, &listener.owner.namespace, &own) {
            let message = format!("listener {name:?} does not take routes of namespace {own}");
            fail(2, "NotAllowedByListeners", message);
            continue;
        }
        let hostnames = shared(listener.hostname(), route.hostnames());
        if hostnames.is_empty() {
            let message = format!("no hostname of the route is within listener {name:?}");
            fail(3, "NoMatchingListenerHostname", message);
            continue;
        }
        listener.routes.push(Attachment { route: route.clone(), hostnames });
        attached = true;
    }
    Some(if attached { Ok(()) } else { Err(failure) })
}

/// Of each overlapping pair the narrower host.
fn shared(listener: &str, hostnames: &[String]) -> Vec<String> {
    if hostnames.is_empty() {
        return vec![listener.to_owned()];
    }
    let mut found: Vec<String> = Vec::new();
    for host in hostnames {
        let narrower = if host_matches(listener, host) {
            host.clone()
        } else if host_matches(host, listener) {
            listener.to_owned()
        } else {
            continue;
        };
        if !found.contains(&narrower) {
            found.push(narrower);
        }
    }
    found
}

/// Attaches a route to a service: for all its clients when both are of one namespace, else for the
/// clients in the route's.
fn to_service(
    snapshot: &Snapshot,
    mesh: &mut BTreeMap<String, Vec<MeshRoute>>,
    route: &Route,
    parent: &api::ParentRef,
) -> Result<(), (&'static str, String)> {
    let own = &route.meta().namespace;
    let home = parent.namespace.as_deref().unwrap_or(own);
    let hosts: Vec<String> = match parent.kind.as_str() {
        "Service" => vec![format!("{}.{home}.svc.{CLUSTER_DOMAIN}", parent.name)],
        _ => {
            let entry = snapshot.inner.service_entries.get(home, &parent.name);
            entry.map(|entry| entry.spec.hosts.clone()).unwrap_or_default()
        }
    };
    let named = parent.section_name.as_deref().filter(|name| !name.is_empty());
    let mut found = false;
    for host in hosts {
        let host = host.to_ascii_lowercase();
        let Some(service) = snapshot.service_from(&host, home) else { continue };
        let wanted = |port: &&crate::ServicePort| {
            named.is_none_or(|name| name == &*port.name)
                && parent.port.is_none_or(|number| number == port.number)
        };
        let ports: Vec<u16> = service.ports.iter().filter(wanted).map(|port| port.number).collect();
        let all = named.is_none() && parent.port.is_none();
        let ports: Vec<Option<u16>> = match all {
            true => vec![None],
            false => ports.into_iter().map(Some).collect(),
        };
        let consumer = (**own != *home).then(|| own.clone());
        for port in ports {
            found = true;
            let route = MeshRoute { route: route.clone(), port, consumer: consumer.clone() };
            mesh.entry(host.clone()).or_default().push(route);
        }
    }
    if found {
        return Ok(());
    }
    let message = format!("no {} {home}/{} with that port", parent.kind, parent.name);
    Err(("NoMatchingParent", message))
}
