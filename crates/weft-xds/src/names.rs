//! Names of resources that both planes must agree on, as Istio writes them.
//!
//! Owns printing and parsing of cluster, listener, route and secret names.
//! Must not know which resources exist.

use std::fmt;
use std::net::IpAddr;

/// Cluster that answers with an error: egress to unknown hosts under REGISTRY_ONLY.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// Cluster to the original destination: egress to unknown hosts under ALLOW_ANY.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Cluster to whatever host a request names: egress under ALLOW_ANY_DYNAMIC_DNS.
pub const DYNAMIC_DNS_CLUSTER: &str = "AllowAnyDynamicDNSCluster";
/// Inbound cluster to the original destination, for ports no service declares.
pub const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// Listener that receives captured outbound connections (port 15001).
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Listener that receives captured inbound connections (port 15006).
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Secret: the workload's own certificate and key.
pub const SECRET_DEFAULT: &str = "default";
/// Secret: the roots that sign workload certificates.
pub const SECRET_ROOT: &str = "ROOTCA";
/// Prefix of secrets read from a Kubernetes `Secret` (`credentialName`).
pub const SECRET_KUBERNETES: &str = "kubernetes://";
/// Prefix of secrets read from files on the proxy's host.
pub const SECRET_FILE: &str = "file-cert:";
/// Prefix of secrets that hold only a root certificate file.
pub const SECRET_FILE_ROOT: &str = "file-root:";
/// Suffix Istio adds to a credential's name for its CA certificate.
pub const SECRET_CACERT_SUFFIX: &str = "-cacert";

/// A cluster name, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClusterName<'a> {
    /// `outbound|PORT|SUBSET|HOST`; the subset may be empty.
    Outbound { port: u16, subset: &'a str, host: &'a str },
    /// `inbound|PORT||`: the workload's own port.
    Inbound { port: u16 },
    /// `BlackHoleCluster`
    BlackHole,
    /// `PassthroughCluster`
    Passthrough,
    /// `InboundPassthroughCluster`
    InboundPassthrough,
}

impl<'a> ClusterName<'a> {
    /// Parses a cluster name; `None` if it is not one of ours.
    pub fn parse(name: &'a str) -> Option<Self> {
        match name {
            BLACK_HOLE_CLUSTER => return Some(Self::BlackHole),
            PASSTHROUGH_CLUSTER => return Some(Self::Passthrough),
            INBOUND_PASSTHROUGH_CLUSTER => return Some(Self::InboundPassthrough),
            _ => {}
        }
        let mut parts = name.splitn(4, '|');
        let direction = parts.next()?;
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?;
        let host = parts.next()?;
        match direction {
            "outbound" => Some(Self::Outbound { port, subset, host }),
            "inbound" => Some(Self::Inbound { port }),
            _ => None,
        }
    }
}

impl fmt::Display for ClusterName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbound { port, subset, host } => write!(f, "outbound|{port}|{subset}|{host}"),
            Self::Inbound { port } => write!(f, "inbound|{port}||"),
            Self::BlackHole => f.write_str(BLACK_HOLE_CLUSTER),
            Self::Passthrough => f.write_str(PASSTHROUGH_CLUSTER),
            Self::InboundPassthrough => f.write_str(INBOUND_PASSTHROUGH_CLUSTER),
        }
    }
}

/// `outbound|PORT|SUBSET|HOST`
pub fn outbound_cluster(port: u16, subset: &str, host: &str) -> String {
    ClusterName::Outbound { port, subset, host }.to_string()
}

/// `inbound|PORT||`
pub fn inbound_cluster(port: u16) -> String {
    ClusterName::Inbound { port }.to_string()
}

/// The SNI auto-mTLS sends to a cluster: `outbound_.PORT_.SUBSET_.HOST`.
pub fn outbound_sni(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// Port, subset and host of an [`outbound_sni`].
pub fn parse_outbound_sni(name: &str) -> Option<(u16, &str, &str)> {
    let (port, rest) = name.strip_prefix("outbound_.")?.split_once("_.")?;
    let (subset, host) = rest.split_once("_.")?;
    Some((port.parse().ok()?, subset, host))
}

/// The service's host in the name of a cluster that leads to one: `outbound|…`, `outbound_.…`.
pub fn cluster_host(name: &str) -> Option<&str> {
    match ClusterName::parse(name) {
        Some(ClusterName::Outbound { host, .. }) => Some(host),
        Some(_) => None,
        None => parse_outbound_sni(name).map(|(_, _, host)| host),
    }
}

/// Listener on one address: `<ip>_<port>`, as `0.0.0.0_8080`.
pub fn listener(ip: IpAddr, port: u16) -> String {
    format!("{ip}_{port}")
}

/// Sidecar outbound route configuration of a port: the port as text.
pub fn outbound_route(port: u16) -> String {
    port.to_string()
}

/// Gateway route configuration of all plain-text servers of a port: `http.80`.
pub fn gateway_http_route(port: u16) -> String {
    format!("http.{port}")
}

/// Gateway route configuration of one TLS server: `https.443.<portname>.<gateway>.<ns>`.
pub fn gateway_https_route(port: u16, port_name: &str, gateway: &str, namespace: &str) -> String {
    format!("https.{port}.{port_name}.{gateway}.{namespace}")
}

/// Proxyless gRPC listener: `host:port`, what the client dials as `xds:///host:port`.
pub fn grpc_listener(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// Proxyless gRPC route configuration: `outbound|PORT||HOST`.
pub fn grpc_route(host: &str, port: u16) -> String {
    outbound_cluster(port, "", host)
}

/// A secret name, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretName<'a> {
    /// `default`: the workload's certificate.
    Workload,
    /// `ROOTCA`: the mesh roots.
    Root,
    /// `kubernetes://[NS/]NAME[-cacert]`; the whole credential text after the scheme.
    Kubernetes { credential: &'a str },
    /// `file-cert:CERT~KEY`: paths on the proxy's host.
    File { certificate: &'a str, key: &'a str },
    /// `file-root:CA`: path on the proxy's host.
    FileRoot { certificate: &'a str },
}

impl<'a> SecretName<'a> {
    /// Parses a secret name; `None` if it is not one of ours.
    pub fn parse(name: &'a str) -> Option<Self> {
        match name {
            SECRET_DEFAULT => return Some(Self::Workload),
            SECRET_ROOT => return Some(Self::Root),
            _ => {}
        }
        if let Some(credential) = name.strip_prefix(SECRET_KUBERNETES) {
            return Some(Self::Kubernetes { credential });
        }
        if let Some(certificate) = name.strip_prefix(SECRET_FILE_ROOT) {
            return Some(Self::FileRoot { certificate });
        }
        let (certificate, key) = name.strip_prefix(SECRET_FILE)?.split_once('~')?;
        Some(Self::File { certificate, key })
    }
}

impl fmt::Display for SecretName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload => f.write_str(SECRET_DEFAULT),
            Self::Root => f.write_str(SECRET_ROOT),
            Self::Kubernetes { credential } => write!(f, "{SECRET_KUBERNETES}{credential}"),
            Self::File { certificate, key } => write!(f, "{SECRET_FILE}{certificate}~{key}"),
            Self::FileRoot { certificate } => write!(f, "{SECRET_FILE_ROOT}{certificate}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterName, SecretName};

    #[test]
    fn cluster_names_round_trip() {
        for name in [
            "outbound|8080|v1|servicea.default.svc.cluster.local",
            "outbound|443||*.example.com",
            "inbound|9090||",
            "BlackHoleCluster",
            "PassthroughCluster",
            "InboundPassthroughCluster",
        ] {
            let parsed = ClusterName::parse(name).expect(name);
            assert_eq!(parsed.to_string(), name);
        }
        for name in ["", "outbound", "outbound|x||h", "sideways|80||h", "outbound|70000||h"] {
            assert_eq!(ClusterName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn secret_names_round_trip() {
        for name in [
            "default",
            "ROOTCA",
            "kubernetes://ns/wallstreetcn-cert",
            "file-cert:/etc/a.pem~/etc/a.key",
            "file-root:/etc/ca.pem",
        ] {
            assert_eq!(SecretName::parse(name).expect(name).to_string(), name);
        }
        for name in ["", "other", "file-cert:/only/cert"] {
            assert_eq!(SecretName::parse(name), None, "{name}");
        }
    }
}
