//! On which ports the workload receives traffic, and where the application is.
//!
//! From the Sidecar's `ingress`; else, for captured workloads, from the services that select it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_model::spec::{ConnectionPoolSettings, IngressListener};
use weft_model::{Endpoint, MeshService, MtlsMode, Protocol, TargetPort};

use crate::scope::Scope;
use crate::view::Interception;

/// One port of the workload.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadPort<'a> {
    /// The port that clients connect to.
    pub(crate) port: u16,
    /// The service's port that leads there; the same number where none is known.
    pub(crate) service_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) mode: MtlsMode,
    pub(crate) application: Application,
    /// The service the port belongs to, when one is known.
    pub(crate) service: Option<&'a MeshService>,
    /// The Sidecar listener the port comes from, and its index.
    pub(crate) ingress: Option<(usize, &'a IngressListener)>,
    pub(crate) pool: Option<&'a ConnectionPoolSettings>,
}

/// Where the application listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Application {
    /// At the address the client wanted; the traffic was captured.
    Captured,
    Socket(SocketAddr),
    Unix(String),
}

/// The workload's ports, ordered by number.
pub(crate) fn of_workload<'a>(scope: &Scope<'a>) -> Vec<WorkloadPort<'a>> {
    let mut ports: BTreeMap<u16, WorkloadPort<'a>> = BTreeMap::new();
    let declared = scope.sidecar.map_or(&[][..], |sidecar| &sidecar.spec.ingress);
    for (index, listener) in declared.iter().enumerate() {
        if let Some(port) = of_ingress(scope, index, listener) {
            ports.entry(port.port).or_insert(port);
        }
    }
    // Without capture an undeclared port cannot be listened on: the application has it already.
    if declared.is_empty() && scope.view.interception != Interception::None {
        for port in of_services(scope) {
            ports.entry(port.port).or_insert(port);
        }
    }
    ports.into_values().collect()
}

fn of_ingress<'a>(
    scope: &Scope<'a>,
    index: usize,
    listener: &'a IngressListener,
) -> Option<WorkloadPort<'a>> {
    let declared = listener.port.as_ref()?;
    let number = u16::try_from(declared.number).ok().filter(|number| *number != 0)?;
    let service = scope.own_services().into_iter().find(|service| targets(scope, service, number));
    Some(WorkloadPort {
        port: number,
        service_port: number,
        protocol: Protocol::parse(&declared.protocol).unwrap_or(Protocol::Auto),
        mode: mode(scope, number),
        application: default_endpoint(scope, &listener.default_endpoint, number),
        service: service.map(|service| &**service),
        ingress: Some((index, listener)),
        pool: listener.connection_pool.as_ref().or_else(|| inbound_pool(scope)),
    })
}

fn of_services<'a>(scope: &Scope<'a>) -> Vec<WorkloadPort<'a>> {
    let mut ports = Vec::new();
    for service in scope.own_services() {
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let Some(number) = target(scope, service, port.number) else { continue };
            ports.push(WorkloadPort {
                port: number,
                service_port: port.number,
                protocol: port.protocol,
                mode: mode(scope, number),
                application: Application::Captured,
                service: Some(service),
                ingress: None,
                pool: inbound_pool(scope),
            });
        }
    }
    ports
}

fn inbound_pool<'a>(scope: &Scope<'a>) -> Option<&'a ConnectionPoolSettings> {
    scope.sidecar?.spec.inbound_connection_pool.as_ref()
}

fn mode(scope: &Scope<'_>, port: u16) -> MtlsMode {
    scope.snapshot.peer_mode_for(&scope.view.namespace, &scope.view.labels, port)
}

/// Does one of the service's ports lead to this port of the workload?
fn targets(scope: &Scope<'_>, service: &MeshService, number: u16) -> bool {
    service.ports.iter().any(|port| target(scope, service, port.number) == Some(number))
}

/// The workload's own port for a service's port.
pub(crate) fn target(scope: &Scope<'_>, service: &MeshService, service_port: u16) -> Option<u16> {
    let own = |endpoint: &&Endpoint| match (&endpoint.workload, scope.workload) {
        (Some(other), Some(own)) => other.name == own.name && other.namespace == own.namespace,
        _ => false,
    };
    if let Some(endpoint) = service.endpoints.iter().find(own) {
        return endpoint.port(service_port);
    }
    match service.port(service_port)?.target {
        TargetPort::Number(number) => Some(number),
        TargetPort::Name(_) => None,
    }
}

/// `127.0.0.1:PORT`, `[::1]:PORT`, `0.0.0.0:PORT` (the workload's own address),
/// `unix:///path`; without one the application is on loopback at the same port.
fn default_endpoint(scope: &Scope<'_>, text: &str, port: u16) -> Application {
    if let Some(path) = text.strip_prefix("unix://") {
        return Application::Unix(path.to_owned());
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => {
            Application::Socket(SocketAddr::new(scope.view.primary_address(), address.port()))
        }
        Ok(address) => Application::Socket(address),
        Err(_) if text.is_empty() && scope.view.interception != Interception::None => {
            Application::Captured
        }
        Err(_) => Application::Socket(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
    }
}
