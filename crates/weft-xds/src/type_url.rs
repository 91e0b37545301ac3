//! The resource types we speak and their type URLs.
//!
//! Owns the closed list of types and their push order. Must not know what is
//! in a resource.

use std::fmt;

/// `envoy.config.listener.v3.Listener`
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `envoy.config.route.v3.RouteConfiguration`
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `envoy.config.cluster.v3.Cluster`
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `envoy.config.endpoint.v3.ClusterLoadAssignment`
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `envoy.extensions.transport_sockets.tls.v3.Secret`
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// `istio.networking.nds.v1.NameTable`
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// A resource type carried over ADS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS
    Cluster,
    /// EDS
    Endpoint,
    /// LDS
    Listener,
    /// RDS
    Route,
    /// SDS
    Secret,
    /// Istio's NDS: one resource, all hosts a workload may ask its proxy for.
    NameTable,
}

impl ResourceType {
    /// Make-before-break push order: what is referenced goes before what refers to it.
    pub const PUSH_ORDER: [ResourceType; 6] =
        [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Secret, Self::NameTable];
    /// How many types there are; `index()` is below it.
    pub const COUNT: usize = Self::PUSH_ORDER.len();

    /// The type URL on the wire.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => CLUSTER,
            Self::Endpoint => ENDPOINT,
            Self::Listener => LISTENER,
            Self::Route => ROUTE,
            Self::Secret => SECRET,
            Self::NameTable => NAME_TABLE,
        }
    }

    /// The type of a URL, `None` for types we do not serve.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::PUSH_ORDER.into_iter().find(|ty| ty.url() == url)
    }

    /// Position in arrays that hold one value per type.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Short lower-case name as in Istio's metrics and status: `cds`, `eds`, `lds`, `rds`, `sds`, `nds`.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoint => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
            Self::NameTable => "nds",
        }
    }

    /// Whether an empty first subscription means "everything" (LDS, CDS and NDS only).
    pub const fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::NameTable)
    }

    /// Whether a state-of-the-world response must carry the whole set, absence
    /// meaning removal (LDS, CDS and NDS only; the others may be sent in part).
    pub const fn sotw_is_complete(self) -> bool {
        self.has_wildcard()
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::ResourceType;
    use crate::pb;
    use prost::Name;

    #[test]
    fn urls_are_those_of_the_messages() {
        assert_eq!(
            ResourceType::Cluster.url(),
            pb::envoy::config::cluster::v3::Cluster::type_url()
        );
        assert_eq!(
            ResourceType::Endpoint.url(),
            pb::envoy::config::endpoint::v3::ClusterLoadAssignment::type_url()
        );
        assert_eq!(
            ResourceType::Listener.url(),
            pb::envoy::config::listener::v3::Listener::type_url()
        );
        assert_eq!(
            ResourceType::Route.url(),
            pb::envoy::config::route::v3::RouteConfiguration::type_url()
        );
        assert_eq!(
            ResourceType::Secret.url(),
            pb::envoy::extensions::transport_sockets::tls::v3::Secret::type_url()
        );
        assert_eq!(ResourceType::NameTable.url(), crate::nds::NameTable::type_url());
        for (i, ty) in ResourceType::PUSH_ORDER.into_iter().enumerate() {
            assert_eq!(ty.index(), i);
            assert_eq!(ResourceType::from_url(ty.url()), Some(ty));
        }
    }
}
