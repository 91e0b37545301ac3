//! xDS messages lowered to compiled, immutable tables, and the decisions taken on them: which filter
//! chain, which route, which endpoint, whether to retry.
//!
//! Pure: no sockets, no clock, no random source. Time and randomness are arguments, and the per-worker
//! mutable state (balancer cursors, active counts, ejections) lives beside the tables, never in them.
//! No xDS message survives past [`lower`], and nothing here knows an Istio kind.
//!
//! ```text
//! pb::Listener, RouteConfiguration, Cluster, ClusterLoadAssignment
//!        │ lower::*            (one LowerError {path, reason} → the proxy NACKs)
//!        ▼
//! Tables ── listener → select_chain → RouteTable::route → Cluster → lb::Balancer::pick
//! ```

pub mod lower;

pub mod access_log;
pub mod format;

pub mod http;
pub mod listener;
pub mod tls;

pub mod cors;
pub mod fault;
pub mod headers;
mod log_entry;
pub mod matcher;
pub mod metrics;
pub mod rate_limit;
pub mod route;
pub mod timeout;

pub mod circuit;
pub mod cluster;
pub mod collector;
pub mod lb;
pub mod outlier;
pub mod retry;

pub mod tables;

pub use cluster::{Cluster, ClusterConfig, Endpoint, EndpointAddress, EndpointSet};
pub use http::HttpConfig;
pub use listener::{ConnInfo, FilterChain, ListenerConfig, Network, TcpConfig};
pub use lower::LowerError;
pub use retry::RetryPolicy;
pub use route::{Action, Route, RouteAction, RouteResult, RouteTable, VirtualHost};
pub use tables::Tables;

pub(crate) use weft_xds::pb;
