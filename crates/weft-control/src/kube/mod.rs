//! The Kubernetes API as the control plane uses it: raw JSON over one client that limits itself.
//!
//! Owns the connection, what an error means, whose token a token is, the plugged-in authority, and what
//! is written there: the leader's Lease, resources' status, the mesh's roots, webhooks' certificates. Reading what the mesh is made of is [`crate::source::kube`]'s part.
//! Only `client` knows the library behind it.

mod client;
mod follow;
mod hooks;
mod install;
mod lease;
mod limit;
mod plugged;
mod review;
mod roots;
mod status;
pub(crate) mod time;

pub use client::{Access, AccessError, ApiError, Client, Lines, Patch};
pub(crate) use follow::{Name, Objects, Query, follow};
pub use hooks::Hooks;
pub(crate) use hooks::HooksKeeper;
pub use install::{GatewayValues, Install, ValuesError, apply, manifests, yaml};
pub use lease::{Candidate, Term, elect};
pub use limit::Rate;
pub(crate) use limit::back_off;
pub(crate) use plugged::{Rotation, plugged_in, shared_root};
pub use review::{ReviewError, Reviewed, Reviewer, Reviewers};
pub(crate) use roots::{Namespaces, RootsKeeper};
pub(crate) use status::Writer;
