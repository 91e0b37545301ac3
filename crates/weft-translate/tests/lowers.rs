//! Our own proxy takes everything that translation writes: Istio's samples and the tour of features
//! lower without an error, and no route or listener refers to a cluster or table that is not there.

mod common;

use std::path::{Path, PathBuf};

use common::{snapshot_with_findings, view};
use weft_model::Snapshot;
use weft_traffic::Tables;
use weft_traffic::lower::{self, Lowered};
use weft_traffic::tables::Change;
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView, endpoints, translate};
use weft_xds::Resource;
use weft_xds::pb::google::protobuf::Any;
use weft_xds::type_url;

fn views() -> Vec<ProxyView> {
    let gateway_labels = [("istio", "ingressgateway"), ("app", "istio-ingressgateway")];
    let gateway =
        view(ProxyKind::Gateway, "istio-system", "istio-ingressgateway-0", &gateway_labels);
    let sidecar_labels = [("app", "productpage"), ("version", "v1")];
    let sidecar = view(ProxyKind::Sidecar, "default", "productpage-v1-0", &sidecar_labels);
    let mut views = Vec::new();
    for view in [gateway, sidecar] {
        for interception in [Interception::None, Interception::Redirect, Interception::Tproxy] {
            for flavor in [Flavor::Weft, Flavor::Envoy] {
                views.push(ProxyView { interception, flavor, ..view.clone() });
            }
        }
    }
    views
}

/// Lowers everything for one view. Lines say what went wrong.
fn complaints(snapshot: &Snapshot, view: &ProxyView) -> Vec<String> {
    let (resources, _) = translate(snapshot, view);
    // Only a captured sidecar always has something; others have what resources ask for.
    let always = view.kind == ProxyKind::Sidecar && view.interception != Interception::None;
    assert!(!always || resources.listeners.len() >= 2);
    let mut tables = Tables::default();
    let mut complaints = Vec::new();
    for resource in &resources.clusters {
        add(&mut tables, type_url::CLUSTER, resource, &mut complaints);
    }
    for resource in &resources.listeners {
        add(&mut tables, type_url::LISTENER, resource, &mut complaints);
    }
    for resource in &resources.routes {
        add(&mut tables, type_url::ROUTE, resource, &mut complaints);
    }
    for name in tables.eds_names() {
        match endpoints(snapshot, view, &name) {
            Some(resource) => add(&mut tables, type_url::ENDPOINT, &resource, &mut complaints),
            None => complaints.push(format!("no endpoints for {name}")),
        }
    }
    complaints.extend(tables.missing_routes().iter().map(|name| format!("no route table {name}")));
    complaints
}

fn add(tables: &mut Tables, url: &str, resource: &Resource, complaints: &mut Vec<String>) {
    let any = Any { type_url: url.to_owned(), value: resource.body.to_vec() };
    let change = match lower::any(&any) {
        Ok(Lowered::Listener(listener)) => Change::Listener(listener.name.clone(), Some(listener)),
        Ok(Lowered::Route(table)) => Change::Route(table.name.clone(), Some(table)),
        Ok(Lowered::Cluster(cluster)) => Change::Cluster(cluster.name.clone(), Some(cluster)),
        Ok(Lowered::Endpoints(name, set)) => Change::Endpoints(name, Some(set)),
        Err(error) => return complaints.push(error.to_string()),
    };
    *tables = tables.with([change]);
}

fn yaml_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

fn check_all(name: &str, snapshot: &Snapshot, failures: &mut Vec<String>) {
    // A stock Envoy gets filters by EnvoyFilter that ours goes without.
    let patched = snapshot.all_envoy_filters().next().is_some();
    let ours = |view: &ProxyView| !patched || view.flavor == Flavor::Weft;
    for view in views().into_iter().filter(ours) {
        for complaint in complaints(snapshot, &view) {
            let line = format!("{name} {:?} {:?}: {complaint}", view.kind, view.interception);
            if !failures.contains(&line) {
                failures.push(line);
            }
        }
    }
}

#[test]
fn istio_samples_lower() {
    let Some(data) = weft_testkit::peer::data("istio_samples_lower") else { return };
    let samples = data.join("samples");
    let read = |path: &Path| std::fs::read_to_string(path).expect("sample is readable");
    let base = read(&samples.join("bookinfo/kube/bookinfo.yaml"));
    let rules = read(&samples.join("bookinfo/networking/destination-rule-all.yaml"));
    let mut files = Vec::new();
    yaml_files(&samples, &mut files);
    files.sort();
    let mut failures = Vec::new();
    for file in files {
        let text = read(&file);
        if text.contains("networking.istio.io") || text.contains("security.istio.io") {
            let (snapshot, _) =
                snapshot_with_findings(&format!("{base}\n---\n{rules}\n---\n{text}"));
            check_all(&file.display().to_string(), &snapshot, &mut failures);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_tour_of_features_lowers() {
    let (snapshot, _) = snapshot_with_findings(include_str!("data/tour.yaml"));
    let mut failures = Vec::new();
    check_all("tour", &snapshot, &mut failures);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Bytes of real resources, changed here and there: lowering may refuse them, but never panics.
#[test]
fn damaged_resources_never_panic() {
    let (snapshot, _) = snapshot_with_findings(include_str!("data/tour.yaml"));
    let mut state = 0x2026_1121_u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for view in views() {
        let (resources, _) = translate(&snapshot, &view);
        let of = |url: &'static str, list: Vec<Resource>| list.into_iter().map(move |r| (url, r));
        let all = of(type_url::LISTENER, resources.listeners)
            .chain(of(type_url::ROUTE, resources.routes))
            .chain(of(type_url::CLUSTER, resources.clusters));
        for (url, resource) in all {
            for _ in 0..20 {
                let mut value = resource.body.to_vec();
                for _ in 0..=random() % 4 {
                    let at = random() % value.len().max(1);
                    match random() % 3 {
                        0 => value[at] = random() as u8,
                        1 => value[at] ^= 1 << (random() % 8),
                        _ => value.truncate(at.max(1)),
                    }
                }
                let _ = lower::any(&Any { type_url: url.to_owned(), value });
            }
        }
    }
}
