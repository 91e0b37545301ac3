//! EnvoyFilter resources to patches that are ready to apply: values read as Envoy's messages,
//! mistakes told with their place.

use std::collections::HashMap;
use std::sync::Arc;

use prost::{Message, Name};
use regex::Regex;
use serde_json::Value;
use weft_model::spec::{ApplyTo, ConfigPatch, EnvoyFilter, ObjectMatch, Operation, PatchContext};
use weft_model::{Diagnostic, Kind, Meta, Resource, ResourceKey, Severity, Snapshot};
use weft_xds::patch::{self, Extent, LeftOut, Patch, Problem};
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use weft_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, ListenerFilter};
use weft_xds::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;

use super::own;
use crate::findings::NOT_IMPLEMENTED;
use crate::view::{Flavor, ProxyView};

/// Istio: SchemaValidationError and SchemaWarning.
const SCHEMA: &str = "IST0106";
const SCHEMA_WARNING: &str = "IST0133";

/// Metadata that carries a proxy's Istio version.
const ISTIO_VERSION: &str = "ISTIO_VERSION";

/// Patches by the namespace and name of their EnvoyFilter.
#[derive(Default)]
pub(super) struct Patches {
    pub(super) by_filter: HashMap<(Arc<str>, Arc<str>), Vec<Compiled>>,
    pub(super) findings: Vec<Diagnostic>,
}

/// One patch, usable.
pub(super) struct Compiled {
    pub(super) meta: Meta,
    /// `spec.configPatches[INDEX]`.
    pub(super) path: String,
    pub(super) apply_to: ApplyTo,
    pub(super) operation: Operation,
    pub(super) matches: ObjectMatch,
    version: Option<Regex>,
    /// As written; `None` for REMOVE.
    stock: Option<Patch>,
    /// What our own proxy can do of it. `None`: nothing.
    own: Option<Patch>,
    /// Path and words for each thing that it does not do.
    pub(super) own_misses: Vec<(String, String)>,
}

pub(super) fn of(snapshot: &Snapshot) -> Arc<Patches> {
    snapshot.derived(|snapshot| {
        let mut patches = Patches::default();
        for filter in snapshot.all_envoy_filters() {
            patches.add(filter);
        }
        patches
    })
}

impl Patches {
    fn add(&mut self, filter: &Resource<EnvoyFilter>) {
        let mut compiled = Vec::new();
        for (index, patch) in filter.spec.config_patches.iter().enumerate() {
            let path = format!("spec.configPatches[{index}]");
            compiled.extend(self.compile(filter, patch, &path));
        }
        for (index, target) in filter.spec.target_refs.iter().enumerate() {
            if target.kind != "Gateway" {
                let path = format!("spec.targetRefs[{index}]");
                let message = format!(
                    "a {} is reached by a filter through a waypoint, which Weft has none of",
                    target.kind
                );
                let help = "Name a Gateway, or use workloadSelector.";
                self.tell(&filter.meta, Severity::Warning, NOT_IMPLEMENTED, &path, &message, help);
            }
        }
        let key = (filter.meta.namespace.clone(), filter.meta.name.clone());
        self.by_filter.insert(key, compiled);
    }

    fn tell(
        &mut self,
        meta: &Meta,
        severity: Severity,
        code: &'static str,
        path: &str,
        message: &str,
        help: &str,
    ) {
        let key = ResourceKey {
            kind: Kind::EnvoyFilter,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        };
        let found = Diagnostic::new(severity, code, &meta.origin, path, message);
        self.findings.push(found.with_resource(key).with_help(help));
    }

    /// `None` for what cannot be applied to anybody.
    fn compile(
        &mut self,
        filter: &Resource<EnvoyFilter>,
        patch: &ConfigPatch,
        path: &str,
    ) -> Option<Compiled> {
        let what = patch.patch.as_ref()?;
        let apply_to = patch.apply_to;
        if let Some(why) = not_built(patch) {
            let at = format!("{path}.applyTo");
            self.tell(&filter.meta, Severity::Warning, NOT_IMPLEMENTED, &at, why, "");
            return None;
        }
        let at = format!("{path}.patch.value");
        let stock = match (&what.value, what.operation) {
            (_, Operation::Remove) | (None, _) => None,
            (Some(value), operation) => {
                let (read, problems) = read(apply_to, value, extent(operation), &at);
                self.problems(&filter.meta, &problems);
                Some(read?)
            }
        };
        let mut own_misses = Vec::new();
        let own = stock.clone().and_then(|mut patch| {
            let mut left_out = Vec::new();
            let usable = patch.keep_only(&own::OwnProxy, &at, &mut left_out);
            own_misses.extend(left_out.into_iter().map(miss));
            usable.then_some(patch)
        });
        for (path, message) in &own_misses {
            let help = "A stock Envoy in the proxy's place does it.";
            let code = NOT_IMPLEMENTED;
            self.tell(&filter.meta, Severity::Warning, code, path, message, help);
        }
        let matches = patch.matches.clone().unwrap_or_default();
        let version = matches.proxy.as_ref().map(|proxy| proxy.proxy_version.as_str());
        let version = match version.filter(|pattern| !pattern.is_empty()) {
            // Validation has looked at it.
            Some(pattern) => Some(Regex::new(pattern).ok()?),
            None => None,
        };
        Some(Compiled {
            meta: filter.meta.clone(),
            path: path.to_owned(),
            apply_to,
            // Only lists whose order matters have a place to insert at.
            operation: match (what.operation, apply_to) {
                (
                    Operation::InsertAfter | Operation::InsertBefore | Operation::InsertFirst,
                    ApplyTo::Listener
                    | ApplyTo::FilterChain
                    | ApplyTo::RouteConfiguration
                    | ApplyTo::VirtualHost
                    | ApplyTo::Cluster
                    | ApplyTo::ExtensionConfig,
                ) => Operation::Add,
                (operation, _) => operation,
            },
            matches,
            version,
            stock,
            own,
            own_misses,
        })
    }

    fn problems(&mut self, meta: &Meta, problems: &[Problem]) {
        for Problem { path, reason, fatal } in problems {
            let (severity, code, help) = match fatal {
                true => (
                    Severity::Error,
                    SCHEMA,
                    "The patch is left out; the others apply. See Envoy's API for the field.",
                ),
                false => (
                    Severity::Warning,
                    SCHEMA_WARNING,
                    "Check its spelling and its indentation; it has no effect.",
                ),
            };
            self.tell(meta, severity, code, path, reason, help);
        }
    }
}

fn miss(left_out: LeftOut) -> (String, String) {
    let LeftOut { path, extension } = left_out;
    let message = match extension {
        Some(name) => {
            format!("not built yet: Weft's own proxy has no {name}; it is left out there")
        }
        None => {
            let name = path.rsplit('.').next().unwrap_or(&path);
            format!("not built yet: Weft's own proxy does not act on {name}")
        }
    };
    (path, message)
}

fn not_built(patch: &ConfigPatch) -> Option<&'static str> {
    let context = patch.matches.as_ref().map(|wanted| wanted.context);
    if context == Some(PatchContext::Waypoint) {
        return Some("Weft has no waypoints; the patch applies to nothing");
    }
    let operation = patch.patch.as_ref().map_or(Operation::Invalid, |patch| patch.operation);
    match (patch.apply_to, operation) {
        (ApplyTo::Bootstrap, _) => {
            Some("a bootstrap is the proxy's own file; the control plane cannot patch it")
        }
        (ApplyTo::Invalid, _) => Some("applyTo is missing"),
        (
            ApplyTo::ExtensionConfig,
            Operation::Merge
            | Operation::MergeAndReplaceList
            | Operation::Remove
            | Operation::Replace,
        ) => Some("an EXTENSION_CONFIG can only be added"),
        _ => None,
    }
}

/// What is merged has the rest already.
fn extent(operation: Operation) -> Extent {
    match operation {
        Operation::Merge | Operation::MergeAndReplaceList => Extent::Part,
        _ => Extent::Whole,
    }
}

fn read(
    apply_to: ApplyTo,
    value: &Value,
    extent: Extent,
    path: &str,
) -> (Option<Patch>, Vec<Problem>) {
    match apply_to {
        ApplyTo::Listener => patch::read::<Listener>(value, extent, path),
        ApplyTo::FilterChain => patch::read::<FilterChain>(value, extent, path),
        ApplyTo::NetworkFilter => patch::read::<Filter>(value, extent, path),
        ApplyTo::HttpFilter => patch::read::<HttpFilter>(value, extent, path),
        ApplyTo::ListenerFilter => patch::read::<ListenerFilter>(value, extent, path),
        ApplyTo::RouteConfiguration => patch::read::<RouteConfiguration>(value, extent, path),
        ApplyTo::VirtualHost => patch::read::<VirtualHost>(value, extent, path),
        ApplyTo::HttpRoute => patch::read::<Route>(value, extent, path),
        ApplyTo::Cluster => patch::read::<Cluster>(value, extent, path),
        ApplyTo::ExtensionConfig => patch::read::<TypedExtensionConfig>(value, extent, path),
        ApplyTo::Bootstrap | ApplyTo::Invalid => (None, Vec::new()),
    }
}

impl Compiled {
    pub(super) fn is_for(&self, context: PatchContext, view: &ProxyView) -> bool {
        let wanted = self.matches.context;
        let here = match (wanted, self.apply_to, self.operation) {
            // What is added once for a proxy is not added again on its inbound side.
            (PatchContext::Any, ApplyTo::Listener | ApplyTo::Cluster, Operation::Add) => {
                context != PatchContext::SidecarInbound
            }
            (PatchContext::Any, _, _) => true,
            _ => wanted == context,
        };
        let version = || view.metadata.get(ISTIO_VERSION);
        let proxy = self.matches.proxy.as_ref();
        here && self
            .version
            .as_ref()
            .is_none_or(|wanted| version().is_some_and(|version| wanted.is_match(version)))
            && proxy.is_none_or(|proxy| {
                proxy.metadata.iter().all(|(key, value)| view.metadata.get(key) == Some(value))
            })
    }

    /// The value for this reader; `None` when it has none that it could use.
    pub(super) fn patch(&self, flavor: Flavor) -> Option<&Patch> {
        match flavor {
            Flavor::Weft => self.own.as_ref(),
            Flavor::Envoy | Flavor::Grpc => self.stock.as_ref(),
        }
    }

    pub(super) fn value<M: Message + Name + Default>(&self, flavor: Flavor) -> Option<M> {
        self.patch(flavor)?.to()
    }

    pub(super) fn merges(&self) -> Option<patch::Lists> {
        match self.operation {
            Operation::Merge => Some(patch::Lists::Append),
            Operation::MergeAndReplaceList => Some(patch::Lists::Replace),
            _ => None,
        }
    }
}
