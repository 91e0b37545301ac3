//! The Helm chart in `deploy/helm/weft`: made from what is printed, so that it cannot say anything
//! else, and rendered again to see that it does not.
//!
//! A value is a placeholder that is replaced in the text; a switch is the lines that are missing when
//! it is off.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use gtmpl_value::Value as Shown;
use serde_json::{Value, json};

use super::{Install, manifests, yaml};

/// Placeholders (as no name of ours begins) and what stands for them in a template.
const TEXTS: [(&str, &str); 6] = [
    ("qq-namespace", "{{ .Release.Namespace }}"),
    ("qq-image", "{{ .Values.image }}"),
    ("qq-policy", "{{ .Values.imagePullPolicy }}"),
    ("qq-revision", "{{ .Values.revision }}"),
    ("qq-cluster", "{{ .Values.clusterId }}"),
    ("qq-domain", "{{ .Values.trustDomain }}"),
];
const NUMBERS: [(u32, &str); 5] = [
    (987_650, "{{ .Values.replicas }}"),
    (987_651, "{{ .Values.ingressGateway.minReplicas }}"),
    (987_652, "{{ .Values.ingressGateway.maxReplicas }}"),
    (987_653, "{{ .Values.egressGateway.minReplicas }}"),
    (987_654, "{{ .Values.egressGateway.maxReplicas }}"),
];
/// Conditions, and what switches them off.
type Switch = (&'static str, fn(&mut Install));
const SWITCHES: [Switch; 4] = [
    (".Values.webhooks", |install| install.webhooks = false),
    (".Values.ingressGateway.enabled", |install| install.ingress_gateway.enabled = false),
    (".Values.egressGateway.enabled", |install| install.egress_gateway.enabled = false),
    (".Values.imagePullPolicy", |install| install.image_pull_policy.clear()),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/weft")
}

/// The chart's namespace is Helm's to make.
fn printed(install: &Install) -> String {
    yaml(&manifests(install)[1..])
}

fn template(revision: &str) -> String {
    let mut full = Install {
        namespace: TEXTS[0].0.to_owned(),
        image: TEXTS[1].0.to_owned(),
        image_pull_policy: TEXTS[2].0.to_owned(),
        revision: revision.to_owned(),
        cluster_id: TEXTS[4].0.to_owned(),
        trust_domain: TEXTS[5].0.to_owned(),
        replicas: NUMBERS[0].0,
        ..Install::default()
    };
    full.egress_gateway.enabled = true;
    let gateways = [&mut full.ingress_gateway, &mut full.egress_gateway];
    for (gateway, numbers) in gateways.into_iter().zip(NUMBERS[1..].chunks(2)) {
        (gateway.min_replicas, gateway.max_replicas) = (numbers[0].0, numbers[1].0);
    }
    let mut lines: Vec<(String, BTreeSet<&'static str>)> = Vec::new();
    for manifest in &manifests(&full)[1..] {
        let text = yaml(std::slice::from_ref(manifest));
        let mut marked: Vec<(String, BTreeSet<_>)> =
            text.lines().map(|line| (line.to_owned(), BTreeSet::new())).collect();
        for (condition, off) in SWITCHES {
            let mut less = full.clone();
            off(&mut less);
            let less = manifests(&less);
            let is_it = |one: &&Value| {
                one["kind"] == manifest["kind"]
                    && one["metadata"]["name"] == manifest["metadata"]["name"]
            };
            let less = less.iter().find(is_it).map(|one| yaml(std::slice::from_ref(one)));
            let less = less.unwrap_or_default();
            let mut left = less.lines().peekable();
            for (line, conditions) in &mut marked {
                match left.peek() == Some(&line.as_str()) {
                    true => drop(left.next()),
                    false => drop(conditions.insert(condition)),
                }
            }
            assert_eq!(left.next(), None, "{condition} only takes lines away");
        }
        lines.extend(marked);
    }
    let mut out = format!(
        "{{{{- if {}eq .Values.revision \"default\"{} }}}}\n",
        if revision == "default" { "" } else { "not (" },
        if revision == "default" { "" } else { ")" }
    );
    let none = BTreeSet::new();
    let mut before = &none;
    for (line, now) in &lines {
        if before != now {
            out.push_str(if before.is_empty() { "" } else { "{{- end }}\n" });
            let all: Vec<&str> = now.iter().copied().collect();
            match all.as_slice() {
                [] => {}
                [one] => out.push_str(&format!("{{{{- if {one} }}}}\n")),
                all => out.push_str(&format!("{{{{- if and {} }}}}\n", all.join(" "))),
            }
            before = now;
        }
        out.push_str(&filled(line));
        out.push('\n');
    }
    out.push_str(if before.is_empty() { "" } else { "{{- end }}\n" });
    out + "{{- end }}\n"
}

/// A line with values for placeholders; a text is quoted, whatever it will be.
fn filled(line: &str) -> String {
    let mut line = line.to_owned();
    for (number, value) in NUMBERS {
        line = line.replace(&number.to_string(), value);
    }
    if !TEXTS.iter().any(|(placeholder, _)| line.contains(placeholder)) {
        return line;
    }
    let trimmed = line.trim_start();
    let indent = line.len() - trimmed.len();
    let begin = match trimmed.strip_prefix("- ") {
        Some(item) => item.find(": ").filter(|_| !item.starts_with('-')).map_or(2, |at| at + 4),
        None => trimmed.find(": ").map_or(0, |at| at + 2),
    };
    let (head, scalar) = line.split_at(indent + begin);
    let mut scalar = scalar.trim_matches(['"', '\'']).to_owned();
    for (placeholder, value) in TEXTS {
        scalar = scalar.replace(placeholder, value);
    }
    format!("{head}\"{scalar}\"")
}

/// Values of a chart, as the engine takes them.
fn shown(value: &Value) -> Shown {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), shown(value)));
            Shown::Object(fields.collect::<HashMap<_, _>>())
        }
        Value::Bool(value) => Shown::Bool(*value),
        Value::Number(number) => Shown::from(number.as_i64().expect("a small number")),
        Value::String(text) => Shown::String(text.clone()),
        other => panic!("{other} in values"),
    }
}

fn documents(text: &str) -> Vec<Value> {
    let all = text.split("\n---").map(|one| one.trim_start_matches("---"));
    let all = all.filter(|one| !one.trim().is_empty());
    all.map(|one| serde_saphyr::from_str(one).unwrap_or_else(|e| panic!("{e}: {one}"))).collect()
}

const FILES: [(&str, &str); 2] = [("default.yaml", "default"), ("revision.yaml", "qq-revision")];

#[test]
fn the_chart_renders_to_what_is_printed() {
    let templates = folder().join("templates");
    if std::env::var_os("UPDATE").is_some() {
        for (file, revision) in FILES {
            std::fs::write(templates.join(file), template(revision)).expect("it is writable");
        }
    }
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let committed: Vec<String> =
        FILES.iter().map(|(file, _)| read(&templates.join(file))).collect();
    for ((_, revision), committed) in FILES.iter().zip(&committed) {
        assert!(template(revision) == *committed, "run with UPDATE=1");
    }
    let defaults: Value =
        serde_saphyr::from_str(&read(&folder().join("values.yaml"))).expect("YAML");
    let choices: [&[&str]; 6] = [
        &[],
        &["webhooks=false", "image=registry:5000/weft:1", "replicas=3"],
        &["revision=next", "imagePullPolicy=Always", "egressGateway.enabled=true"],
        &["revision=next", "webhooks=false", "ingressGateway.enabled=false"],
        &["imagePullPolicy=Never", "egressGateway.enabled=true", "ingressGateway.maxReplicas=9"],
        &["clusterId=c2", "trustDomain=example.org", "ingressGateway.enabled=false"],
    ];
    for sets in choices {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let mut all = sets.clone();
        all.push("namespace=mesh".to_owned());
        let install = Install::read(&[], &all).expect("values");
        let expected = documents(&printed(&install));
        let rendered = rendered(&committed, &defaults, &sets);
        for (rendered, expected) in rendered.iter().zip(&expected) {
            assert_eq!(rendered, expected, "{sets:?}");
        }
        assert_eq!(rendered.len(), expected.len(), "{sets:?}");
        if let Some(helm) = helm() {
            assert_eq!(by_helm(&helm, &sets), sorted(expected), "{sets:?}");
        }
    }
}

fn rendered(templates: &[String], defaults: &Value, sets: &[String]) -> Vec<Value> {
    let mut values = defaults.clone();
    for set in sets {
        let (name, value) = set.split_once('=').expect("a pair");
        let pointer = format!("/{}", name.replace('.', "/"));
        let place = values.pointer_mut(&pointer).unwrap_or_else(|| panic!("{name} has a default"));
        *place = serde_saphyr::from_str(value).expect("YAML");
    }
    let context = json!({"Values": values, "Release": {"Namespace": "mesh"}});
    let render = |text: &String| {
        let text = gtmpl::template(text, shown(&context));
        documents(&text.unwrap_or_else(|error| panic!("{error}")))
    };
    templates.iter().flat_map(render).collect()
}

/// The real one, where there is one.
fn helm() -> Option<PathBuf> {
    let named = std::env::var_os("WEFT_HELM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|one| one.join("helm")).find(|p| p.exists()))
}

fn by_helm(helm: &Path, sets: &[String]) -> Vec<Value> {
    let lint = Command::new(helm).args(["lint", "--strict"]).arg(folder()).output();
    let lint = lint.expect("helm runs");
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    let mut command = Command::new(helm);
    command.args(["template", "weft", "--namespace", "mesh"]).arg(folder());
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.output().expect("helm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sorted(documents(&String::from_utf8(output.stdout).expect("text")))
}

/// Helm sorts by kind.
fn sorted(mut all: Vec<Value>) -> Vec<Value> {
    all.sort_by_key(|one| format!("{} {}", one["kind"], one["metadata"]["name"]));
    all
}
