//! The data plane alone, for sidecar images.

fn main() {}
