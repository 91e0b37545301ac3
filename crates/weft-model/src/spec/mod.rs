//! Typed specs of the kinds Weft reads, field for field as their APIs define them.
//! Field names are the API's in snake case; values stay as written (hosts unresolved) except
//! where [`crate::Snapshot`] says that it normalises them.

mod destination_rule;
mod envoy_filter;
mod gateway;
pub mod gateway_api;
mod kube;
mod mesh_config;
mod peer_authentication;
mod service_entry;
mod sidecar;
mod telemetry;
mod unread;
mod value;
mod virtual_service;
mod workload_group;

pub use destination_rule::*;
pub use envoy_filter::*;
pub use gateway::*;
pub use kube::*;
pub use mesh_config::*;
pub use peer_authentication::*;
pub use service_entry::*;
pub use sidecar::*;
pub use telemetry::*;
pub(crate) use unread::unread_fields;
pub use value::*;
pub use virtual_service::*;
pub use workload_group::*;
