//! Pages on port 15014: readiness, metrics, and who runs what.
//!
//! Must not know how pushing works; it reads what the registry shows.

pub mod client;
mod pages;
mod syncz;
mod why;

pub use pages::Pages;
pub(crate) use pages::serve;
pub use syncz::{ProxyStatus, Sync, TypeSync, table};
pub use why::{Explain, Question};
