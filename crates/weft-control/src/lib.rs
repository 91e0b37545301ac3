//! The control plane: sources, push, certificate authority, status.
