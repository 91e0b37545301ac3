//! The Gateway API's status: per object, listener and parent, with the API's condition types and
//! reasons. A pure function of the snapshot; whoever owns the store may write it there.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::attach::is_ours;
use super::{CONTROLLER, GATEWAY_NAME_LABEL, Route, ServedGateway, ServedListener, api, policy};
use crate::diagnostic::{Diagnostic, Severity, code};
use crate::names::CLUSTER_DOMAIN;
use crate::object::{Kind, Meta, Resource, ResourceKey};
use crate::snapshot::Snapshot;

/// `status` of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub resource: ResourceKey,
    /// `metadata.generation` that the conditions speak of.
    pub observed: i64,
    /// Of the object itself; routes and policies have theirs per parent.
    pub conditions: Vec<Condition>,
    /// Of Gateways and ListenerSets.
    pub listeners: Vec<ListenerStatus>,
    /// Of routes (`parents`) and policies (`ancestors`).
    pub parents: Vec<ParentStatus>,
    /// Where a Gateway is reached.
    pub addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted`, `PartiallyInvalid`.
    pub name: &'static str,
    pub holds: bool,
    pub reason: &'static str,
    pub message: String,
    /// Field it is about; may be empty.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    pub name: String,
    pub supported_kinds: Vec<Kind>,
    pub attached_routes: usize,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    /// As the route wrote it, defaults filled in.
    pub parent: api::ParentRef,
    pub conditions: Vec<Condition>,
}

impl Condition {
    pub(super) fn new(
        name: &'static str,
        problem: Option<&(&'static str, String)>,
        path: &str,
    ) -> Self {
        let (holds, reason, message) = match problem {
            None => (true, name, String::new()),
            Some((reason, message)) => (false, *reason, message.clone()),
        };
        Condition { name, holds, reason, message, path: path.to_owned() }
    }

    /// All is as it should be. Two conditions are good when they do not hold.
    pub fn is_good(&self) -> bool {
        self.holds != matches!(self.name, "Conflicted" | "PartiallyInvalid")
    }
}

impl Snapshot {
    /// Status of every Gateway API resource that is ours, by kind, namespace and name.
    pub fn gateway_api_status(&self) -> Vec<Status> {
        let mut all = classes(self);
        for gateway in &self.gateway_api().gateways {
            all.push(of_gateway(self, gateway));
            all.extend(
                gateway.sets.iter().map(|(set, allowed)| of_set(self, gateway, set, *allowed)),
            );
        }
        all.extend(routes(self));
        all.extend(policy::status(self));
        all.sort_by(|a, b| a.resource.cmp(&b.resource));
        all
    }
}

fn key(kind: Kind, meta: &Meta) -> ResourceKey {
    ResourceKey { kind, namespace: meta.namespace.clone(), name: meta.name.clone() }
}

impl Status {
    pub(super) fn new(kind: Kind, meta: &Meta) -> Self {
        Status {
            resource: key(kind, meta),
            observed: meta.observed,
            conditions: Vec::new(),
            listeners: Vec::new(),
            parents: Vec::new(),
            addresses: Vec::new(),
        }
    }
}

fn classes(snapshot: &Snapshot) -> Vec<Status> {
    let ours = snapshot.inner.gateway_api.classes.iter();
    let ours = ours.filter(|class| class.spec.controller_name == CONTROLLER);
    ours.map(|class| {
        let mut status = Status::new(Kind::GatewayClass, &class.meta);
        let parameters = class
            .spec
            .parameters_ref
            .as_ref()
            .map(|_| ("InvalidParameters", "parametersRef is not supported".to_owned()));
        let path = "spec.parametersRef";
        status.conditions.push(Condition::new("Accepted", parameters.as_ref(), path));
        status
    })
    .collect()
}

fn of_gateway(snapshot: &Snapshot, gateway: &ServedGateway) -> Status {
    let meta = &gateway.resource.meta;
    let mut status = Status::new(Kind::KubeGateway, meta);
    status.addresses = addresses(snapshot, gateway);
    let unserved = status.addresses.is_empty().then(|| nobody(gateway));
    let own: Vec<&ServedListener> =
        gateway.listeners.iter().filter(|one| one.owner == status.resource).collect();
    let broken = own.iter().filter(|one| !one.is_usable()).count();
    let kind_of_address =
        |one: &api::GatewayAddress| !matches!(one.address_type.as_str(), "Hostname" | "IPAddress");
    let refused = if gateway.resource.spec.addresses.iter().any(kind_of_address) {
        Some(("UnsupportedAddress", "addresses are Hostname or IPAddress".to_owned()))
    } else if broken == own.len() {
        Some(("ListenersNotValid", "no listener can be served".to_owned()))
    } else {
        None
    };
    let mut accepted = Condition::new("Accepted", refused.as_ref(), "spec.listeners");
    if refused.is_none() && broken > 0 {
        accepted.reason = "ListenersNotValid";
        accepted.message = format!("{broken} of {} listeners cannot be served", own.len());
    }
    status.conditions.push(accepted);
    let idle = match refused {
        Some(_) => Some(("Invalid", "the Gateway is not accepted".to_owned())),
        None => unserved.clone(),
    };
    status.conditions.push(Condition::new("Programmed", idle.as_ref(), "metadata.name"));
    if let Some(problem) = policy::client_certificate(snapshot, &gateway.resource).err() {
        let problem = ("InvalidClientCertificateRef", problem.message);
        let path = "spec.tls.backend.clientCertificateRef";
        status.conditions.push(Condition::new("ResolvedRefs", Some(&problem), path));
    }
    status.listeners = own.into_iter().map(|one| of_listener(one, unserved.as_ref())).collect();
    status
}

/// Nobody serves it: what to do about it.
fn nobody(gateway: &ServedGateway) -> (&'static str, String) {
    let name = &gateway.resource.meta.name;
    match gateway.services().first() {
        Some(host) => ("AddressNotAssigned", format!("no proxy is behind service {host}")),
        None => {
            let message = format!("no proxy here has the label {GATEWAY_NAME_LABEL}={name}");
            ("AddressNotAssigned", message)
        }
    }
}

/// Addresses of the services or, without one, the proxies that serve the Gateway.
fn addresses(snapshot: &Snapshot, gateway: &ServedGateway) -> Vec<String> {
    let mut found = BTreeSet::new();
    let hosts = gateway.services();
    let named = &gateway.resource.meta.namespace;
    for host in &hosts {
        if let Some(service) = snapshot.service_from(host, named)
            && !service.endpoints.is_empty()
        {
            found.insert(host.clone());
        }
    }
    if hosts.is_empty() {
        for workload in snapshot.workloads().filter(|one| one.namespace == *named) {
            if gateway.is_served_by(&workload.namespace, &workload.labels, &[]) {
                let services = snapshot.services_of(workload).into_iter();
                let before = found.len();
                found.extend(
                    services.flat_map(|service| &service.addresses).map(|ip| ip.to_string()),
                );
                if found.len() == before {
                    found.extend(workload.ips.iter().map(|ip| ip.to_string()));
                }
            }
        }
    }
    found.into_iter().collect()
}

fn of_listener(
    listener: &ServedListener,
    unserved: Option<&(&'static str, String)>,
) -> ListenerStatus {
    let path = format!("spec.listeners[{}]", listener.index);
    let problems = &listener.problems;
    let accepted = problems.conflict.as_ref().or(problems.accepted.as_ref());
    let mut conflicted = Condition::new("Conflicted", problems.conflict.as_ref(), &path);
    conflicted.holds = problems.conflict.is_some();
    if !conflicted.holds {
        conflicted.reason = "NoConflicts";
    }
    let invalid = ("Invalid", "the listener cannot be served".to_owned());
    let idle = match listener.is_usable() {
        true => unserved.map(|(_, message)| ("Pending", message.clone())),
        false => Some(invalid),
    };
    ListenerStatus {
        name: listener.spec.name.clone(),
        supported_kinds: listener.kinds.clone(),
        attached_routes: listener.routes.len(),
        conditions: vec![
            Condition::new("Accepted", accepted, &path),
            conflicted,
            Condition::new("ResolvedRefs", problems.references.as_ref(), &path),
            Condition::new("Programmed", idle.as_ref(), &path),
        ],
    }
}

fn of_set(
    snapshot: &Snapshot,
    gateway: &ServedGateway,
    set: &Resource<api::ListenerSet>,
    allowed: bool,
) -> Status {
    let mut status = Status::new(Kind::ListenerSet, &set.meta);
    let own: Vec<&ServedListener> =
        gateway.listeners.iter().filter(|one| one.owner == status.resource).collect();
    let refused = if !allowed {
        let meta = &gateway.resource.meta;
        let message =
            format!("allowedListeners of Gateway {}/{} do not allow it", meta.namespace, meta.name);
        Some(("NotAllowed", message))
    } else if own.iter().all(|one| !one.is_usable()) {
        Some(("ListenersNotValid", "no listener can be served".to_owned()))
    } else {
        None
    };
    status.conditions.push(Condition::new("Accepted", refused.as_ref(), "spec.parentRef"));
    let unserved = addresses(snapshot, gateway).is_empty().then(|| nobody(gateway));
    let idle = match refused {
        Some(_) => Some(("Invalid", "the ListenerSet is not accepted".to_owned())),
        None => unserved.clone(),
    };
    status.conditions.push(Condition::new("Programmed", idle.as_ref(), "spec.parentRef"));
    status.listeners = own.into_iter().map(|one| of_listener(one, unserved.as_ref())).collect();
    status
}

/// One status for each route that has a parent of ours.
fn routes(snapshot: &Snapshot) -> Vec<Status> {
    let mut all: Vec<Status> = Vec::new();
    for attempt in &snapshot.gateway_api().parents {
        let route = &attempt.route;
        if all.last().is_none_or(|status| status.resource != route.key()) {
            all.push(Status::new(route.kind(), route.meta()));
        }
        let path = format!("spec.parentRefs[{}]", attempt.index);
        let accepted = Condition::new("Accepted", attempt.refused.as_ref(), &path);
        let Some(status) = all.last_mut() else { continue };
        status.parents.push(ParentStatus {
            parent: route.parents()[attempt.index].clone(),
            conditions: [accepted, references(snapshot, route)]
                .into_iter()
                .chain(partly_invalid(route))
                .collect(),
        });
    }
    all
}

/// `ResolvedRefs` of a route: the first reference that does not hold.
fn references(snapshot: &Snapshot, route: &Route) -> Condition {
    for (path, filter) in route.filters() {
        if let Some(extension) = &filter.extension_ref {
            let message = format!(
                "no filter of kind {} ({}) exists; the rule answers 500",
                extension.kind, extension.group
            );
            let problem = ("InvalidKind", message);
            return Condition::new("ResolvedRefs", Some(&problem), &format!("{path}.extensionRef"));
        }
    }
    for (path, to) in route.backends() {
        if let Err(problem) = snapshot.backend(route, &to) {
            let problem = (problem.reason, problem.message);
            return Condition::new("ResolvedRefs", Some(&problem), &path);
        }
    }
    Condition::new("ResolvedRefs", None, "")
}

/// `PartiallyInvalid`: rules that ask for what cannot be done answer 500.
fn partly_invalid(route: &Route) -> Option<Condition> {
    let on_backend = |path: &str| path.contains(".backendRefs[");
    let (path, filter) = route.filters().into_iter().find(|(path, filter)| {
        on_backend(path) && filter.extension_ref.is_none() && !filter.is_supported_on_backend()
    })?;
    let message = format!(
        "a {} filter on one backend is not supported; the rule answers 500",
        filter.filter_type
    );
    let mut condition =
        Condition::new("PartiallyInvalid", Some(&("UnsupportedValue", message)), &path);
    condition.holds = true;
    Some(condition)
}

/// Findings for `weft analyze`: conditions that are not as they should be, and resources that
/// nobody looks at.
pub(in crate::snapshot) fn findings(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let tables = &snapshot.inner.gateway_api;
    for status in snapshot.gateway_api_status() {
        let Some(meta) = meta_of(snapshot, &status.resource) else { continue };
        let listeners = status.listeners.iter().flat_map(|listener| &listener.conditions);
        let parents = status.parents.iter().flat_map(|parent| &parent.conditions);
        let mut told: Vec<(&str, &str)> = Vec::new();
        for condition in status.conditions.iter().chain(listeners).chain(parents) {
            // A listener's own problem says more than the sums of them.
            let sum = matches!(condition.reason, "Invalid" | "Pending" | "ListenersNotValid");
            let place = (condition.message.as_str(), condition.path.as_str());
            if condition.is_good() || sum || told.contains(&place) {
                continue;
            }
            told.push(place);
            let message = format!("{} ({})", condition.message, condition.reason);
            let finding = Diagnostic::new(
                Severity::Warning,
                code::GATEWAY_API,
                &meta.origin,
                condition.path.as_str(),
                message,
            );
            out.push(finding.with_resource(status.resource.clone()).with_help(help(condition)));
        }
    }
    for gateway in tables.gateways.iter() {
        unserved_class(snapshot, gateway, out);
    }
    missing_parents(snapshot, out);
    options(snapshot, out);
}

fn help(condition: &Condition) -> &'static str {
    match condition.reason {
        "RefNotPermitted" => "Add a ReferenceGrant to the namespace that is referred to.",
        "BackendNotFound" => "Define the Service, or correct name and port.",
        "NotAllowedByListeners" => "Extend the listener's allowedRoutes.",
        "NoMatchingListenerHostname" => "Give the route a hostname that the listener serves.",
        "AddressNotAssigned" => "Label the gateway's proxies, or name their Service in addresses.",
        _ => "",
    }
}

/// A Gateway of a class that nobody here serves; of another implementation's class, say nothing.
fn unserved_class(
    snapshot: &Snapshot,
    gateway: &Resource<api::Gateway>,
    out: &mut Vec<Diagnostic>,
) {
    let class = &gateway.spec.gateway_class_name;
    let known = snapshot.inner.gateway_api.classes.get("", class).is_some();
    let mut add = |severity, code, path: &str, message: String, help: &str| {
        let finding = Diagnostic::new(severity, code, &gateway.meta.origin, path, message);
        let resource = key(Kind::KubeGateway, &gateway.meta);
        out.push(finding.with_resource(resource).with_help(help));
    };
    if !is_ours(snapshot, &gateway.spec) {
        if !known {
            let message = format!("GatewayClass {class:?} is not defined: nobody serves it");
            let path = "spec.gatewayClassName";
            add(Severity::Warning, code::NOT_FOUND, path, message, "Use the class \"istio\".");
        }
        return;
    }
    if gateway.spec.infrastructure.is_some() {
        let message = "proxies are not made for Gateways; this has no effect".to_owned();
        let help = "Put labels and annotations on the proxies themselves.";
        add(Severity::Info, code::NOT_IMPLEMENTED, "spec.infrastructure", message, help);
    }
    let fixed = gateway.spec.addresses.iter().position(|one| one.address_type == "IPAddress");
    if let Some(index) = fixed {
        let message = "addresses are the proxies' own; this has no effect".to_owned();
        let path = format!("spec.addresses[{index}]");
        let help = "Use type Hostname with the name of the proxies' Service.";
        add(Severity::Info, code::NOT_IMPLEMENTED, &path, message, help);
    }
    let frontend = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref());
    let configs = frontend.into_iter().flat_map(|frontend| {
        let of_ports = frontend.per_port.iter().map(|port| &port.tls);
        std::iter::once(&frontend.default).chain(of_ports)
    });
    let several = |config: &api::FrontendTlsConfig| {
        let validation = config.validation.as_ref();
        validation.is_some_and(|validation| validation.ca_certificate_refs.len() > 1)
    };
    if configs.into_iter().any(several) {
        let message = "only the first usable CA certificate reference counts".to_owned();
        let help = "Put all CA certificates into one ConfigMap.";
        add(Severity::Warning, code::NOT_IMPLEMENTED, "spec.tls.frontend", message, help);
    }
}

/// `options` of listeners and policies are implementations' own, and there are none here.
fn options(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let tables = &snapshot.inner.gateway_api;
    let mut add = |resource: ResourceKey, meta: &Meta, path: String| {
        let message = "no option is known here; they have no effect";
        let (severity, code) = (Severity::Warning, code::NOT_IMPLEMENTED);
        let finding = Diagnostic::new(severity, code, &meta.origin, path, message);
        out.push(finding.with_resource(resource));
    };
    let has =
        |listener: &api::Listener| listener.tls.as_ref().is_some_and(|tls| !tls.options.is_empty());
    let ours = tables.gateways.iter().filter(|gateway| is_ours(snapshot, &gateway.spec));
    for gateway in ours {
        for (index, _) in gateway.spec.listeners.iter().enumerate().filter(|(_, one)| has(one)) {
            let path = format!("spec.listeners[{index}].tls.options");
            add(key(Kind::KubeGateway, &gateway.meta), &gateway.meta, path);
        }
    }
    for set in tables.listener_sets.iter() {
        for (index, _) in set.spec.listeners.iter().enumerate().filter(|(_, one)| has(one)) {
            let path = format!("spec.listeners[{index}].tls.options");
            add(key(Kind::ListenerSet, &set.meta), &set.meta, path);
        }
    }
    for policy in tables.backend_tls_policies.iter().filter(|one| !one.spec.options.is_empty()) {
        let resource = key(Kind::BackendTlsPolicy, &policy.meta);
        add(resource, &policy.meta, "spec.options".to_owned());
    }
}

/// Parents that do not exist have nobody to write a status.
fn missing_parents(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let tables = &snapshot.inner.gateway_api;
    let exists = |kind: &str, namespace: &str, name: &str| match kind {
        "Gateway" => tables.gateways.get(namespace, name).is_some(),
        "ListenerSet" => tables.listener_sets.get(namespace, name).is_some(),
        _ => true,
    };
    let mut miss = |resource: ResourceKey, meta: &Meta, path: String, message: String| {
        let code = code::NOT_FOUND;
        let finding = Diagnostic::new(Severity::Error, code, &meta.origin, path, message);
        let help = "Create it, or correct name and namespace.";
        out.push(finding.with_resource(resource).with_help(help));
    };
    for route in super::attach::routes(snapshot) {
        for (index, parent) in route.parents().iter().enumerate() {
            let own = &route.meta().namespace;
            let home = parent.namespace.as_deref().unwrap_or(own);
            if parent.group == api::GROUP && !exists(&parent.kind, home, &parent.name) {
                let message = format!("{} {home}/{} is not defined", parent.kind, parent.name);
                let path = format!("spec.parentRefs[{index}]");
                miss(route.key(), route.meta(), path, message);
            }
        }
    }
    for set in tables.listener_sets.iter() {
        let parent = &set.spec.parent_ref;
        let home = parent.namespace.as_deref().unwrap_or(&set.meta.namespace);
        if !exists("Gateway", home, &parent.name) {
            let message = format!("Gateway {home}/{} is not defined", parent.name);
            let resource = key(Kind::ListenerSet, &set.meta);
            miss(resource, &set.meta, "spec.parentRef".to_owned(), message);
        }
    }
}

impl Snapshot {
    /// A resource of the Gateway API by its kind in lower case (`httproute`).
    pub fn gateway_api_meta(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<(Kind, &Meta)> {
        let kinds = [
            Kind::HttpRoute,
            Kind::GrpcRoute,
            Kind::TlsRoute,
            Kind::TcpRoute,
            Kind::BackendTlsPolicy,
        ];
        let kind = kinds.into_iter().find(|one| one.as_str().eq_ignore_ascii_case(kind))?;
        let key = ResourceKey { kind, namespace: namespace.into(), name: name.into() };
        Some((kind, meta_of(self, &key)?))
    }
}

fn meta_of<'a>(snapshot: &'a Snapshot, key: &ResourceKey) -> Option<&'a Meta> {
    let tables = &snapshot.inner.gateway_api;
    let (namespace, name) = (&key.namespace, &key.name);
    Some(match key.kind {
        Kind::GatewayClass => &tables.classes.get(namespace, name)?.meta,
        Kind::KubeGateway => &tables.gateways.get(namespace, name)?.meta,
        Kind::ListenerSet => &tables.listener_sets.get(namespace, name)?.meta,
        Kind::HttpRoute => &tables.http_routes.get(namespace, name)?.meta,
        Kind::GrpcRoute => &tables.grpc_routes.get(namespace, name)?.meta,
        Kind::TlsRoute => &tables.tls_routes.get(namespace, name)?.meta,
        Kind::TcpRoute => &tables.tcp_routes.get(namespace, name)?.meta,
        Kind::BackendTlsPolicy => &tables.backend_tls_policies.get(namespace, name)?.meta,
        _ => return None,
    })
}

impl Status {
    /// As the API's `status`; without times, which only a store can give.
    pub fn to_json(&self) -> Value {
        let conditions = |list: &[Condition]| -> Value {
            list.iter().map(|one| one.to_json(self.observed)).collect()
        };
        let mut status = serde_json::Map::new();
        let policy = self.resource.kind == Kind::BackendTlsPolicy;
        if !self.parents.is_empty() {
            let (list, reference) =
                if policy { ("ancestors", "ancestorRef") } else { ("parents", "parentRef") };
            let parents = self.parents.iter().map(|one| {
                json!({
                    reference: parent_json(&one.parent),
                    "controllerName": CONTROLLER,
                    "conditions": conditions(&one.conditions),
                })
            });
            status.insert(list.into(), parents.collect());
        } else {
            status.insert("conditions".into(), conditions(&self.conditions));
        }
        if !self.listeners.is_empty() {
            let listeners = self.listeners.iter().map(|one| {
                let kinds = one.supported_kinds.iter();
                let kinds: Value =
                    kinds.map(|kind| json!({"group": api::GROUP, "kind": kind.as_str()})).collect();
                json!({
                    "name": one.name,
                    "supportedKinds": kinds,
                    "attachedRoutes": one.attached_routes,
                    "conditions": conditions(&one.conditions),
                })
            });
            status.insert("listeners".into(), listeners.collect());
        }
        if !self.addresses.is_empty() {
            let addresses = self.addresses.iter().map(|one| {
                let is_ip = one.parse::<std::net::IpAddr>().is_ok();
                json!({"type": if is_ip { "IPAddress" } else { "Hostname" }, "value": one})
            });
            status.insert("addresses".into(), addresses.collect());
        }
        json!({
            "kind": self.resource.kind.as_str(),
            "namespace": &*self.resource.namespace,
            "name": &*self.resource.name,
            "status": status,
        })
    }
}

impl Condition {
    fn to_json(&self, observed: i64) -> Value {
        json!({
            "type": self.name,
            "status": if self.holds { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": observed,
        })
    }
}

fn parent_json(parent: &api::ParentRef) -> Value {
    let mut fields = serde_json::Map::new();
    fields.insert("group".into(), parent.group.as_str().into());
    fields.insert("kind".into(), parent.kind.as_str().into());
    if let Some(namespace) = &parent.namespace {
        fields.insert("namespace".into(), namespace.as_str().into());
    }
    fields.insert("name".into(), parent.name.as_str().into());
    if let Some(section) = &parent.section_name {
        fields.insert("sectionName".into(), section.as_str().into());
    }
    if let Some(port) = parent.port {
        fields.insert("port".into(), port.into());
    }
    Value::Object(fields)
}

/// The host of a Service that a policy targets.
pub(super) fn service_host(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}
