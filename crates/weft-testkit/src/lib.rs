//! Test support for the whole workspace; never shipped.
//!
//! Real peers (stock Envoy, grpc's Python client), child processes that die with their test,
//! backends that say what they received, and plain clients. Everything is on loopback, on ports
//! the kernel chose, and bounded in time.

pub mod backend;
pub mod client;
pub mod envoy;
pub mod peer;
pub mod process;
pub mod wait;

/// A loopback port that was free a moment ago.
///
/// For programs that must be told their port. Those that can bind port 0 themselves should.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}
