//! Whole configurations as JSON, compared with files in `golden/`. `UPDATE=1` rewrites them.

mod common;

use std::path::Path;

use common::{snapshot, view};
use serde_json::{Value, json};
use weft_model::Snapshot;
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView, endpoints, translate};
use weft_xds::{Resource, type_url};

fn to_json(url: &str, resources: &[Resource]) -> Value {
    resources.iter().map(|resource| weft_xds::json::body_to_json(url, &resource.body)).collect()
}

fn configuration(snapshot: &Snapshot, view: &ProxyView) -> Value {
    let (resources, findings) = translate(snapshot, view);
    let assignments: Vec<Resource> = resources
        .clusters
        .iter()
        .filter_map(|cluster| endpoints(snapshot, view, &cluster.name))
        .collect();
    json!({
        "clusters": to_json(type_url::CLUSTER, &resources.clusters),
        "endpoints": to_json(type_url::ENDPOINT, &assignments),
        "listeners": to_json(type_url::LISTENER, &resources.listeners),
        "routes": to_json(type_url::ROUTE, &resources.routes),
        "findings": findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn check(name: &str, snapshot: &Snapshot, view: &ProxyView) {
    let mut actual =
        serde_json::to_string_pretty(&sorted(configuration(snapshot, view))).expect("JSON");
    actual.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("UPDATE").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &actual).expect("golden is written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (left, right))) =
        actual.lines().zip(expected.lines()).enumerate().find(|(_, (left, right))| left != right)
    {
        panic!("{name}:{}: now {left:?}, golden has {right:?} (UPDATE=1 rewrites)", line + 1);
    }
    assert_eq!(actual.lines().count(), expected.lines().count(), "{name} (UPDATE=1 rewrites)");
}

/// Maps of protobuf have no order; the golden file has one.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(values) => values.into_iter().map(sorted).collect(),
        other => other,
    }
}

const SHOP: &str = include_str!("data/shop.yaml");

#[test]
fn sidecar_without_capture() {
    let labels = [("app", "servicea"), ("version", "v1")];
    let mut view = view(ProxyKind::Sidecar, "default", "servicea-v1-0", &labels);
    view.flavor = Flavor::Weft;
    view.interception = Interception::None;
    view.addresses = vec!["127.2.0.1".parse().expect("address")];
    check("sidecar_without_capture.json", &snapshot(SHOP), &view);
}

#[test]
fn captured_sidecar_for_stock_envoy() {
    let view = view(ProxyKind::Sidecar, "default", "client-0", &[("app", "client")]);
    check("captured_sidecar.json", &snapshot(SHOP), &view);
}

#[test]
fn gateway() {
    let labels = [("istio", "ingressgateway")];
    let mut view = view(ProxyKind::Gateway, "istio-system", "ingress-0", &labels);
    view.flavor = Flavor::Weft;
    view.interception = Interception::None;
    check("gateway.json", &snapshot(SHOP), &view);
}

#[test]
fn gateway_api_for_stock_envoy() {
    let world = snapshot(&common::gateway_api());
    check("gateway_api.json", &world, &common::api_gateway());
}

#[test]
fn proxyless_grpc() {
    let view = view(ProxyKind::Grpc, "default", "client-0", &[("app", "client")]);
    check("grpc.json", &snapshot(SHOP), &view);
}

/// Equal arguments give equal bytes, whatever order hash maps have this time.
#[test]
fn equal_arguments_give_equal_bytes() {
    let yaml = include_str!("data/tour.yaml");
    let views = [
        view(ProxyKind::Sidecar, "default", "productpage-v1-0", &[("app", "productpage")]),
        view(ProxyKind::Gateway, "istio-system", "ingress-0", &[("istio", "ingressgateway")]),
        view(ProxyKind::Grpc, "default", "client-0", &[]),
    ];
    for view in &views {
        let first = translate(&snapshot(yaml), view).0;
        for _ in 0..5 {
            assert_eq!(translate(&snapshot(yaml), view).0, first);
        }
    }
}
