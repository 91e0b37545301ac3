//! Metric registry with budgets and trace context. Pure: bytes out, no I/O, no clock.
//!
//! A worker owns a [`Shard`]: it records into atomics that only it writes, so a request
//! takes no lock; a scrape on another thread reads the same atomics and merges the shards.
//! Istio's standard metrics ([`istio`]) have their own compact path; everything else
//! (`pilot_*`, `envoy_server_*`, `weft_*`) uses the generic families in [`Registry`]. What the control
//! plane is told of the traffic is added up apart from them ([`load`]).
//! Must not know: sockets, xDS, Istio kinds.

mod buckets;
mod cell;
mod family;
mod flags;
pub mod istio;
pub mod load;
mod peer;
mod registry;
mod scrape;
mod shard;
#[cfg(test)]
mod tests;
mod text;
pub mod trace;
mod view;

pub use buckets::{BucketError, Buckets};
pub use family::{Counter, Gauge, Histogram};
pub use flags::ResponseFlags;
pub use istio::{
    Amounts, Exemplar, Outcome, Protocol, Reporter, RequestLabels, SecurityPolicy, ServiceInfo,
    TcpLabels,
};
pub use peer::{PEER_METADATA, PEER_METADATA_ID, PeerInfo};
pub use registry::{Budget, Registry};
pub use scrape::Scrape;
pub use shard::{Flow, LocalCounter, LocalGauge, Shard, TcpFlow};
pub use text::Exposition;
pub use view::{Metric, View};
