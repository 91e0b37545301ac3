//! The control plane: sources, world, certificate authority, push, status, recent telemetry.
//!
//! Owns the assembly: [`run`] starts all of it in one process, for the command line,
//! the demo and tests alike.

mod assembly;
pub mod ca;
mod cluster;
mod grpc;
pub mod kube;
mod listen;
pub mod push;
mod registration;
pub mod source;
pub mod status;
pub mod telemetry;
pub mod traces;
pub mod webhook;
pub mod world;

pub use assembly::{Config, ControlError, Handle, run};
pub use cluster::{Kubernetes, Writes};
