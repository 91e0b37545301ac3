//! The cast that several meshes share: workloads known by one name (their service account and their
//! label `app` too), and the gateway before them.

use std::net::IpAddr;

use crate::harness::Place;

/// Nothing but mTLS gets in, anywhere in the mesh.
pub const STRICT: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// Where the proxy of one of the cast stands.
pub fn place(name: &'static str, ip: IpAddr) -> Place<'static> {
    let (kind, labels): (_, &[_]) = match name {
        "gateway" => ("router", &[("istio", "ingressgateway")]),
        "server" => ("sidecar", &[("app", "server")]),
        "app" => ("sidecar", &[("app", "app")]),
        _ => ("sidecar", &[("app", "client")]),
    };
    Place { kind, name, namespace: "default", service_account: name, ip, labels }
}

/// The pod of one of the cast, with a proxy beside it.
pub fn pod(name: &str, ip: IpAddr) -> String {
    let labels = match name {
        "gateway" => "istio: ingressgateway".to_owned(),
        _ => format!("app: {name}, security.istio.io/tlsMode: istio"),
    };
    ready(name, ip, &labels)
}

/// A pod that no proxy stands beside.
pub fn bare(name: &str, ip: IpAddr) -> String {
    ready(name, ip, &format!("app: {name}"))
}

fn ready(name: &str, ip: IpAddr, labels: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}
spec: {{serviceAccountName: {name}}}
status: {{phase: Running, podIP: {ip}}}
"
    )
}
