//! Istio, Gateway API, Kubernetes and Weft's own kinds: parsing, defaulting, validation, and the immutable Snapshot.
