//! Test support for the whole workspace; never shipped.
//!
//! Real peers (stock Envoy, haproxy, nginx, grpc's Python client), child processes that die with their test,
//! backends that say what they received, plain clients, a Kubernetes API server. Everything is on loopback, on ports
//! the kernel chose, and bounded in time.

use std::sync::atomic::{AtomicU16, Ordering};

pub mod backend;
pub mod client;
pub mod corpus;
pub mod envoy;
pub mod kube;
pub mod netns;
pub mod peer;
pub mod process;
pub mod relay;
pub mod wait;

/// First port [`free_port`] gives; the kernel hands out those from 32,768 on by itself.
const PORTS_FROM: u16 = 10_000;
/// How many ports [`free_port`] chooses from.
const PORTS: u16 = 22_000;

/// A loopback port that nothing else takes while this process lives.
///
/// For programs that must be told their port, or must come back on it. Those that can bind port 0
/// themselves should. Ports lie outside the range from which the kernel serves port 0 and outgoing
/// connections, and a locked file keeps other test processes away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let folder = std::env::temp_dir().join("weft-test-ports");
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    // Processes start at different places, so that they rarely meet.
    let start = (std::process::id() * 101 % u32::from(PORTS)) as u16;
    for _ in 0..PORTS {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS_FROM + (start + step % PORTS) % PORTS;
        let claim = std::fs::File::create(folder.join(port.to_string()));
        let claim = claim.expect("the temporary folder is writable");
        if claim.try_lock().is_ok() && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            // Held until the process ends.
            std::mem::forget(claim);
            return port;
        }
    }
    panic!("no port of {PORTS} is free on loopback");
}
