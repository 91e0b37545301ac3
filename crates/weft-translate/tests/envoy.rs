//! Stock Envoy accepts every configuration: Istio's samples, for sidecars and gateways, and a
//! tour of features.

mod common;

use std::path::{Path, PathBuf};

use common::{envoy, gateway_api, snapshot_with_findings, view};
use weft_testkit::peer;
use weft_translate::{Interception, ProxyKind};

/// Views that see each sample from different sides.
fn views() -> Vec<weft_translate::ProxyView> {
    let gateway = view(
        ProxyKind::Gateway,
        "istio-system",
        "istio-ingressgateway-0",
        &[("istio", "ingressgateway"), ("app", "istio-ingressgateway")],
    );
    let sidecar = view(
        ProxyKind::Sidecar,
        "default",
        "productpage-v1-0",
        &[("app", "productpage"), ("version", "v1")],
    );
    let mut uncaptured = sidecar.clone();
    uncaptured.interception = Interception::None;
    let mut uncaptured_gateway = gateway.clone();
    uncaptured_gateway.interception = Interception::None;
    vec![gateway, uncaptured_gateway, sidecar, uncaptured]
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

/// Each sample together with the services it talks about.
#[test]
fn istio_samples_validate() {
    let test = "istio_samples_validate";
    let (Some(data), Some(envoy)) = (peer::data(test), peer::envoy(test)) else { return };
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
        if !text.contains("networking.istio.io") && !text.contains("security.istio.io") {
            continue;
        }
        let (snapshot, _) = snapshot_with_findings(&format!("{base}\n---\n{rules}\n---\n{text}"));
        // Without capture nothing depends on the sample but the address that is bound.
        for view in views().iter().filter(|view| view.interception != Interception::None) {
            if let Err(complaint) = envoy::validate(&envoy, &snapshot, view) {
                failures.push(format!("{} for {:?}: {complaint}", file.display(), view.kind));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The Gateway API's features, at a gateway made for them and at a client.
#[test]
fn the_gateway_api_validates() {
    let Some(envoy) = peer::envoy("the_gateway_api_validates") else { return };
    let (snapshot, findings) = snapshot_with_findings(&gateway_api());
    let errors: Vec<_> = findings.iter().filter(|finding| finding.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for view in [common::api_gateway(), view(ProxyKind::Sidecar, "shop", "client-0", &[])] {
        let complaint = envoy::validate(&envoy, &snapshot, &view);
        assert_eq!(complaint, Ok(()), "{:?}", view.kind);
    }
}

/// Everything that we translate at least once, in one world.
#[test]
fn a_tour_of_features_validates() {
    let Some(envoy) = peer::envoy("a_tour_of_features_validates") else { return };
    let (snapshot, findings) = snapshot_with_findings(include_str!("data/tour.yaml"));
    let errors: Vec<_> = findings.iter().filter(|finding| finding.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for view in views() {
        let complaint = envoy::validate(&envoy, &snapshot, &view);
        assert_eq!(complaint, Ok(()), "{:?} {:?}", view.kind, view.interception);
    }
}

/// Credentials, revocation lists, ciphers and groups, at a sidecar and for the mesh's own TLS.
#[test]
fn tls_of_sidecars_validates() {
    let Some(envoy) = peer::envoy("tls_of_sidecars_validates") else { return };
    let (snapshot, findings) = snapshot_with_findings(include_str!("data/sidecar_tls.yaml"));
    let errors: Vec<_> = findings.iter().filter(|finding| finding.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let mut sidecar = view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client")]);
    for interception in [Interception::Redirect, Interception::None] {
        sidecar.interception = interception;
        assert_eq!(envoy::validate(&envoy, &snapshot, &sidecar), Ok(()), "{interception:?}");
    }
}
