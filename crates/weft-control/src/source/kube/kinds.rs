//! Which kinds are read, and where they are found. The one table that list, watch, status and
//! the installed role are made from.

use weft_model::Kind;

/// Objects of a page.
const PAGE: usize = 500;

/// A kind that is listed and watched.
#[derive(Debug, PartialEq, Eq)]
pub struct Watched {
    /// Empty for the core group.
    pub group: &'static str,
    /// In which it can be read, the preferred first.
    pub versions: &'static [&'static str],
    pub plural: &'static str,
    pub kind: Kind,
    pub namespaced: bool,
    /// `fieldSelector` of what is not read.
    pub fields: &'static str,
    /// It is there only when somebody installed it.
    pub optional: bool,
    /// Listed before the others.
    pub(super) first: bool,
    /// We write its status.
    pub status: bool,
}

/// Certificates and keys are in the types that are left; the others are large or somebody's token.
const SECRETS: &str = "type!=kubernetes.io/service-account-token,type!=helm.sh/release.v1,\
                       type!=kubernetes.io/dockerconfigjson,type!=kubernetes.io/dockercfg,\
                       type!=bootstrap.kubernetes.io/token";

/// All of them.
pub const WATCHED: &[Watched] = &[
    Watched { namespaced: false, first: true, ..core("namespaces", Kind::Namespace) },
    Watched { first: true, ..core("configmaps", Kind::ConfigMap) },
    Watched { namespaced: false, ..core("nodes", Kind::Node) },
    core("services", Kind::Service),
    core("pods", Kind::Pod),
    Watched { fields: SECRETS, ..core("secrets", Kind::Secret) },
    Watched { group: "discovery.k8s.io", ..core("endpointslices", Kind::EndpointSlice) },
    istio("virtualservices", Kind::VirtualService),
    istio("destinationrules", Kind::DestinationRule),
    istio("gateways", Kind::Gateway),
    istio("sidecars", Kind::Sidecar),
    istio("serviceentries", Kind::ServiceEntry),
    istio("workloadentries", Kind::WorkloadEntry),
    istio("workloadgroups", Kind::WorkloadGroup),
    Watched { versions: &["v1alpha3"], ..istio("envoyfilters", Kind::EnvoyFilter) },
    Watched { versions: &["v1", "v1beta1"], ..istio("proxyconfigs", Kind::ProxyConfig) },
    Watched {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        ..istio("peerauthentications", Kind::PeerAuthentication)
    },
    Watched {
        group: "telemetry.istio.io",
        versions: &["v1", "v1alpha1"],
        ..istio("telemetries", Kind::Telemetry)
    },
    Watched { namespaced: false, ..gateway_api("gatewayclasses", Kind::GatewayClass) },
    gateway_api("gateways", Kind::KubeGateway),
    gateway_api("listenersets", Kind::ListenerSet),
    gateway_api("httproutes", Kind::HttpRoute),
    gateway_api("grpcroutes", Kind::GrpcRoute),
    gateway_api("tlsroutes", Kind::TlsRoute),
    gateway_api("tcproutes", Kind::TcpRoute),
    gateway_api("udproutes", Kind::UdpRoute),
    gateway_api("backendtlspolicies", Kind::BackendTlsPolicy),
    Watched { status: false, ..gateway_api("referencegrants", Kind::ReferenceGrant) },
];

const fn core(plural: &'static str, kind: Kind) -> Watched {
    Watched {
        group: "",
        versions: &["v1"],
        plural,
        kind,
        namespaced: true,
        fields: "",
        optional: false,
        first: false,
        status: false,
    }
}

const fn istio(plural: &'static str, kind: Kind) -> Watched {
    Watched {
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        optional: true,
        status: true,
        ..core(plural, kind)
    }
}

const fn gateway_api(plural: &'static str, kind: Kind) -> Watched {
    Watched {
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1", "v1alpha3", "v1alpha2"],
        ..istio(plural, kind)
    }
}

impl Watched {
    /// `/apis/GROUP/VERSION` or `/api/v1`.
    pub(super) fn root(&self, version: &str) -> String {
        match self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        }
    }

    /// Path of one resource.
    pub(crate) fn path(&self, version: &str, namespace: &str, name: &str) -> String {
        let (root, plural) = (self.root(version), self.plural);
        match self.namespaced {
            true => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
            false => format!("{root}/{plural}/{name}"),
        }
    }

    /// URL of one page of all of them; `token` continues a list.
    pub(crate) fn page(&self, version: &str, token: &str) -> String {
        let collection = self.collection(version);
        match token {
            "" => format!("{collection}limit={PAGE}"),
            token => format!("{collection}limit={PAGE}&continue={}", escaped(token)),
        }
    }

    /// URL of all of them, up to where more parameters follow.
    pub(super) fn collection(&self, version: &str) -> String {
        let (root, plural) = (self.root(version), self.plural);
        match self.fields {
            "" => format!("{root}/{plural}?"),
            fields => format!("{root}/{plural}?fieldSelector={}&", escaped(fields)),
        }
    }

    pub(super) fn api_version(&self, version: &str) -> String {
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// `plural.group`, as CRDs are called.
    pub(super) fn full_name(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// Percent-encoded for a query.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new kind of the model does not compile here until somebody says where it is read.
    macro_rules! kinds {
        (read: $($read:ident)*; elsewhere: $($other:ident: $why:literal)*;) => {
            const READ: &[Kind] = &[$(Kind::$read),*];

            fn why_not(kind: Kind) -> Option<&'static str> {
                match kind {
                    $(Kind::$read => None,)*
                    $(Kind::$other => Some($why),)*
                }
            }
        };
    }

    kinds! {
        read: Namespace Node Service Pod EndpointSlice Secret ConfigMap ServiceEntry WorkloadEntry
            WorkloadGroup VirtualService DestinationRule Gateway Sidecar PeerAuthentication GatewayClass KubeGateway
            ListenerSet HttpRoute GrpcRoute TlsRoute TcpRoute UdpRoute BackendTlsPolicy ReferenceGrant
            EnvoyFilter ProxyConfig Telemetry;
        elsewhere:
            Deployment: "its Pods are read"
            StatefulSet: "its Pods are read"
            DaemonSet: "its Pods are read"
            ReplicaSet: "its Pods are read"
            Job: "its Pods are read"
            Endpoints: "EndpointSlices say the same"
            MeshConfig: "it is in ConfigMap istio";
    }

    #[test]
    fn every_kind_of_the_model_is_read() {
        for kind in READ {
            let found = WATCHED.iter().filter(|watched| watched.kind == *kind).count();
            assert_eq!(found, 1, "{kind:?} is read once");
        }
        for watched in WATCHED {
            assert_eq!(why_not(watched.kind), None, "{:?}", watched.kind);
        }
    }
}
