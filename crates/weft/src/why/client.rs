//! Who asks: a workload beside its sidecar, or somebody outside at a gateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use weft_model::gateway_api::GATEWAY_NAME_LABEL;
use weft_model::{Address, Labels, Snapshot, Workload, resolve_host};
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView};

use super::request::Request;

/// An address that no service has: what a name means that the mesh does not know.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 240, 255, 254));

pub(super) struct Client {
    /// The proxy that takes the request first.
    pub(super) view: ProxyView,
    pub(super) name: String,
    pub(super) address: IpAddr,
    /// Where the client connects to.
    pub(super) to: SocketAddr,
}

/// The client, or every gateway a client outside might use.
pub(super) fn find(
    snapshot: &Snapshot,
    connected: &[ProxyView],
    from: Option<&str>,
    request: &Request,
) -> anyhow::Result<Vec<Client>> {
    let Some(from) = from else {
        let mut clients = outside(snapshot, request);
        clients.iter_mut().for_each(|client| meet_connected(client, connected));
        return Ok(clients);
    };
    let (namespace, name) = from.split_once('/').unwrap_or(("default", from));
    let workload = snapshot.workload_by_name(namespace, name).with_context(|| {
        let known: Vec<String> = snapshot
            .workloads()
            .take(20)
            .map(|one| format!("{}/{}", one.namespace, one.name))
            .collect();
        format!("no Pod or WorkloadEntry {namespace}/{name}; there are: {}", known.join(", "))
    })?;
    let mut client = inside(snapshot, workload, request);
    let same = |view: &&ProxyView| {
        (&*view.namespace, &*view.name) == (&*workload.namespace, &*workload.name)
    };
    if let Some(view) = connected.iter().find(same) {
        client.view = view.clone();
    }
    meet_allocated(snapshot, &mut client, request);
    Ok(vec![client])
}

/// A proxy that answers DNS says where hosts without addresses are.
fn meet_allocated(snapshot: &Snapshot, client: &mut Client, request: &Request) {
    if client.to.ip() != UNKNOWN || !client.view.answers_dns() {
        return;
    }
    let service = snapshot.service_from(&request.host, &client.view.namespace);
    let allocated = service.and_then(|service| snapshot.allocated_addresses(service).first());
    if let Some(address) = allocated {
        client.to.set_ip(*address);
    }
}

/// The client meets a connected gateway that the Gateway resource selects, if there is one.
fn meet_connected(client: &mut Client, connected: &[ProxyView]) {
    let selected = |view: &&ProxyView| {
        let has = |(key, value): (&String, &String)| view.labels.get(key) == Some(value);
        view.kind == ProxyKind::Gateway && client.view.labels.iter().all(has)
    };
    if let Some(view) = connected.iter().find(selected) {
        client.view = view.clone();
        if let Some(address) = view.addresses.first() {
            client.to.set_ip(*address);
        }
    }
}

fn inside(snapshot: &Snapshot, workload: &Workload, request: &Request) -> Client {
    let address = workload.ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let view = ProxyView {
        kind: ProxyKind::Sidecar,
        flavor: Flavor::Weft,
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        addresses: workload.ips.to_vec(),
        labels: workload.labels.as_ref().clone(),
        cluster_id: workload.cluster.clone(),
        locality: workload.locality.clone(),
        interception: Interception::Redirect,
        metadata: Arc::new(answering(snapshot)),
    };
    Client {
        view,
        name: format!("{}/{}", workload.namespace, workload.name),
        address,
        to: SocketAddr::new(resolve(snapshot, &workload.namespace, &request.host), request.port),
    }
}

/// Node metadata of a proxy that is started as the mesh wants it: whether it answers DNS.
fn answering(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let metadata = &snapshot.mesh().default_config.proxy_metadata;
    let said = metadata.get("ISTIO_META_DNS_CAPTURE");
    said.map(|value| ("DNS_CAPTURE".to_owned(), value.clone())).into_iter().collect()
}

/// What DNS says to a workload of the namespace.
fn resolve(snapshot: &Snapshot, namespace: &str, host: &str) -> IpAddr {
    if let Ok(ip) = host.parse() {
        return ip;
    }
    let full = resolve_host(host, namespace);
    let service =
        [host, &*full, &format!("{host}.cluster.local"), &format!("{host}.svc.cluster.local")]
            .into_iter()
            .find_map(|name| snapshot.service_from(name, namespace));
    let Some(service) = service else { return UNKNOWN };
    let own = service.addresses.first().copied();
    // A headless service's name means its endpoints.
    own.or_else(|| {
        service.endpoints.iter().find_map(|endpoint| match &endpoint.address {
            Address::Ip(ip) => Some(*ip),
            Address::Host(_) | Address::Unix(_) => None,
        })
    })
    .unwrap_or(UNKNOWN)
}

/// One client for each set of gateway proxies that a Gateway resource selects.
fn outside(snapshot: &Snapshot, request: &Request) -> Vec<Client> {
    let mut selected: BTreeMap<(String, String), Client> = BTreeMap::new();
    for gateway in snapshot.all_gateways() {
        let selector = &gateway.spec.selector;
        let workload = snapshot.workloads().find(|workload| {
            selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        });
        let namespace = workload.map_or(&gateway.meta.namespace, |workload| &workload.namespace);
        let labels = workload.map_or(selector, |workload| &workload.labels);
        let client = at_gateway(workload, namespace, labels, request);
        selected.entry((namespace.to_string(), format!("{labels:?}"))).or_insert(client);
    }
    for gateway in &snapshot.gateway_api().gateways {
        let meta = &gateway.resource.meta;
        let made = Labels::from([(GATEWAY_NAME_LABEL.to_owned(), meta.name.to_string())]);
        let workload = snapshot.workloads().find(|workload| {
            let services = snapshot.services_of(workload);
            let own: Vec<&str> = services.iter().map(|service| &*service.host).collect();
            let served = snapshot.served_gateways(&workload.namespace, &workload.labels, &own);
            served.iter().any(|one| std::ptr::eq(*one, gateway))
        });
        let namespace = workload.map_or(&meta.namespace, |workload| &workload.namespace);
        let labels = workload.map_or(&made, |workload| &workload.labels);
        let client = at_gateway(workload, namespace, labels, request);
        selected.entry((namespace.to_string(), format!("{labels:?}"))).or_insert(client);
    }
    selected.into_values().collect()
}

/// Somebody outside who reaches a gateway's proxy: this workload, or one that would be like it.
fn at_gateway(
    workload: Option<&Arc<Workload>>,
    namespace: &Arc<str>,
    labels: &Labels,
    request: &Request,
) -> Client {
    let view = ProxyView {
        kind: ProxyKind::Gateway,
        flavor: Flavor::Weft,
        name: workload.map_or("gateway".into(), |workload| workload.name.clone()),
        namespace: namespace.clone(),
        service_account: "default".into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        labels: labels.clone(),
        cluster_id: "Kubernetes".into(),
        locality: workload.map_or("".into(), |workload| workload.locality.clone()),
        interception: Interception::None,
        metadata: Default::default(),
    };
    Client {
        name: "outside".to_owned(),
        address: UNKNOWN,
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), request.port),
        view,
    }
}
