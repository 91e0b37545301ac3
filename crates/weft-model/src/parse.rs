//! Documents to [`Object`]s: which kind, metadata, typed spec, then validation. One bad document
//! never hurts the others.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;

use base64::Engine as _;
use serde::Deserialize;

use crate::diagnostic::{Diagnostic, Severity, code};
use crate::object::{Kind, Labels, Meta, Object, Origin, OwnerReference, Resource, ResourceKey};
use crate::protojson::{self, Skipped};
use crate::snapshot::{Change, ChangeKind, Snapshot};
use crate::yaml::{self, Node, Value};
use crate::{spec, validate};

/// Largest file that is read; Kubernetes itself stops at about 1.5 MiB an object.
pub const FILE_BYTES_MAX: usize = 16 << 20;
/// Documents in one file.
const DOCUMENTS_MAX: usize = 20_000;

/// Parses a file of one or many documents. Objects with an `Error` diagnostic are left out.
pub fn parse_yaml(file: &str, text: &str) -> (Vec<Object>, Vec<Diagnostic>) {
    let mut parser = Parser { file: Arc::from(file), objects: Vec::new(), diagnostics: Vec::new() };
    if text.len() > FILE_BYTES_MAX {
        let why = format!("the file has {} bytes, more than {FILE_BYTES_MAX}", text.len());
        parser.refuse(0, 1, why, "Split the file.");
        return (parser.objects, parser.diagnostics);
    }
    let documents = yaml::split(text);
    for (index, document) in documents.iter().enumerate() {
        let number = index as u32;
        if index >= DOCUMENTS_MAX {
            let why = format!("the file has more than {DOCUMENTS_MAX} documents");
            parser.refuse(number, document.line, why, "Split the file.");
            break;
        }
        match yaml::parse(document) {
            Ok(node) => parser.document(number, &node),
            Err(error) => parser.refuse(number, error.line, error.message, ""),
        }
    }
    (parser.objects, parser.diagnostics)
}

/// All findings on a set of files `(name, text)`, in their own documents and across resources;
/// the same as the control plane reports. Sorted by file, document, then severity.
pub fn analyze(files: &[(String, String)]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let mut changes = Vec::new();
    let mut seen: std::collections::HashMap<ResourceKey, Origin> = Default::default();
    for (file, text) in files {
        let (objects, found) = parse_yaml(file, text);
        diagnostics.extend(found);
        for object in objects {
            let Some(key) = object.key() else { continue };
            if let Some(first) = seen.get(&key) {
                diagnostics.push(duplicate(&key, &object.meta().origin, first));
                continue;
            }
            seen.insert(key.clone(), object.meta().origin.clone());
            changes.push(Change { key, kind: ChangeKind::Upsert(object) });
        }
    }
    let (snapshot, _) = Snapshot::default().apply(changes);
    diagnostics.extend(snapshot.diagnostics().iter().cloned());
    diagnostics.sort_by(|a, b| {
        (&a.file, a.document, a.severity, a.line).cmp(&(&b.file, b.document, b.severity, b.line))
    });
    diagnostics
}

/// The error on the second definition of `key`.
pub(crate) fn duplicate(key: &ResourceKey, at: &Origin, first: &Origin) -> Diagnostic {
    let message = format!("{key} is already defined in {}:{}", first.file, first.line);
    Diagnostic::new(Severity::Error, code::DUPLICATE_RESOURCE, at, "metadata.name", message)
        .with_resource(key.clone())
        .with_help("Remove one of the two; the first stays in force.")
}

struct Parser {
    file: Arc<str>,
    objects: Vec<Object>,
    diagnostics: Vec<Diagnostic>,
}

/// `apiVersion`, `kind`, `metadata` of a document.
struct Head {
    api_version: String,
    kind: String,
    meta: Meta,
}

impl Parser {
    fn refuse(&mut self, document: u32, line: u32, message: String, help: &str) {
        let origin = Origin { file: self.file.clone(), document, line };
        let found = Diagnostic::new(Severity::Error, code::SYNTAX, &origin, "", message);
        self.diagnostics.push(found.with_help(help));
    }

    fn document(&mut self, document: u32, node: &Node) {
        match &node.value {
            Value::Null => {}
            Value::Map(_) if is_list(node) => {
                let Some(Node { value: Value::Seq(items), .. }) = node.get("items") else { return };
                // A List inside a List is not Kubernetes; its depth is bounded by the parser.
                items.iter().for_each(|item| self.document(document, item));
            }
            Value::Map(entries) if node.get("kind").is_none() && is_mesh_config(entries) => {
                let meta = self.bare_meta(document, node);
                let head = Head { api_version: String::new(), kind: "MeshConfig".into(), meta };
                self.resource(&head, node);
            }
            Value::Map(_) => match self.head(document, node) {
                Ok(head) => self.resource(&head, node),
                Err(found) => self.diagnostics.push(found),
            },
            _ => {
                let why = format!("expected a resource, found {}", node.describe());
                self.refuse(
                    document,
                    node.line,
                    why,
                    "A resource starts with apiVersion and kind.",
                );
            }
        }
    }

    fn bare_meta(&self, document: u32, node: &Node) -> Meta {
        Meta {
            name: Arc::from("mesh"),
            namespace: Arc::from(""),
            generation: content_hash(node),
            origin: Origin { file: self.file.clone(), document, line: node.line },
            ..Meta::default()
        }
    }

    fn head(&self, document: u32, node: &Node) -> Result<Head, Diagnostic> {
        let origin = Origin { file: self.file.clone(), document, line: node.line };
        let missing = |field: &str| {
            let message = format!("{field} is missing");
            Diagnostic::new(Severity::Error, code::SCHEMA, &origin, field, message)
        };
        let text = |field: &'static str| match node.get(field).map(|n| (n.as_str(), n.line)) {
            Some((Some(text), _)) if !text.is_empty() => Ok(text.to_string()),
            Some((None, line)) => Err(Diagnostic::new(
                Severity::Error,
                code::SCHEMA,
                &origin,
                field,
                "expected a string",
            )
            .with_line(line)),
            _ => Err(missing(field)),
        };
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let raw = match node.get("metadata") {
            Some(metadata) => protojson::read::<RawMeta>(metadata, "metadata", &RefCell::default())
                .map_err(|e| {
                    Diagnostic::new(Severity::Error, code::SCHEMA, &origin, e.path, e.message)
                        .with_line(e.line)
                })?,
            None => RawMeta::default(),
        };
        // What is not read may go without; so may a mesh document that has a kind.
        let named = !matches!(known_kind(&api_version, &kind), None | Some(Kind::MeshConfig));
        if named && raw.name.is_empty() && raw.generate_name.is_empty() {
            return Err(missing("metadata.name").with_help("Every resource needs a name."));
        }
        let mut meta = raw.into_meta(&kind, origin);
        meta.generation = content_hash(node);
        Ok(Head { api_version, kind, meta })
    }

    /// Builds the object, reports what is wrong with it, and keeps it when nothing is an error.
    fn resource(&mut self, head: &Head, node: &Node) {
        let skipped = RefCell::default();
        let built = build(head, node, &skipped);
        let object = match built {
            Ok(object) => object,
            Err(error) => {
                let found = Diagnostic::new(
                    Severity::Error,
                    code::SCHEMA,
                    &head.meta.origin,
                    error.path,
                    error.message,
                );
                let found = found.with_line(error.line);
                self.diagnostics.push(match known_kind(&head.api_version, &head.kind) {
                    Some(kind) => found.with_resource(key_of(kind, &head.meta)),
                    None => found,
                });
                return;
            }
        };
        let Some(key) = object.key() else {
            self.ignored(head);
            self.objects.push(object);
            return;
        };
        if reports_unknown_fields(key.kind) {
            for field in skipped.into_inner() {
                self.diagnostics.push(skipped_field(&field, &key, &head.meta.origin));
            }
        }
        let before = self.diagnostics.len();
        validate::resource(&object, node, &mut self.diagnostics);
        if !self.diagnostics[before..].iter().any(Diagnostic::is_error) {
            self.objects.push(object);
        }
    }

    fn ignored(&mut self, head: &Head) {
        let what = format!("{} {}", head.api_version, head.kind);
        let message =
            format!("{what} {:?} is not read by Weft and changes nothing", &*head.meta.name);
        let origin = &head.meta.origin;
        self.diagnostics.push(Diagnostic::new(
            Severity::Info,
            code::IGNORED_KIND,
            origin,
            "kind",
            message,
        ));
    }
}

fn key_of(kind: Kind, meta: &Meta) -> ResourceKey {
    ResourceKey { kind, namespace: meta.namespace.clone(), name: meta.name.clone() }
}

fn skipped_field(field: &Skipped, key: &ResourceKey, origin: &Origin) -> Diagnostic {
    let name = field.path.rsplit('.').next().unwrap_or(&field.path);
    let found = if field.known {
        let message = format!("{name} is not acted on by this version of Weft");
        Diagnostic::new(Severity::Info, code::NOT_IMPLEMENTED, origin, &*field.path, message)
    } else {
        let message = format!("unknown field {name}");
        Diagnostic::new(Severity::Warning, code::SCHEMA_WARNING, origin, &*field.path, message)
            .with_help("Check its spelling and its indentation; it has no effect.")
    };
    found.with_resource(key.clone()).with_line(field.line)
}

fn is_list(node: &Node) -> bool {
    let kind = node.get("kind").and_then(Node::as_str).unwrap_or_default();
    kind.ends_with("List") && node.get("items").is_some()
}

/// A document without `kind` is a MeshConfig when it has a field that only MeshConfig has.
fn is_mesh_config(entries: &[(String, Node)]) -> bool {
    const TELLING: [&str; 12] = [
        "trustDomain",
        "rootNamespace",
        "enableAutoMtls",
        "outboundTrafficPolicy",
        "defaultConfig",
        "accessLogFile",
        "connectTimeout",
        "protocolDetectionTimeout",
        "defaultHttpRetryPolicy",
        "pathNormalization",
        "extensionProviders",
        "enableTracing",
    ];
    entries.iter().any(|(name, _)| TELLING.contains(&name.as_str()))
}

fn content_hash(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash_content(&mut hasher);
    hasher.finish()
}

/// Fields unknown to Weft are the rule in Kubernetes' own kinds and a mistake in Istio's.
fn reports_unknown_fields(kind: Kind) -> bool {
    match kind {
        Kind::MeshConfig
        | Kind::ServiceEntry
        | Kind::WorkloadEntry
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Gateway
        | Kind::Sidecar
        | Kind::PeerAuthentication => true,
        Kind::Namespace
        | Kind::Service
        | Kind::Pod
        | Kind::Deployment
        | Kind::StatefulSet
        | Kind::DaemonSet
        | Kind::ReplicaSet
        | Kind::Job
        | Kind::Endpoints
        | Kind::EndpointSlice
        | Kind::Secret
        | Kind::ConfigMap => false,
    }
}

/// The kind that `apiVersion` and `kind` name, when Weft reads it.
pub(crate) fn known_kind(api_version: &str, kind: &str) -> Option<Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let istio = matches!(version, "v1" | "v1beta1" | "v1alpha3");
    Some(match (group, kind) {
        ("", "Namespace") => Kind::Namespace,
        ("", "Service") => Kind::Service,
        ("", "Pod") => Kind::Pod,
        ("", "Endpoints") => Kind::Endpoints,
        ("", "Secret") => Kind::Secret,
        ("", "ConfigMap") => Kind::ConfigMap,
        ("" | "mesh.istio.io", "MeshConfig") => Kind::MeshConfig,
        ("apps" | "extensions", "Deployment") => Kind::Deployment,
        ("apps" | "extensions", "DaemonSet") => Kind::DaemonSet,
        ("apps" | "extensions", "ReplicaSet") => Kind::ReplicaSet,
        ("apps", "StatefulSet") => Kind::StatefulSet,
        ("batch", "Job") => Kind::Job,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("networking.istio.io", "ServiceEntry") if istio => Kind::ServiceEntry,
        ("networking.istio.io", "WorkloadEntry") if istio => Kind::WorkloadEntry,
        ("networking.istio.io", "VirtualService") if istio => Kind::VirtualService,
        ("networking.istio.io", "DestinationRule") if istio => Kind::DestinationRule,
        ("networking.istio.io", "Gateway") if istio => Kind::Gateway,
        ("networking.istio.io", "Sidecar") if istio => Kind::Sidecar,
        ("security.istio.io", "PeerAuthentication") if istio => Kind::PeerAuthentication,
        _ => return None,
    })
}

type Skips = RefCell<Vec<Skipped>>;

fn build(head: &Head, node: &Node, skipped: &Skips) -> Result<Object, protojson::Error> {
    let meta = head.meta.clone();
    let Some(kind) = known_kind(&head.api_version, &head.kind) else {
        let (api_version, kind) = (head.api_version.clone(), head.kind.clone());
        return Ok(Object::Ignored { api_version, kind, meta });
    };
    let empty = Node { line: node.line, value: Value::Null };
    let at = |field: &'static str| node.get(field).unwrap_or(&empty);
    macro_rules! spec {
        ($variant:ident) => {{
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::$variant(Resource { meta, spec })
        }};
        ($variant:ident, root) => {{
            let spec = protojson::read(node, "", skipped)?;
            Object::$variant(Resource { meta, spec })
        }};
    }
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Resource { meta, spec: spec::Namespace }),
        Kind::Service => spec!(Service),
        Kind::Pod => {
            let pod = spec::Pod {
                spec: protojson::read(at("spec"), "spec", skipped)?,
                status: protojson::read(at("status"), "status", skipped)?,
            };
            Object::Pod(Resource { meta, spec: pod })
        }
        Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet | Kind::Job => {
            let spec = pod_template(kind, at("spec").get("template").unwrap_or(&empty), skipped)?;
            Object::PodTemplate(Resource { meta, spec })
        }
        Kind::Endpoints => spec!(Endpoints, root),
        Kind::EndpointSlice => spec!(EndpointSlice, root),
        Kind::Secret => Object::Secret(Resource { meta, spec: secret(node, skipped)? }),
        Kind::ConfigMap => return config_map(meta, node, skipped),
        Kind::MeshConfig => {
            // With a kind, the fields may stand under `spec` or beside it.
            match node.get("spec") {
                Some(_) => spec!(MeshConfig),
                None => {
                    let mut bare = node.clone();
                    if let Value::Map(entries) = &mut bare.value {
                        entries
                            .retain(|(k, _)| !matches!(&**k, "apiVersion" | "kind" | "metadata"));
                    }
                    let spec = protojson::read(&bare, "", skipped)?;
                    Object::MeshConfig(Resource { meta, spec })
                }
            }
        }
        Kind::ServiceEntry => spec!(ServiceEntry),
        Kind::WorkloadEntry => spec!(WorkloadEntry),
        Kind::VirtualService => spec!(VirtualService),
        Kind::DestinationRule => spec!(DestinationRule),
        Kind::Gateway => spec!(Gateway),
        Kind::Sidecar => spec!(Sidecar),
        Kind::PeerAuthentication => spec!(PeerAuthentication),
    })
}

fn pod_template(
    kind: Kind,
    node: &Node,
    skipped: &Skips,
) -> Result<spec::PodTemplate, protojson::Error> {
    let empty = Node { line: node.line, value: Value::Null };
    let metadata = node.get("metadata").unwrap_or(&empty);
    let meta: RawMeta = protojson::read(metadata, "spec.template.metadata", skipped)?;
    let spec = node.get("spec").unwrap_or(&empty);
    Ok(spec::PodTemplate {
        kind,
        labels: meta.labels,
        annotations: meta.annotations,
        spec: protojson::read(spec, "spec.template.spec", skipped)?,
    })
}

/// ConfigMap `istio` carries the MeshConfig as YAML text under `mesh`.
fn config_map(meta: Meta, node: &Node, skipped: &Skips) -> Result<Object, protojson::Error> {
    let spec: spec::ConfigMap = protojson::read(node, "", skipped)?;
    let wanted = &*meta.name == "istio" && &*meta.namespace == crate::ROOT_NAMESPACE;
    let Some(text) = spec.data.get("mesh").filter(|_| wanted) else {
        return Ok(Object::ConfigMap(Resource { meta, spec }));
    };
    let line = node.get("data").and_then(|data| data.get("mesh")).map_or(node.line, |n| n.line);
    let mesh = match yaml::parse(&yaml::Document { line, text }) {
        Ok(mesh) => mesh,
        Err(error) => return Err(protojson::Error::at("data.mesh", error.line, error.message)),
    };
    let spec = protojson::read(&mesh, "data.mesh", skipped)?;
    Ok(Object::MeshConfig(Resource { meta, spec }))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawSecret {
    #[serde(rename = "type")]
    secret_type: String,
    data: Labels,
    string_data: Labels,
}

fn secret(node: &Node, skipped: &Skips) -> Result<spec::Secret, protojson::Error> {
    let raw: RawSecret = protojson::read(node, "", skipped)?;
    let mut secret = spec::Secret { secret_type: raw.secret_type, ..Default::default() };
    for (name, text) in raw.data {
        // Folded YAML scalars leave blanks and line breaks inside the base64 text.
        let text: String = text.split_ascii_whitespace().collect();
        let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text) else {
            let line = node.get("data").and_then(|data| data.get(&name)).map_or(0, |n| n.line);
            let path = format!("data[{name:?}]");
            return Err(protojson::Error::at(&path, line, "expected base64".into()));
        };
        secret.data.insert(name, bytes);
    }
    secret.data.extend(raw.string_data.into_iter().map(|(name, text)| (name, text.into_bytes())));
    Ok(secret)
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawMeta {
    name: String,
    generate_name: String,
    namespace: String,
    labels: Labels,
    annotations: Labels,
    creation_timestamp: String,
    deletion_timestamp: String,
    owner_references: Vec<RawOwner>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawOwner {
    kind: String,
    name: String,
    controller: bool,
}

impl RawMeta {
    fn into_meta(self, kind: &str, origin: Origin) -> Meta {
        let namespace = match kind {
            "Namespace" => "",
            _ if self.namespace.is_empty() => "default",
            _ => &self.namespace,
        };
        let name = if self.name.is_empty() { &self.generate_name } else { &self.name };
        let owner =
            |o: RawOwner| OwnerReference { kind: o.kind, name: o.name, controller: o.controller };
        Meta {
            name: Arc::from(name.as_str()),
            namespace: Arc::from(namespace),
            labels: Arc::new(self.labels),
            annotations: Arc::new(self.annotations),
            creation: unix_seconds(&self.creation_timestamp),
            generation: 0,
            owners: self.owner_references.into_iter().map(owner).collect(),
            deleting: !self.deletion_timestamp.is_empty(),
            origin,
        }
    }
}

/// Kubernetes' timestamps are always `YYYY-MM-DDTHH:MM:SSZ`.
fn unix_seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    // Days from civil, with the year starting in March so that leap days come last.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
