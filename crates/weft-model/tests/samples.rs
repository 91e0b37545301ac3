//! Istio's own sample configuration must be taken as it is. Its place is `WEFT_DATA`, or
//! `../shared/data` beside the workspace; without it the test is skipped, loudly.

use std::path::{Path, PathBuf};

use weft_model::{Severity, analyze, parse_yaml};

/// Files that hold no resources: values of a package manager.
const NO_RESOURCES: [&str; 3] = ["spire-base.yaml", "spire-east.yaml", "spire-west.yaml"];

fn yaml_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder of samples") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

#[test]
fn every_sample_is_accepted() {
    let Some(data) = weft_testkit::peer::data("every_sample_is_accepted") else { return };
    let mut files = Vec::new();
    yaml_files(&data.join("samples"), &mut files);
    assert!(files.len() > 50, "only {} samples", files.len());
    let mut objects = 0;
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (parsed, diagnostics) = parse_yaml(&path.to_string_lossy(), &text);
        objects += parsed.len();
        // What is taken, and told to have no effect yet, is taken.
        let told = |found: &&weft_model::Diagnostic| found.code == "WEFT0005";
        let loud = diagnostics.iter().filter(|found| found.severity != Severity::Info);
        for found in loud.filter(|found| !told(found)) {
            assert!(NO_RESOURCES.contains(&&*name), "{found}");
        }
    }
    assert!(objects > 150, "only {objects} objects");
}

#[test]
fn bookinfo_has_no_findings_that_matter() {
    let Some(data) = weft_testkit::peer::data("every_sample_is_accepted") else { return };
    let bookinfo = data.join("samples/bookinfo");
    let files = [
        "kube/bookinfo.yaml",
        "networking/bookinfo-gateway.yaml",
        "networking/destination-rule-all.yaml",
        "networking/virtual-service-reviews-80-20.yaml",
        "networking/virtual-service-ratings-test-delay.yaml",
    ];
    let read =
        |file: &str| (file.to_string(), std::fs::read_to_string(bookinfo.join(file)).unwrap());
    let diagnostics = analyze(&files.map(read));
    let loud: Vec<String> = diagnostics
        .iter()
        .filter(|found| found.severity != Severity::Info)
        .map(ToString::to_string)
        // The rules have subsets for versions that this sample does not run.
        .filter(|found| !found.contains("[IST0173]"))
        .collect();
    assert!(loud.is_empty(), "{loud:#?}");
}
