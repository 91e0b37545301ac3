//! Telemetry that names providers nobody defined.

use super::finding;
use crate::diagnostic::{Diagnostic, code};
use crate::object::Kind;
use crate::snapshot::Snapshot;
use crate::spec::ProviderRef;

pub(super) fn check(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    for resource in snapshot.all_telemetries() {
        let spec = &resource.spec;
        let lists = [
            ("tracing", spec.tracing.iter().map(|one| &one.providers).collect::<Vec<_>>()),
            ("metrics", spec.metrics.iter().map(|one| &one.providers).collect()),
            ("accessLogging", spec.access_logging.iter().map(|one| &one.providers).collect()),
        ];
        for (field, list) in lists {
            for (index, providers) in list.into_iter().enumerate() {
                for (at, ProviderRef { name }) in providers.iter().enumerate() {
                    if snapshot.provider(name).is_some() {
                        continue;
                    }
                    let path = format!("spec.{field}[{index}].providers[{at}].name");
                    let message = format!("the provider {name:?} is not defined");
                    let help = "Define it in MeshConfig's extensionProviders.";
                    let kind = Kind::Telemetry;
                    let found = finding(code::NOT_FOUND, kind, &resource.meta, path, message);
                    out.push(found.with_help(help));
                }
            }
        }
    }
}
