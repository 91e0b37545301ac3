//! The ADS protocol without sockets, both ends, state-of-the-world and delta.
//!
//! Owns resources as they travel, nonces, ACK and NACK, subscriptions, and what
//! each end knows the other to have. Must not know how resources are made or
//! used, nor clocks, tasks and transports.

mod client;
mod server;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod simulation;

use std::sync::Arc;

use bytes::Bytes;
use prost::{Message, Name};

use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::pb::google::rpc::Status;
use crate::wire;

pub use client::{ClientSession, Received, Rejection, Update, Wanted};
pub use server::{
    Action, Limits, Nack, Push, ServerSession, SessionError, Set, Source, Stamp, Subscription,
    TypeStatus, Want,
};

/// One resource as it is sent: encoded once, shared by all who get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Unique within its type.
    pub name: Arc<str>,
    /// Content hash of the body, in hex: equal content has an equal version,
    /// also after a restart.
    pub version: Arc<str>,
    /// The encoded message, without the `Any` around it.
    pub body: Bytes,
}

impl Resource {
    /// Encodes a message deterministically (map entries in order) and hashes it.
    pub fn new<M: Message + Name>(name: impl Into<Arc<str>>, message: &M) -> Self {
        let body = crate::canonical::canonical(&M::full_name(), message.encode_to_vec());
        Self::from_body(name, body)
    }

    /// A resource from bytes that are already encoded.
    pub fn from_body(name: impl Into<Arc<str>>, body: Bytes) -> Self {
        let version = format!("{:016x}", xxhash_rust::xxh64::xxh64(&body, 0));
        Self { name: name.into(), version: version.into(), body }
    }

    /// Decodes the body.
    ///
    /// # Errors
    /// The body is not an `M`.
    pub fn decode<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.body.clone())
    }
}

/// Which of the two ADS protocols a stream speaks; fixed by the gRPC method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `StreamAggregatedResources`: state of the world.
    Sotw,
    /// `DeltaAggregatedResources`: incremental.
    Delta,
}

/// A request of either protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

impl Request {
    /// The client's identity, given on the first request of a stream.
    pub fn node(&self) -> Option<&Node> {
        match self {
            Self::Sotw(request) => request.node.as_ref(),
            Self::Delta(request) => request.node.as_ref(),
        }
    }

    /// The type asked for.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Sotw(request) => &request.type_url,
            Self::Delta(request) => &request.type_url,
        }
    }

    /// The nonce answered, empty on a first request.
    pub fn nonce(&self) -> &str {
        match self {
            Self::Sotw(request) => &request.response_nonce,
            Self::Delta(request) => &request.response_nonce,
        }
    }

    /// Why the answered response was rejected, if it was.
    pub fn error(&self) -> Option<&Status> {
        match self {
            Self::Sotw(request) => request.error_detail.as_ref(),
            Self::Delta(request) => request.error_detail.as_ref(),
        }
    }
}

impl From<DiscoveryRequest> for Request {
    fn from(request: DiscoveryRequest) -> Self {
        Self::Sotw(request)
    }
}

impl From<DeltaDiscoveryRequest> for Request {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        Self::Delta(request)
    }
}

/// A response of either protocol, as a client reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Sotw(wire::DiscoveryResponse),
    Delta(wire::DeltaDiscoveryResponse),
}

impl Response {
    /// The type carried.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Sotw(response) => &response.type_url,
            Self::Delta(response) => &response.type_url,
        }
    }
}

impl From<wire::DiscoveryResponse> for Response {
    fn from(response: wire::DiscoveryResponse) -> Self {
        Self::Sotw(response)
    }
}

impl From<wire::DeltaDiscoveryResponse> for Response {
    fn from(response: wire::DeltaDiscoveryResponse) -> Self {
        Self::Delta(response)
    }
}
