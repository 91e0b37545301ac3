//! xDS messages to tables.

/// Why a resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct LowerError {
    /// Field path from the resource down.
    pub path: String,
    pub reason: String,
}
