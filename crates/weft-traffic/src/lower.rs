//! xDS messages to tables. The only place that reads protobuf; nothing of it survives.
//!
//! Every message is taken apart without `..`, so that each field is a decision: lowered, rejected when
//! set (its meaning would be lost), or ignored by name with `_` (statistics, debugging, tuning of
//! Envoy's own machinery). An error carries the path of the field and a reason for the operator, and
//! becomes the NACK's text.

mod access_log;
mod cluster;
mod collector;
mod endpoints;
mod filters;
mod hcm;
mod listener;
mod matchers;
mod metrics;
mod rate_limit;
mod route;
mod route_action;
mod tls;
mod value;

use std::sync::Arc;

use prost::{Message, Name};

use crate::cluster::{Cluster, EndpointSet};
use crate::listener::ListenerConfig;
use crate::pb::envoy::config::{cluster::v3 as cluster_pb, endpoint::v3 as endpoint_pb};
use crate::pb::envoy::config::{listener::v3 as listener_pb, route::v3 as route_pb};
use crate::pb::google::protobuf::Any;
use crate::route::RouteTable;

/// Why a resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct LowerError {
    /// Field path from the resource down (`listener.filter_chains[2].filters[0].http_filters[1]`).
    pub path: String,
    pub reason: String,
}

/// Result of lowering.
pub type Result<T> = std::result::Result<T, LowerError>;

/// A resource of any kind.
#[derive(Debug, Clone)]
pub enum Lowered {
    Listener(Arc<ListenerConfig>),
    Route(Arc<RouteTable>),
    Cluster(Arc<Cluster>),
    /// With the EDS service name.
    Endpoints(Arc<str>, Arc<EndpointSet>),
}

/// Lowers a listener (LDS).
pub fn listener(message: &listener_pb::Listener) -> Result<ListenerConfig> {
    listener::lower(message).within(|| format!("listener {:?}", message.name))
}

/// Lowers a route configuration (RDS).
pub fn route_config(message: &route_pb::RouteConfiguration) -> Result<RouteTable> {
    route::lower(message).within(|| format!("route {:?}", message.name))
}

/// Lowers a cluster (CDS). An EDS cluster has no endpoints until [`crate::Tables`] joins them.
pub fn cluster(message: &cluster_pb::Cluster) -> Result<Cluster> {
    cluster::lower(message).within(|| format!("cluster {:?}", message.name))
}

/// Lowers a load assignment (EDS).
pub fn endpoints(message: &endpoint_pb::ClusterLoadAssignment) -> Result<EndpointSet> {
    endpoints::lower(message, endpoints::Names::Refuse)
        .within(|| format!("endpoints {:?}", message.cluster_name))
}

/// Lowers whatever resource `any` holds.
pub fn any(any: &Any) -> Result<Lowered> {
    match value::message_name(any) {
        "envoy.config.listener.v3.Listener" => {
            listener(&decode(any)?).map(|l| Lowered::Listener(Arc::new(l)))
        }
        "envoy.config.route.v3.RouteConfiguration" => {
            route_config(&decode(any)?).map(|r| Lowered::Route(Arc::new(r)))
        }
        "envoy.config.cluster.v3.Cluster" => {
            cluster(&decode(any)?).map(|c| Lowered::Cluster(Arc::new(c)))
        }
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            let message: endpoint_pb::ClusterLoadAssignment = decode(any)?;
            let set = Arc::new(endpoints(&message)?);
            Ok(Lowered::Endpoints(Arc::from(message.cluster_name), set))
        }
        other => Err(LowerError::new("resource", format!("type {other:?} is not known"))),
    }
}

impl LowerError {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> LowerError {
        LowerError { path: path.into(), reason: reason.into() }
    }
}

/// Shorthand for an error at a field.
fn error<T>(path: impl Into<String>, reason: impl Into<String>) -> Result<T> {
    Err(LowerError::new(path, reason))
}

/// Refuses a field that we do not implement and that would change what happens.
fn refuse(set: bool, path: &str) -> Result<()> {
    match set {
        true => error(path, "is not supported; remove it or use a proxy that implements it"),
        false => Ok(()),
    }
}

/// Puts the enclosing field in front of an error's path.
trait Within<T> {
    fn within<P: AsRef<str>>(self, path: impl FnOnce() -> P) -> Result<T>;
    fn at(self, path: &str) -> Result<T>;
    fn item(self, path: &str, index: usize) -> Result<T>;
}

impl<T> Within<T> for Result<T> {
    fn within<P: AsRef<str>>(self, path: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|error| {
            let outer = path();
            let path = match error.path.is_empty() {
                true => outer.as_ref().to_owned(),
                false => format!("{}.{}", outer.as_ref(), error.path),
            };
            LowerError { path, reason: error.reason }
        })
    }

    fn at(self, path: &str) -> Result<T> {
        self.within(|| path)
    }

    fn item(self, path: &str, index: usize) -> Result<T> {
        self.within(|| format!("{path}[{index}]"))
    }
}

/// Lowers a list, naming the item in errors.
fn list<M, T>(path: &str, items: &[M], one: impl Fn(&M) -> Result<T>) -> Result<Vec<T>> {
    items.iter().enumerate().map(|(i, item)| one(item).item(path, i)).collect()
}

/// Decodes a typed message; the caller has checked the type by name.
fn decode<T: Message + Name + Default>(any: &Any) -> Result<T> {
    let name = T::full_name();
    if value::message_name(any) != name {
        return error("", format!("expected {name}, got {:?}", any.type_url));
    }
    T::decode(&any.value[..]).or_else(|e| error("", format!("{name} does not decode: {e}")))
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
