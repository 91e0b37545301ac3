//! The xDS contract both planes share.
//!
//! Owns: Envoy's messages (`pb`), resource types and names, the sans-io ADS
//! session of both ends (`session`), thin gRPC shells around it (`client`,
//! `server`), Istio's certificate service (`ca`), name tables (`nds`) and health reports (`health`),
//! the node's identity fields (`node`), the JSON form of any message (`json`), patches of messages
//! (`patch`) and load reports (`report`).
//! Must not know: Istio kinds, how resources are made, what a proxy does with
//! them.

pub use envoy_types::pb;

pub mod ca;
pub mod client;
pub mod connect;
pub mod health;
pub mod json;
pub mod mixer;
pub mod names;
pub mod nds;
pub mod node;
pub mod patch;
pub mod report;
pub mod server;
pub mod session;
pub mod stats;
pub mod type_url;
pub mod unary;
pub mod wire;

mod canonical;

pub use node::NodeView;
pub use session::Resource;
pub use type_url::ResourceType;
