//! Collects what translation cannot express, each finding once.

use weft_model::{Diagnostic, Kind, Meta, Origin, ResourceKey, Severity};

/// A field is understood, but the reader of this configuration does not do it yet.
pub const NOT_IMPLEMENTED: &str = "WEFT0005";
/// Two listeners want the same address and port; the later one is left out.
pub const LISTENER_CONFLICT: &str = "WEFT0101";

/// An EnvoyFilter's patch would make its target unusable; it is left out there.
pub const FILTER_CONFLICT: &str = "WEFT0102";

/// The diagnostics of one translation.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Diagnostic>,
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        meta: &Meta,
        code: &'static str,
        path: &str,
        message: &str,
    ) {
        let key = ResourceKey { kind, namespace: meta.namespace.clone(), name: meta.name.clone() };
        // One VirtualService is translated once per listener; tell its problems once.
        self.add_to(key, &meta.origin, code, path, message);
    }

    /// As [`Self::add`], by key.
    pub(crate) fn add_to(
        &mut self,
        key: ResourceKey,
        origin: &Origin,
        code: &'static str,
        path: &str,
        message: &str,
    ) {
        let known = self.list.iter().any(|other| {
            other.resource.as_ref() == Some(&key) && other.path == path && other.message == message
        });
        if !known {
            let finding = Diagnostic::new(Severity::Warning, code, origin, path, message);
            self.list.push(finding.with_resource(key));
        }
    }

    pub(crate) fn not_implemented(&mut self, kind: Kind, meta: &Meta, path: &str) {
        self.add(
            kind,
            meta,
            NOT_IMPLEMENTED,
            path,
            "not implemented yet by this proxy; the field has no effect",
        );
    }

    /// Takes in what was found in a part.
    pub(crate) fn extend(&mut self, found: &[Diagnostic]) {
        for one in found {
            if !self.list.contains(one) {
                self.list.push(one.clone());
            }
        }
    }

    pub(crate) fn into_list(self) -> Vec<Diagnostic> {
        self.list
    }
}
