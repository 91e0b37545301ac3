//! Endpoints of a service: from selected workloads, EndpointSlices, Endpoints, or a ServiceEntry.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::service::{
    Address, Endpoint, MeshService, Places, Resolution, ServiceAccount, ServicePort, TargetPort,
};
use super::workload::{Workload, WorkloadKind, numbered, tls_mode_label};
use super::{Inner, selects};
use crate::names::name_and_cluster;
use crate::object::Resource;
use crate::spec;

/// Selected Pods and WorkloadEntries; when there are none, EndpointSlices, then Endpoints.
pub(super) fn kube_endpoints(
    world: &Inner,
    service: &MeshService,
    places: &Places<'_>,
    not_ready_too: bool,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    if let Some(selector) = &service.selector {
        for workload in world.workloads.namespace(&service.namespace) {
            if selects(selector, &workload.labels) && places.include(&workload.name) {
                endpoints.extend(of_workload(service, workload));
            }
        }
    }
    if endpoints.is_empty() {
        for slice in world.endpoint_slices.namespace(&service.namespace) {
            let owner = slice.meta.labels.get("kubernetes.io/service-name");
            if owner.is_some_and(|name| **name == *service.name) {
                endpoints.extend(of_slice(world, service, slice));
            }
        }
    }
    if endpoints.is_empty()
        && let Some(listed) = world.endpoints.get(&service.namespace, &service.name)
    {
        endpoints.extend(of_endpoints(world, service, listed));
    }
    if not_ready_too {
        endpoints.iter_mut().for_each(|endpoint| endpoint.healthy = true);
    }
    endpoints
}

/// None when the workload has no address or serves none of the ports.
fn of_workload(service: &MeshService, workload: &Arc<Workload>) -> Option<Endpoint> {
    let address = workload.address.clone()?;
    let mut ports = BTreeMap::new();
    for port in &service.ports {
        // A WorkloadEntry's port of the same name overrides what the service says.
        let own = match workload.kind {
            WorkloadKind::WorkloadEntry => workload.ports.get(&*port.name).copied(),
            WorkloadKind::Pod => None,
        };
        let target = own.or_else(|| match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => workload.ports.get(&**name).copied(),
        });
        ports.extend(target.map(|target| (port.number, target)));
    }
    if ports.is_empty() && !service.ports.is_empty() {
        return None;
    }
    Some(backed(address, ports, workload))
}

fn backed(address: Address, ports: BTreeMap<u16, u16>, workload: &Arc<Workload>) -> Endpoint {
    Endpoint {
        address,
        ports,
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        network: workload.network.clone(),
        weight: workload.weight,
        service_account: Some(ServiceAccount {
            namespace: workload.namespace.clone(),
            name: workload.service_account.clone(),
        }),
        tls_mode_istio: workload.sidecar,
        healthy: workload.ready,
        workload: Some(workload.clone()),
    }
}

/// An endpoint that is only an address.
pub(super) fn listed(address: Address, ports: BTreeMap<u16, u16>) -> Endpoint {
    Endpoint {
        address,
        ports,
        labels: Arc::default(),
        locality: Arc::from(""),
        network: Arc::from(""),
        weight: 1,
        service_account: None,
        tls_mode_istio: false,
        healthy: true,
        workload: None,
    }
}

/// The Pod of the service's namespace and of a cluster that an address belongs to: by reference,
/// else by an address that is unique.
fn pod_behind<'a>(
    world: &'a Inner,
    service: &MeshService,
    target: Option<&spec::TargetRef>,
    address: &Address,
    cluster: Option<&str>,
) -> Option<&'a Arc<Workload>> {
    let there = world.workloads_by_ip.get(address.ip()?).iter();
    let mut there = there.filter(|workload| {
        workload.namespace == service.namespace && name_and_cluster(&workload.name).1 == cluster
    });
    match target.filter(|target| target.kind == "Pod") {
        Some(target) => there.find(|workload| name_and_cluster(&workload.name).0 == target.name),
        None => there.next().filter(|_| there.next().is_none()),
    }
}

fn joined_ports(service: &MeshService, ports: &[spec::EndpointPort]) -> BTreeMap<u16, u16> {
    let mut joined = BTreeMap::new();
    for port in &service.ports {
        let same = ports.iter().find(|p| *p.name == *port.name);
        let number = same.and_then(|p| p.port).and_then(|n| u16::try_from(n).ok());
        joined.extend(number.map(|number| (port.number, number)));
    }
    joined
}

fn of_slice(
    world: &Inner,
    service: &MeshService,
    slice: &Resource<spec::EndpointSlice>,
) -> Vec<Endpoint> {
    let ports = joined_ports(service, &slice.spec.ports);
    let cluster = name_and_cluster(&slice.meta.name).1;
    let mut endpoints = Vec::new();
    for endpoint in &slice.spec.endpoints {
        let healthy = endpoint.conditions.ready.unwrap_or(true);
        // All addresses of one slice endpoint are the same backend; the first is the one to use.
        let Some(address) = endpoint.addresses.first().and_then(|text| Address::parse(text)) else {
            continue;
        };
        let target = endpoint.target_ref.as_ref();
        let pod = pod_behind(world, service, target, &address, cluster);
        let mut built = match pod {
            Some(pod) => backed(address, ports.clone(), pod),
            None => listed(address, ports.clone()),
        };
        built.healthy = healthy;
        if built.locality.is_empty() && !endpoint.zone.is_empty() {
            built.locality = Arc::from(format!("/{}", endpoint.zone));
        }
        endpoints.push(built);
    }
    endpoints
}

fn of_endpoints(
    world: &Inner,
    service: &MeshService,
    resource: &Resource<spec::Endpoints>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for subset in &resource.spec.subsets {
        let ports = joined_ports(service, &subset.ports);
        let ready = subset.addresses.iter().map(|address| (address, true));
        let all = ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false)));
        for (entry, healthy) in all {
            let Some(address) = Address::parse(&entry.ip) else { continue };
            let pod = pod_behind(world, service, entry.target_ref.as_ref(), &address, None);
            let mut built = match pod {
                Some(pod) => backed(address, ports.clone(), pod),
                None => listed(address, ports.clone()),
            };
            built.healthy = healthy;
            endpoints.push(built);
        }
    }
    endpoints
}

pub(super) fn entry_endpoints(
    world: &Inner,
    service: &MeshService,
    spec: &spec::ServiceEntry,
) -> Vec<Endpoint> {
    if let Some(selector) = &service.selector {
        let workloads = world.workloads.namespace(&service.namespace);
        let selected = workloads.filter(|workload| selects(selector, &workload.labels));
        return selected.filter_map(|workload| of_workload(service, workload)).collect();
    }
    if !spec.endpoints.is_empty() {
        return spec.endpoints.iter().filter_map(|e| of_inline(service, e)).collect();
    }
    match service.resolution {
        // Without endpoints the host itself is resolved; a wildcard cannot be.
        Resolution::Dns | Resolution::DnsRoundRobin if !service.host.contains('*') => {
            let port = |port: &ServicePort| match port.target {
                TargetPort::Number(target) => Some((port.number, target)),
                TargetPort::Name(_) => None,
            };
            let ports = service.ports.iter().filter_map(port).collect();
            vec![listed(Address::Host(service.host.clone()), ports)]
        }
        // Istio takes the addresses of a STATIC entry without endpoints as its endpoints.
        Resolution::Static => {
            let ports: BTreeMap<u16, u16> =
                service.ports.iter().map(|port| (port.number, port.number)).collect();
            service.addresses.iter().map(|ip| listed(Address::Ip(*ip), ports.clone())).collect()
        }
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns | Resolution::None => {
            Vec::new()
        }
    }
}

/// An endpoint written inside the ServiceEntry.
fn of_inline(service: &MeshService, entry: &spec::WorkloadEntry) -> Option<Endpoint> {
    let own = numbered(&entry.ports);
    let mut ports = BTreeMap::new();
    for port in &service.ports {
        let target = own.get(&*port.name).copied().or(match port.target {
            TargetPort::Number(target) => Some(target),
            TargetPort::Name(_) => None,
        });
        ports.extend(target.map(|target| (port.number, target)));
    }
    let account = (!entry.service_account.is_empty()).then(|| ServiceAccount {
        namespace: service.namespace.clone(),
        name: Arc::from(entry.service_account.as_str()),
    });
    Some(Endpoint {
        labels: Arc::new(entry.labels.clone()),
        locality: Arc::from(entry.locality.as_str()),
        network: Arc::from(entry.network.as_str()),
        weight: entry.weight.unwrap_or(1).max(1),
        service_account: account,
        tls_mode_istio: tls_mode_label(&entry.labels).unwrap_or(false),
        ..listed(Address::parse(&entry.address)?, ports)
    })
}
