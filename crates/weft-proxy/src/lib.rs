//! The data plane: sidecar, ingress and egress gateway.
