//! The ADS protocol without sockets, both ends, state-of-the-world and delta.
//!
//! Owns resources as they travel, nonces, ACK and NACK, subscriptions, and what
//! each end knows the other to have. Must not know how resources are made or
//! used, nor clocks, tasks and transports.

use std::sync::Arc;

use bytes::Bytes;
use prost::{Message, Name};

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
