//! Which kinds an API server serves: built in ones, and those a test installs.

/// One kind, in all its versions: they share their objects, as with a CRD without conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    /// Preferred first.
    pub versions: Vec<String>,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
    /// Has a `/status` subresource: the status is written there and nowhere else.
    pub status: bool,
}

impl Kind {
    pub fn new(group: &str, versions: &[&str], plural: &str, kind: &str) -> Self {
        Kind {
            group: group.to_owned(),
            versions: versions.iter().map(ToString::to_string).collect(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced: true,
            status: true,
        }
    }

    fn of_cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn without_status(mut self) -> Self {
        self.status = false;
        self
    }
}

/// What every Kubernetes has, as far as a mesh looks at it.
pub(super) fn built_in() -> Vec<Kind> {
    let core = |plural, kind| Kind::new("", &["v1"], plural, kind);
    let rbac = |plural, kind| {
        Kind::new("rbac.authorization.k8s.io", &["v1"], plural, kind).without_status()
    };
    let hook = |plural, kind| {
        let kind = Kind::new("admissionregistration.k8s.io", &["v1"], plural, kind);
        kind.without_status().of_cluster()
    };
    vec![
        core("namespaces", "Namespace").of_cluster(),
        core("nodes", "Node").of_cluster(),
        core("services", "Service"),
        core("pods", "Pod"),
        core("endpoints", "Endpoints").without_status(),
        core("secrets", "Secret").without_status(),
        core("configmaps", "ConfigMap").without_status(),
        core("serviceaccounts", "ServiceAccount").without_status(),
        core("events", "Event").without_status(),
        Kind::new("discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice").without_status(),
        Kind::new("apps", &["v1"], "deployments", "Deployment"),
        Kind::new("autoscaling", &["v2"], "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
        hook("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
        hook("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
        Kind::new("policy", &["v1"], "poddisruptionbudgets", "PodDisruptionBudget"),
        Kind::new("coordination.k8s.io", &["v1"], "leases", "Lease").without_status(),
        rbac("clusterroles", "ClusterRole").of_cluster(),
        rbac("clusterrolebindings", "ClusterRoleBinding").of_cluster(),
        rbac("roles", "Role"),
        rbac("rolebindings", "RoleBinding"),
        Kind::new(
            "apiextensions.k8s.io",
            &["v1"],
            "customresourcedefinitions",
            "CustomResourceDefinition",
        )
        .of_cluster(),
    ]
}

/// Istio's kinds, as its CRDs are installed.
pub fn istio() -> Vec<Kind> {
    let networking = |plural, kind| {
        Kind::new("networking.istio.io", &["v1", "v1beta1", "v1alpha3"], plural, kind)
    };
    let security = |plural, kind| Kind::new("security.istio.io", &["v1", "v1beta1"], plural, kind);
    vec![
        networking("virtualservices", "VirtualService"),
        networking("destinationrules", "DestinationRule"),
        networking("gateways", "Gateway"),
        networking("sidecars", "Sidecar"),
        networking("serviceentries", "ServiceEntry"),
        networking("workloadentries", "WorkloadEntry"),
        networking("workloadgroups", "WorkloadGroup"),
        Kind::new("networking.istio.io", &["v1alpha3"], "envoyfilters", "EnvoyFilter"),
        Kind::new("networking.istio.io", &["v1beta1"], "proxyconfigs", "ProxyConfig"),
        Kind::new("telemetry.istio.io", &["v1", "v1alpha1"], "telemetries", "Telemetry"),
        security("peerauthentications", "PeerAuthentication"),
    ]
}

/// The Gateway API's kinds.
pub fn gateway_api() -> Vec<Kind> {
    let of = |versions: &[&str], plural, kind| {
        Kind::new("gateway.networking.k8s.io", versions, plural, kind)
    };
    vec![
        of(&["v1", "v1beta1"], "gatewayclasses", "GatewayClass").of_cluster(),
        of(&["v1", "v1beta1"], "gateways", "Gateway"),
        of(&["v1", "v1beta1"], "httproutes", "HTTPRoute"),
        of(&["v1"], "grpcroutes", "GRPCRoute"),
        of(&["v1alpha2"], "tcproutes", "TCPRoute"),
        of(&["v1", "v1alpha3"], "backendtlspolicies", "BackendTLSPolicy"),
        of(&["v1beta1"], "referencegrants", "ReferenceGrant").without_status(),
    ]
}
