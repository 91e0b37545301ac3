//! The addresses of the hosts a sidecar's workload may ask for, as Istio's name table has them:
//! Services and ServiceEntries in sight, each Pod of a headless Service, nothing that has no
//! address. Everything else is for other name servers to know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_model::{Endpoint, MeshService, ServiceKind};
use weft_xds::nds::{self, NameInfo, NameTable};

use crate::scope::Scope;

/// What a sidecar answers.
pub(crate) fn table(scope: &Scope<'_>) -> NameTable {
    let mut table = BTreeMap::new();
    for service in scope.services() {
        let mut addresses = scope.addresses(service);
        if service.headless {
            pods(service, &mut table);
            addresses = ready(service).filter_map(|endpoint| endpoint.address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
        }
        if addresses.is_empty() {
            continue;
        }
        let short = match service.kind {
            ServiceKind::Kubernetes => &*service.name,
            ServiceKind::ServiceEntry => "",
        };
        table.insert(service.host.to_string(), info(service, short, &addresses));
    }
    NameTable { table }
}

/// `HOSTNAME.SERVICE.NAMESPACE.svc.DOMAIN` for each ready Pod that has a name of its own there.
fn pods(service: &MeshService, table: &mut BTreeMap<String, NameInfo>) {
    for endpoint in ready(service) {
        let Some(workload) = &endpoint.workload else { continue };
        let Some(hostname) = workload.hostname_in(&service.name) else { continue };
        let addresses: Vec<IpAddr> = match workload.ips.is_empty() {
            true => endpoint.address.ip().into_iter().collect(),
            false => workload.ips.to_vec(),
        };
        let short = format!("{hostname}.{}", service.name);
        let host = format!("{hostname}.{}", service.host);
        table.entry(host).or_insert_with(|| info(service, &short, &addresses));
    }
}

fn ready(service: &MeshService) -> impl Iterator<Item = &Endpoint> {
    service.endpoints.iter().filter(|endpoint| endpoint.healthy)
}

fn info(service: &MeshService, short: &str, addresses: &[IpAddr]) -> NameInfo {
    let ips = addresses.iter().map(IpAddr::to_string).collect();
    match service.kind {
        ServiceKind::Kubernetes => NameInfo {
            ips,
            registry: nds::KUBERNETES.into(),
            shortname: short.into(),
            namespace: service.namespace.to_string(),
        },
        ServiceKind::ServiceEntry => {
            NameInfo { ips, registry: nds::EXTERNAL.into(), ..NameInfo::default() }
        }
    }
}
