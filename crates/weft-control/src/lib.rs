//! The control plane: sources, push, certificate authority, status.

pub mod ca;
