//! What can go wrong in the authority, with the operator's next step.

use std::path::PathBuf;

/// A failure of the certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{}: {source}: the control plane keeps its keys there; check the path and its owner", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} can be read by others (mode {mode:o}): run `chmod 600` on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: {reason}: restore the file from a backup, or remove the folder to start a new mesh identity (every workload must then join again)", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the root certificate ended at {0}: every certificate of this mesh has ended with it; remove the ca folder to start a new identity"
    )]
    RootExpired(String),
    #[error("the plugged-in authority (Secret cacerts): {0}")]
    PluggedIn(String),
    #[error("certificate request: {0}")]
    Request(&'static str),
    #[error("trust domain `{0}` is not a DNS name in lower case")]
    TrustDomain(String),
    #[error("`{0}` is not a namespace/service-account pair of Kubernetes names")]
    Identity(String),
    #[error("making a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("TLS set-up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the system gave no random bytes")]
    Random,
}
