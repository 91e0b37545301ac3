//! The data plane: sidecar, ingress and egress gateway.
//!
//! Modules in the order a connection meets them. `net` owns byte streams, `listener` accepts and
//! detects, `tls` ends TLS, then `http` or `tcp` serves; `upstream` reaches the other side. Workers
//! are single-threaded and share nothing but immutable tables; xDS, admin and certificates live on
//! a runtime of their own, as do the answers to the workload's DNS (`dns`). No Istio resource kind is known here: only xDS, already lowered.

pub mod access_log;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod runtime;
pub mod worker;

pub mod listener;
pub mod net;
pub mod tls;

pub mod http;
pub mod tcp;
pub mod upstream;

pub mod admin;
pub mod dns;
pub mod drain;
pub mod error;
pub mod handover;
pub mod limits;
pub mod logging;
mod memory;
mod outbox;
mod reports;
pub mod state;
pub mod status;

pub use bootstrap::{StartError, run, start};
pub use memory::{Allocator, release_freed_when_idle};
pub use runtime::Proxy;
pub use worker::{ConnContext, NodeInfo, Worker};
