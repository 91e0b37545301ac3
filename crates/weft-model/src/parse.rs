//! Documents to [`Object`]s: which kind, metadata, typed spec, then validation. One bad document
//! never hurts the others.

mod build;
mod meta;

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Severity, code, suppresses};
use crate::object::{Kind, Meta, Object, Origin, ResourceKey};
use crate::protojson::{self, Skipped};
use crate::snapshot::{Change, ChangeKind, Snapshot};
use crate::validate;
use crate::yaml::{self, Node, Value};
use build::{build, known_kind};
use meta::RawMeta;

/// Largest file that is read; Kubernetes itself stops at about 1.5 MiB an object.
pub const FILE_BYTES_MAX: usize = 16 << 20;
/// Documents in one file.
const DOCUMENTS_MAX: usize = 20_000;

/// Parses a file of one or many documents. Objects with an `Error` diagnostic are left out.
pub fn parse_yaml(file: &str, text: &str) -> (Vec<Object>, Vec<Diagnostic>) {
    let Parser { objects, diagnostics, .. } = parse(file, text);
    (objects, diagnostics)
}

/// Reads one resource that is a tree already, as an API server gives it; `origin` stands where a
/// file's name would. Otherwise as [`parse_yaml`].
pub fn parse_json(origin: &str, resource: serde_json::Value) -> (Vec<Object>, Vec<Diagnostic>) {
    let mut parser = Parser::new(origin);
    parser.document(0, &Node::from(resource));
    (parser.objects, parser.diagnostics)
}

fn parse(file: &str, text: &str) -> Parser {
    let mut parser = Parser::new(file);
    if text.len() > FILE_BYTES_MAX {
        let why = format!("the file has {} bytes, more than {FILE_BYTES_MAX}", text.len());
        parser.refuse(0, 1, why, "Split the file.");
        return parser;
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
    parser
}

/// All findings on a set of files `(name, text)`, in their own documents and across resources;
/// the same as the control plane reports. Sorted by file, document, then severity.
pub fn analyze(files: &[(String, String)]) -> Vec<Diagnostic> {
    load(files).1
}

/// The world that files describe, and every finding on them, in the order of the files.
pub fn load(files: &[(String, String)]) -> (Snapshot, Vec<Diagnostic>) {
    let Analysis { snapshot, findings, .. } = Analysis::of(files);
    (snapshot, findings)
}

/// Files taken together: their world and what is wrong with them.
pub struct Analysis {
    pub snapshot: Snapshot,
    /// Sorted by file, document, severity, line; without those that a resource's annotation
    /// `galley.istio.io/analyze-suppress` asks not to be told of.
    pub findings: Vec<Diagnostic>,
    files: std::collections::HashMap<String, String>,
}

impl Analysis {
    /// Reads and checks files `(name, text)`.
    pub fn of(files: &[(String, String)]) -> Self {
        let mut analysis = Analysis {
            snapshot: Snapshot::default(),
            findings: Vec::new(),
            files: files.iter().cloned().collect(),
        };
        let mut found = Vec::new();
        let mut changes = Vec::new();
        let mut seen: std::collections::HashMap<ResourceKey, Origin> = Default::default();
        for (file, text) in files {
            let Parser { objects, diagnostics, .. } = parse(file, text);
            found.extend(diagnostics);
            for object in objects {
                let Some(key) = object.key() else { continue };
                if let Some(first) = seen.get(&key) {
                    found.push(duplicate(&key, &object.meta().origin, first));
                    continue;
                }
                seen.insert(key.clone(), object.meta().origin.clone());
                changes.push(Change { key, kind: ChangeKind::Upsert(object) });
            }
        }
        (analysis.snapshot, _) = Snapshot::default().apply(changes);
        found.extend(analysis.snapshot.diagnostics().iter().cloned());
        analysis.add(found);
        analysis
    }

    /// Adds what a reader of the snapshot found, with the lines of the fields.
    pub fn add(&mut self, found: Vec<Diagnostic>) {
        let wanted = |one: &Diagnostic| !self.snapshot.suppresses(one);
        let mut found: Vec<Diagnostic> = found.into_iter().filter(wanted).collect();
        found.iter_mut().for_each(|one| self.locate(one));
        self.findings.extend(found);
        self.findings.sort_by(|a, b| {
            (&a.file, a.document, a.severity, a.line)
                .cmp(&(&b.file, b.document, b.severity, b.line))
        });
    }

    /// What was found without the text knows the line of its document only.
    fn locate(&self, found: &mut Diagnostic) {
        let Some(text) = self.files.get(&found.file) else { return };
        let documents = yaml::split(text);
        let Some(document) = documents.get(found.document as usize) else { return };
        let Ok(node) = yaml::parse(document) else { return };
        if found.line == node.line && !found.path.is_empty() && !is_list(&node) {
            found.line = node.line_of(&found.path);
        }
    }
}

/// A ProxyConfig as YAML text inside of another document, and the fields that were passed over.
pub(crate) fn proxy_config(text: &str) -> Result<(crate::spec::ProxyConfig, Vec<Skipped>), String> {
    if text.trim().is_empty() {
        return Ok(Default::default());
    }
    let node = yaml::parse(&yaml::Document { line: 1, text }).map_err(|error| error.message)?;
    let skipped = RefCell::default();
    let config = protojson::read(&node, "", &skipped).map_err(|error| error.to_string())?;
    Ok((config, skipped.into_inner()))
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
    fn new(file: &str) -> Self {
        Parser { file: Arc::from(file), objects: Vec::new(), diagnostics: Vec::new() }
    }

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
                Err(found) => self.diagnostics.push(*found),
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

    fn head(&self, document: u32, node: &Node) -> Result<Head, Box<Diagnostic>> {
        let origin = Origin { file: self.file.clone(), document, line: node.line };
        let wrong = |path: &str, line: u32, message: &str| {
            let found = Diagnostic::new(Severity::Error, code::SCHEMA, &origin, path, message);
            Box::new(found.with_line(line))
        };
        let text = |field: &'static str| match node.get(field) {
            Some(found) => match found.as_str() {
                Some("") => Err(wrong(field, found.line, &format!("{field} is empty"))),
                Some(text) => Ok(text.to_string()),
                None => Err(wrong(field, found.line, "expected a string")),
            },
            None => Err(wrong(field, 0, &format!("{field} is missing"))),
        };
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let raw = match node.get("metadata") {
            Some(metadata) => protojson::read(metadata, "metadata", &RefCell::default())
                .map_err(|error| wrong(&error.path, error.line, &error.message))?,
            None => RawMeta::default(),
        };
        // What is not read may go without; so may a mesh document that has a kind.
        let named = !matches!(known_kind(&api_version, &kind), None | Some(Kind::MeshConfig));
        if named && raw.name.is_empty() && raw.generate_name.is_empty() {
            return Err(wrong("metadata.name", 0, "metadata.name is missing"));
        }
        let mut meta = raw.into_meta(&kind, origin);
        meta.generation = content_hash(node);
        Ok(Head { api_version, kind, meta })
    }

    /// Builds the object, reports what is wrong with it, and keeps it when nothing is an error.
    fn resource(&mut self, head: &Head, node: &Node) {
        let before = self.diagnostics.len();
        self.built(head, node);
        for found in &mut self.diagnostics[before..] {
            found.suppressed = suppresses(&head.meta.annotations, found.code);
        }
    }

    fn built(&mut self, head: &Head, node: &Node) {
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
        | Kind::WorkloadGroup
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Gateway
        | Kind::Sidecar
        | Kind::PeerAuthentication
        | Kind::GatewayClass
        | Kind::KubeGateway
        | Kind::ListenerSet
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::UdpRoute
        | Kind::BackendTlsPolicy
        | Kind::ReferenceGrant
        | Kind::EnvoyFilter
        | Kind::ProxyConfig
        | Kind::Telemetry => true,
        Kind::Namespace
        | Kind::Node
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

#[cfg(test)]
mod tests;
