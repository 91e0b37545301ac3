//! The control plane with real clients over real sockets: what is sent to whom, and when.

mod client;
mod cluster;
mod clusters;
mod envoy;
mod identity;
mod names;
mod plane;
mod streams;
mod trust;
mod upkeep;
