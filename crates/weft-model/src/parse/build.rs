//! One document to its typed object.

use std::cell::RefCell;

use base64::Engine as _;
use serde::Deserialize;

use super::Head;
use super::meta::RawMeta;
use crate::object::{Kind, Labels, Meta, Object, Resource};
use crate::protojson::{self, Skipped};
use crate::spec;
use crate::yaml::{self, Node, Value};

/// The kind that `apiVersion` and `kind` name, when Weft reads it.
pub(super) fn known_kind(api_version: &str, kind: &str) -> Option<Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    // Older versions of the Gateway API are the same schema, at most with fewer fields.
    if group == spec::gateway_api::GROUP {
        return gateway_api_kind(version, kind);
    }
    let istio = matches!(version, "v1" | "v1beta1" | "v1alpha3");
    Some(match (group, kind) {
        ("", "Namespace") => Kind::Namespace,
        ("", "Node") => Kind::Node,
        ("", "Service") => Kind::Service,
        ("", "Pod") => Kind::Pod,
        ("", "Endpoints") => Kind::Endpoints,
        ("", "Secret") => Kind::Secret,
        ("", "ConfigMap") => Kind::ConfigMap,
        ("" | "mesh.istio.io", "MeshConfig") => Kind::MeshConfig,
        ("apps" | "extensions", "Deployment") => Kind::Deployment,
        ("apps" | "extensions", "DaemonSet") => Kind::DaemonSet,
        ("apps" | "extensions", "ReplicaSet") => Kind::ReplicaSet,
        ("apps", "StatefulSet") => Kind::StatefulSet,
        ("batch", "Job") => Kind::Job,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("networking.istio.io", "ServiceEntry") if istio => Kind::ServiceEntry,
        ("networking.istio.io", "WorkloadEntry") if istio => Kind::WorkloadEntry,
        ("networking.istio.io", "WorkloadGroup") if istio => Kind::WorkloadGroup,
        ("networking.istio.io", "VirtualService") if istio => Kind::VirtualService,
        ("networking.istio.io", "DestinationRule") if istio => Kind::DestinationRule,
        ("networking.istio.io", "Gateway") if istio => Kind::Gateway,
        ("networking.istio.io", "Sidecar") if istio => Kind::Sidecar,
        ("security.istio.io", "PeerAuthentication") if istio => Kind::PeerAuthentication,
        ("networking.istio.io", "EnvoyFilter") if istio => Kind::EnvoyFilter,
        ("networking.istio.io", "ProxyConfig") if istio => Kind::ProxyConfig,
        ("telemetry.istio.io", "Telemetry") if istio || version == "v1alpha1" => Kind::Telemetry,
        _ => return None,
    })
}

fn gateway_api_kind(version: &str, kind: &str) -> Option<Kind> {
    if !matches!(version, "v1" | "v1beta1" | "v1alpha2" | "v1alpha3") {
        return None;
    }
    Some(match kind {
        "GatewayClass" => Kind::GatewayClass,
        "Gateway" => Kind::KubeGateway,
        "ListenerSet" => Kind::ListenerSet,
        "HTTPRoute" => Kind::HttpRoute,
        "GRPCRoute" => Kind::GrpcRoute,
        "TLSRoute" => Kind::TlsRoute,
        "TCPRoute" => Kind::TcpRoute,
        "UDPRoute" => Kind::UdpRoute,
        "BackendTLSPolicy" => Kind::BackendTlsPolicy,
        "ReferenceGrant" => Kind::ReferenceGrant,
        _ => return None,
    })
}

type Skips = RefCell<Vec<Skipped>>;

pub(super) fn build(head: &Head, node: &Node, skipped: &Skips) -> Result<Object, protojson::Error> {
    let meta = head.meta.clone();
    let Some(kind) = known_kind(&head.api_version, &head.kind) else {
        let (api_version, kind) = (head.api_version.clone(), head.kind.clone());
        return Ok(Object::Ignored { api_version, kind, meta });
    };
    let empty = Node { line: node.line, value: Value::Null };
    let at = |field: &'static str| node.get(field).unwrap_or(&empty);
    macro_rules! spec {
        ($variant:ident) => {{
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::$variant(Resource { meta, spec })
        }};
        ($variant:ident, root) => {{
            let spec = protojson::read(node, "", skipped)?;
            Object::$variant(Resource { meta, spec })
        }};
    }
    Ok(match kind {
        Kind::Namespace => Object::Namespace(Resource { meta, spec: spec::Namespace }),
        Kind::Node => Object::Node(Resource { meta, spec: spec::Node }),
        Kind::Service => spec!(Service),
        Kind::Pod => {
            let pod = spec::Pod {
                spec: protojson::read(at("spec"), "spec", skipped)?,
                status: protojson::read(at("status"), "status", skipped)?,
            };
            Object::Pod(Resource { meta, spec: pod })
        }
        Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet | Kind::Job => {
            let spec = pod_template(kind, at("spec").get("template").unwrap_or(&empty), skipped)?;
            Object::PodTemplate(Resource { meta, spec })
        }
        Kind::Endpoints => spec!(Endpoints, root),
        Kind::EndpointSlice => spec!(EndpointSlice, root),
        Kind::Secret => Object::Secret(Resource { meta, spec: secret(node, skipped)? }),
        Kind::ConfigMap => return config_map(meta, node, skipped),
        Kind::MeshConfig => {
            // With a kind, the fields may stand under `spec` or beside it.
            match node.get("spec") {
                Some(spec) => {
                    let spec = protojson::read(spec, "spec", skipped)?;
                    Object::MeshConfig(Box::new(Resource { meta, spec }))
                }
                None => {
                    let mut bare = node.clone();
                    if let Value::Map(entries) = &mut bare.value {
                        entries
                            .retain(|(k, _)| !matches!(&**k, "apiVersion" | "kind" | "metadata"));
                    }
                    let spec = protojson::read(&bare, "", skipped)?;
                    Object::MeshConfig(Box::new(Resource { meta, spec }))
                }
            }
        }
        Kind::ServiceEntry => spec!(ServiceEntry),
        Kind::WorkloadEntry => {
            let mut spec: spec::WorkloadEntry = protojson::read(at("spec"), "spec", skipped)?;
            spec.healthy = healthy(at("status"), skipped)?;
            Object::WorkloadEntry(Resource { meta, spec })
        }
        Kind::WorkloadGroup => {
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::WorkloadGroup(Box::new(Resource { meta, spec }))
        }
        Kind::VirtualService => spec!(VirtualService),
        Kind::DestinationRule => {
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::DestinationRule(Box::new(Resource { meta, spec }))
        }
        Kind::Gateway => spec!(Gateway),
        Kind::Sidecar => spec!(Sidecar),
        Kind::PeerAuthentication => spec!(PeerAuthentication),
        Kind::GatewayClass => spec!(GatewayClass),
        Kind::KubeGateway => {
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::KubeGateway(Box::new(Resource { meta, spec }))
        }
        Kind::ListenerSet => spec!(ListenerSet),
        Kind::HttpRoute => spec!(HttpRoute),
        Kind::GrpcRoute => spec!(GrpcRoute),
        Kind::TlsRoute => spec!(TlsRoute),
        Kind::TcpRoute => spec!(TcpRoute),
        Kind::UdpRoute => spec!(UdpRoute),
        Kind::BackendTlsPolicy => spec!(BackendTlsPolicy),
        Kind::ReferenceGrant => spec!(ReferenceGrant),
        Kind::EnvoyFilter => spec!(EnvoyFilter),
        Kind::ProxyConfig => {
            let spec = protojson::read(at("spec"), "spec", skipped)?;
            Object::ProxyConfig(Box::new(Resource { meta, spec }))
        }
        Kind::Telemetry => spec!(Telemetry),
    })
}

/// What a WorkloadEntry's status says of its health; `None` when nobody looks.
fn healthy(status: &Node, skipped: &Skips) -> Result<Option<bool>, protojson::Error> {
    let Some(Value::Seq(conditions)) = status.get("conditions").map(|node| &node.value) else {
        return Ok(None);
    };
    for condition in conditions {
        let condition: spec::PodCondition =
            protojson::read(condition, "status.conditions", skipped)?;
        if condition.condition_type == "Healthy" {
            return Ok(Some(condition.status == "True"));
        }
    }
    Ok(None)
}

fn pod_template(
    kind: Kind,
    node: &Node,
    skipped: &Skips,
) -> Result<spec::PodTemplate, protojson::Error> {
    let empty = Node { line: node.line, value: Value::Null };
    let metadata = node.get("metadata").unwrap_or(&empty);
    let meta: RawMeta = protojson::read(metadata, "spec.template.metadata", skipped)?;
    let spec = node.get("spec").unwrap_or(&empty);
    Ok(spec::PodTemplate {
        kind,
        labels: meta.labels,
        annotations: meta.annotations,
        spec: protojson::read(spec, "spec.template.spec", skipped)?,
    })
}

/// ConfigMap `istio` carries the MeshConfig as YAML text under `mesh`.
fn config_map(meta: Meta, node: &Node, skipped: &Skips) -> Result<Object, protojson::Error> {
    let spec: spec::ConfigMap = protojson::read(node, "", skipped)?;
    let wanted = &*meta.name == "istio" && &*meta.namespace == crate::ROOT_NAMESPACE;
    let Some(text) = spec.data.get("mesh").filter(|_| wanted) else {
        return Ok(Object::ConfigMap(Resource { meta, spec }));
    };
    let line = node.get("data").and_then(|data| data.get("mesh")).map_or(node.line, |n| n.line);
    let mesh = match yaml::parse(&yaml::Document { line, text }) {
        Ok(mesh) => mesh,
        Err(error) => return Err(protojson::Error::at("data.mesh", error.line, error.message)),
    };
    let spec = protojson::read(&mesh, "data.mesh", skipped)?;
    Ok(Object::MeshConfig(Box::new(Resource { meta, spec })))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawSecret {
    #[serde(rename = "type")]
    secret_type: String,
    data: Labels,
    string_data: Labels,
}

fn secret(node: &Node, skipped: &Skips) -> Result<spec::Secret, protojson::Error> {
    let raw: RawSecret = protojson::read(node, "", skipped)?;
    let mut secret = spec::Secret { secret_type: raw.secret_type, ..Default::default() };
    for (name, text) in raw.data {
        // Folded YAML scalars leave blanks and line breaks inside the base64 text.
        let text: String = text.split_ascii_whitespace().collect();
        let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text) else {
            let line = node.get("data").and_then(|data| data.get(&name)).map_or(0, |n| n.line);
            let path = format!("data[{name:?}]");
            return Err(protojson::Error::at(&path, line, "expected base64".into()));
        };
        secret.data.insert(name, bytes);
    }
    secret.data.extend(raw.string_data.into_iter().map(|(name, text)| (name, text.into_bytes())));
    Ok(secret)
}
