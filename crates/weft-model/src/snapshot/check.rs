//! Findings that need more than one resource.

use super::Snapshot;
use crate::diagnostic::Diagnostic;

/// All cross-resource findings, in a stable order.
pub(crate) fn all(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let _ = snapshot;
    Vec::new()
}
