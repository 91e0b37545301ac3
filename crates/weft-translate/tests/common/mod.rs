//! YAML → snapshot, and views of proxies, for all tests of this crate.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod envoy;
pub mod land;

use std::collections::BTreeMap;

use weft_model::{Change, ChangeKind, Diagnostic, Snapshot, parse_yaml};
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView};

/// The world these documents describe. Resources with errors fail the test.
pub fn snapshot(yaml: &str) -> Snapshot {
    let (snapshot, findings) = snapshot_with_findings(yaml);
    let errors: Vec<String> =
        findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    snapshot
}

pub fn snapshot_with_findings(yaml: &str) -> (Snapshot, Vec<Diagnostic>) {
    let (objects, findings) = parse_yaml("test.yaml", yaml);
    let changes = objects
        .into_iter()
        .filter_map(|object| Some(Change { key: object.key()?, kind: ChangeKind::Upsert(object) }))
        .collect();
    (Snapshot::default().apply(changes).0, findings)
}

/// One service `reviews` with a pod, and a gateway `edge` that sends everything to it. The pod has
/// this for its annotation `proxy.istio.io/config`.
pub fn shop(proxy_config: &str) -> String {
    include_str!("../data/edge.yaml").replace("ANNOTATION", &format!("{proxy_config:?}"))
}

/// The sidecar of the shop's pod.
pub fn sidecar() -> ProxyView {
    view(ProxyKind::Sidecar, "shop", "reviews-1", &[("app", "reviews")])
}

/// The shop's gateway.
pub fn gateway() -> ProxyView {
    view(ProxyKind::Gateway, "istio-system", "edge-0", &[("app", "edge")])
}

/// The Gateway API's features at least once each, with the services they talk about.
pub fn gateway_api() -> String {
    format!(
        "{}\n---\n{}",
        include_str!("../data/services.yaml"),
        include_str!("../data/gateway_api.yaml")
    )
}

/// A stock Envoy made for Gateway `web` of namespace `shop`.
pub fn api_gateway() -> ProxyView {
    let labels = [("gateway.networking.k8s.io/gateway-name", "web")];
    view(ProxyKind::Gateway, "shop", "web-0", &labels)
}

/// A stock Envoy of this kind, captured by REDIRECT.
pub fn view(kind: ProxyKind, namespace: &str, name: &str, labels: &[(&str, &str)]) -> ProxyView {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ProxyView {
        kind,
        flavor: if kind == ProxyKind::Grpc { Flavor::Grpc } else { Flavor::Envoy },
        name: name.into(),
        namespace: namespace.into(),
        service_account: "default".into(),
        addresses: vec!["127.2.0.9".parse().expect("address")],
        labels,
        cluster_id: "Kubernetes".into(),
        locality: "".into(),
        interception: Interception::Redirect,
        metadata: Default::default(),
    }
}
