//! Discovery responses whose resource bodies are shared `Bytes`.
//!
//! Wire-compatible with `envoy.service.discovery.v3`; prost's generated types
//! hold a `Vec<u8>` per resource, so sending one resource to a thousand proxies
//! would copy it a thousand times before encoding. Only the fields we send or
//! read are declared, the rest is skipped on decode.
//! Must not know sessions.

use bytes::Bytes;

/// `google.protobuf.Any` with a shared body.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Any>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(message, optional, tag = "6")]
    pub control_plane: Option<ControlPlane>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}

/// `envoy.service.discovery.v3.Resource`; also how SotW servers may wrap a resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `envoy.config.core.v3.ControlPlane`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ControlPlane {
    #[prost(string, tag = "1")]
    pub identifier: String,
}

/// gRPC path of state-of-the-world ADS.
pub const STREAM_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// gRPC path of incremental ADS.
pub const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// gRPC name of the ADS service.
pub const SERVICE_NAME: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// The name of a resource from its encoded body.
///
/// In every type we carry (Listener, RouteConfiguration, Cluster,
/// ClusterLoadAssignment, Secret) the name is the string field 1, so no full
/// decode is needed. `None` if the body is malformed or has no name.
pub fn resource_name(body: &[u8]) -> Option<String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    match <Named as prost::Message>::decode(body) {
        Ok(named) if !named.name.is_empty() => Some(named.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::service::discovery::v3 as discovery;
    use prost::Message;

    #[test]
    fn responses_decode_as_envoys() {
        let cluster = Cluster { name: "c".into(), ..Cluster::default() };
        let body = Bytes::from(cluster.encode_to_vec());
        assert_eq!(resource_name(&body).as_deref(), Some("c"));
        let ours = DeltaDiscoveryResponse {
            system_version_info: "s".into(),
            resources: vec![Resource {
                version: "v".into(),
                resource: Some(Any { type_url: crate::type_url::CLUSTER.into(), value: body }),
                name: "c".into(),
            }],
            type_url: crate::type_url::CLUSTER.into(),
            removed_resources: vec!["gone".into()],
            nonce: "n".into(),
            control_plane: Some(ControlPlane { identifier: "weft".into() }),
        };
        let bytes = ours.encode_to_vec();
        let theirs = discovery::DeltaDiscoveryResponse::decode(&bytes[..]).unwrap();
        assert_eq!(theirs.removed_resources, ["gone"]);
        assert_eq!(theirs.nonce, "n");
        assert_eq!(theirs.resources[0].name, "c");
        assert_eq!(theirs.control_plane.as_ref().unwrap().identifier, "weft");
        assert_eq!(theirs.encode_to_vec(), bytes);
    }
}
