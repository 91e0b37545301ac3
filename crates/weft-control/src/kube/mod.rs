//! The Kubernetes API as the control plane uses it: raw JSON over one client that limits itself.
//!
//! Owns the connection, what an error means, and what is written there: the leader's Lease and
//! resources' status. Reading what the mesh is made of is [`crate::source::kube`]'s part.
//! Only `client` knows the library behind it.

mod client;
mod lease;
mod limit;
mod status;
mod time;

pub use client::{Access, AccessError, ApiError, Client, Lines, Patch};
pub use lease::{Candidate, Term, elect};
pub use limit::Rate;
pub(crate) use limit::back_off;
pub(crate) use status::Writer;
