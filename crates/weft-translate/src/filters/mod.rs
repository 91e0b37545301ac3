//! EnvoyFilters: patches of finished resources, in Istio's order and by its rules.
//!
//! `compile` reads the patches of all EnvoyFilters once for a world; `matching` says what a patch
//! is for; `listeners`, `routes` and `clusters` apply those that pick a proxy; `own` knows what our
//! own proxy makes of them. Where Istio's result would be refused whole by Envoy (a filter behind
//! the one that ends the chain, a name twice) the patch alone is dropped or put right.

mod clusters;
mod compile;
mod listeners;
mod matching;
mod own;
mod routes;

use weft_model::spec::{ApplyTo, PatchContext};
use weft_model::{Diagnostic, Kind, Meta, Snapshot};
use weft_xds::Resource;

use crate::findings::Findings;
use crate::listener::Built;
use crate::scope::Scope;
use crate::view::{Flavor, ProxyKind};

use compile::{Compiled, Patches};

/// What is wrong with EnvoyFilters whoever they are for, and what our own proxy does not do of
/// them.
pub(crate) fn check(snapshot: &Snapshot) -> Vec<Diagnostic> {
    compile::of(snapshot).findings.clone()
}

/// Applies what picks this proxy. Proxyless clients get none, as in Istio.
pub(crate) fn apply(
    scope: &Scope<'_>,
    context: PatchContext,
    built: Option<&mut Built>,
    clusters: Option<&mut Vec<Resource>>,
    findings: &mut Findings,
) {
    let filters = scope.snapshot.envoy_filters_for(&scope.view.namespace, &scope.view.labels);
    if filters.is_empty() || scope.view.kind == ProxyKind::Grpc {
        return;
    }
    let compiled = compile::of(scope.snapshot);
    let mut patches = Vec::new();
    for filter in filters {
        let Some(of_filter) = compiled.of(&filter.meta) else { continue };
        patches.extend(of_filter.iter().filter(|patch| patch.is_for(context, scope.view)));
    }
    if patches.is_empty() {
        return;
    }
    // The two parts of a proxy's configuration are made apart.
    patches.retain(|patch| match patch.apply_to {
        ApplyTo::Cluster => clusters.is_some(),
        _ => built.is_some(),
    });
    let mut patching = Patching { context, flavor: scope.view.flavor, patches, findings };
    patching.tell_left_out();
    if let Some(built) = built {
        patching.listeners(&mut built.listeners);
        patching.routes(&mut built.routes);
    }
    if let Some(clusters) = clusters {
        patching.clusters(clusters);
    }
}

/// Patches on their way into one proxy's resources.
struct Patching<'a, 'f> {
    context: PatchContext,
    flavor: Flavor,
    patches: Vec<&'a Compiled>,
    findings: &'f mut Findings,
}

impl<'a> Patching<'a, '_> {
    fn of(&self, apply_to: ApplyTo) -> Vec<&'a Compiled> {
        self.patches.iter().filter(|patch| patch.apply_to == apply_to).copied().collect()
    }

    /// What our own proxy will not do.
    fn tell_left_out(&mut self) {
        if self.flavor == Flavor::Weft {
            for patch in &self.patches {
                for (path, message) in &patch.own_misses {
                    let code = crate::findings::NOT_IMPLEMENTED;
                    self.findings.add(Kind::EnvoyFilter, &patch.meta, code, path, message);
                }
            }
        }
    }

    /// The patch could not be applied to something that it matches.
    fn tell(&mut self, patch: &Compiled, message: &str) {
        let path = format!("{}.patch", patch.path);
        let code = crate::findings::FILTER_CONFLICT;
        self.findings.add(Kind::EnvoyFilter, &patch.meta, code, &path, message);
    }
}

/// The patches of a world's EnvoyFilters; see [`Snapshot::derived`].
impl Patches {
    fn of(&self, meta: &Meta) -> Option<&[Compiled]> {
        self.by_filter.get(&(meta.namespace.clone(), meta.name.clone())).map(Vec::as_slice)
    }
}
