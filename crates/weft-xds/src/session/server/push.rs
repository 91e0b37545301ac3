//! One response on its way to a client.
//!
//! Holds no copy of a resource: what a thousand clients get is there once, also while they wait for
//! it. Must not know how it is sent.

use std::sync::Arc;

use super::Set;
use crate::session::Mode;
use crate::type_url::ResourceType;

/// A response of either protocol.
#[derive(Clone, Debug)]
pub struct Push {
    pub mode: Mode,
    pub ty: ResourceType,
    /// Of the set that it brings the client to.
    pub version: String,
    pub nonce: String,
    /// Carried, in this order.
    pub resources: Set,
    /// Names that are gone or never were. State-of-the-world has no word for them.
    pub removed: Vec<Arc<str>>,
}

impl Push {
    /// Of the resources carried. Bytes.
    pub fn size(&self) -> usize {
        self.resources.iter().map(|resource| resource.body.len()).sum()
    }
}

#[cfg(test)]
impl From<Push> for crate::session::Response {
    fn from(push: Push) -> Self {
        use crate::session::{Resource, Response};
        use crate::wire;

        let Push { mode, ty, version, nonce, resources, removed } = push;
        let any = |resource: &Resource| wire::Any {
            type_url: ty.url().to_owned(),
            value: resource.body.clone(),
        };
        let named = |resource: &Resource| wire::Resource {
            version: resource.version.to_string(),
            resource: Some(any(resource)),
            name: resource.name.to_string(),
        };
        match mode {
            Mode::Sotw => Response::Sotw(wire::DiscoveryResponse {
                version_info: version,
                resources: resources.iter().map(any).collect(),
                type_url: ty.url().to_owned(),
                nonce,
                control_plane: None,
            }),
            Mode::Delta => Response::Delta(wire::DeltaDiscoveryResponse {
                system_version_info: version,
                resources: resources.iter().map(named).collect(),
                type_url: ty.url().to_owned(),
                removed_resources: removed.iter().map(|name| name.to_string()).collect(),
                nonce,
                control_plane: None,
            }),
        }
    }
}
