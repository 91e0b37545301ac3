//! The certificate authority: who is who in the mesh, and the proof of it.
//!
//! Owns the root key, the join key, and every private key the control plane makes. A workload's
//! name comes from a verified credential (join token, or its Pod's service account token), never from what it asks for; its
//! certificate carries that name as a SPIFFE URI. Nothing outside this folder sees a CA key.
//! Must not know: how resources are made or pushed, where snapshots come from.

mod credential;
mod error;
mod files;
mod identity;
mod issue;
mod join;
mod root;
mod rotation;
mod secrets;
mod service;
mod tls;

#[cfg(test)]
mod tests;

pub use credential::{Proven, Verifier};
pub use error::CaError;
pub use identity::Identity;
pub use issue::{Authority, Certificate, Lifetimes, renew_at};
pub use join::{JoinKey, TokenError};
pub use root::PluggedIn;
pub(crate) use root::make as make_root;
pub use rotation::Next;
pub use secrets::{StreamSecrets, WorkloadSecrets};
pub use service::CertificateIssuer;
pub use tls::server_config;
