//! The `weft` program as a user runs it, beside real peers: stock Envoy and grpc's Python client.
//!
//! Every test has its own control plane, its own loopback addresses and its own folder.

mod cast;
mod harness;

mod analyze;
mod capture;
mod conformance;
mod control_restart;
mod crossings;
mod demo_on_envoy;
mod destinations;
mod draining;
mod faithful;
mod frames;
mod gateway_api;
mod gateway_api_tls;
mod grpc_core;
mod grpc_xds;
mod handover;
mod injection;
mod live;
mod machines;
mod pairs;
mod peers;
mod provenance;
mod replicas;
mod reports;
mod rolling;
mod rotation;
mod samples;
mod slow_readers;
mod smuggling;
mod twins;
