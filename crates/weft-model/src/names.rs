//! Names that mean something: hosts (short, full, wildcard) and gateway references.

/// Kubernetes' DNS domain; short hosts resolve to `NAME.NAMESPACE.svc.cluster.local`.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// How the origin of a resource begins that an API server gave: what follows is its path.
pub const KUBERNETES: &str = "kubernetes:";
/// Istio's default root namespace (`MeshConfig.rootNamespace`).
pub const ROOT_NAMESPACE: &str = "istio-system";
/// Istio's default cluster id.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Between the name of a resource of another cluster and that cluster; no name has it.
const CLUSTER_MARK: char = '@';
/// Label of what runs on one node: the node's name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The reserved gateway name for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// The key of a resource of another cluster than the mesh's own: `NAME@CLUSTER`.
pub fn in_cluster(name: &str, cluster: &str) -> String {
    format!("{name}{CLUSTER_MARK}{cluster}")
}

/// A name as its own cluster knows it, and which that is; `None` for the mesh's own.
pub fn name_and_cluster(name: &str) -> (&str, Option<&str>) {
    match name.split_once(CLUSTER_MARK) {
        Some((name, cluster)) => (name, Some(cluster)),
        None => (name, None),
    }
}

/// A host as Istio resolves it: lower case; a name without a dot becomes
/// `name.namespace.svc.cluster.local`; dotted names, wildcards and addresses stay as they are.
pub fn resolve_host(host: &str, namespace: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.is_empty() || host.contains('.') || host.contains(':') || host.starts_with('*') {
        return host;
    }
    format!("{host}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// A gateway reference as `namespace/name`; `mesh` stays `mesh`. Accepts `name`, `ns/name`, and
/// the old `name.ns[.svc.cluster.local]` form.
pub fn resolve_gateway(gateway: &str, namespace: &str) -> String {
    if gateway == MESH_GATEWAY || gateway.contains('/') {
        return match gateway.strip_prefix("./") {
            Some(name) => format!("{namespace}/{name}"),
            None => gateway.to_string(),
        };
    }
    match gateway.split_once('.') {
        Some((name, rest)) => {
            let other = rest.split('.').next().unwrap_or(namespace);
            format!("{other}/{name}")
        }
        None => format!("{namespace}/{gateway}"),
    }
}

/// Does `pattern` (exact, `*.suffix`, `*`) cover `host`? Case-insensitive. A wildcard in `host`
/// is covered only by an equal or wider pattern.
pub fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern.eq_ignore_ascii_case(host),
        Some(suffix) => {
            let host = host.strip_prefix('*').unwrap_or(host);
            host.len() >= suffix.len()
                && host.is_char_boundary(host.len() - suffix.len())
                && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        }
    }
}

/// Is there a host that both patterns cover?
pub fn hosts_overlap(a: &str, b: &str) -> bool {
    host_matches(a, b) || host_matches(b, a)
}
