//! The control plane: sources, push, certificate authority, status.

pub mod ca;
pub mod source;
pub mod world;
