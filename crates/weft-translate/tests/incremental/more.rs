//! Random resources of the Gateway API, EnvoyFilters and ProxyConfigs.

use super::{NAMES, head};

/// The label of a proxy made for a Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

const API: &str = "gateway.networking.k8s.io/v1";
const ISTIO: &str = "networking.istio.io/v1";

pub fn kube_gateway(namespace: &str, name: &str, variant: usize) -> String {
    let from_all = "allowedRoutes: {namespaces: {from: All}}";
    let listeners = match variant {
        0 => format!("{{name: http, port: 80, protocol: HTTP, {from_all}}}"),
        1 => "{name: http, port: 80, protocol: HTTP}".into(),
        2 => format!(
            "{{name: http, port: 80, protocol: HTTP, hostname: '*.example.com', {from_all}}}"
        ),
        3 => format!("{{name: tcp, port: 90, protocol: TCP, {from_all}}}"),
        4 => format!(
            "{{name: pass, port: 443, protocol: TLS, tls: {{mode: Passthrough}}, {from_all}}}"
        ),
        _ => format!(
            "{{name: http, port: 80, protocol: HTTP, {from_all}}}, {{name: other, port: 81, protocol: HTTP}}"
        ),
    };
    head(API, "Gateway", namespace, name)
        + &format!("spec: {{gatewayClassName: istio, listeners: [{listeners}]}}\n")
}

pub fn http_route(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "parentRefs: [{name: a}], rules: [{backendRefs: [{name: b, port: 80}]}]",
        1 => {
            "parentRefs: [{name: a, namespace: one}], hostnames: [x.example.com], rules: [{matches: [{path: {value: /x}}], backendRefs: [{name: a, namespace: two, port: 80}]}]"
        }
        2 => {
            "parentRefs: [{kind: Service, group: '', name: a}], rules: [{backendRefs: [{name: b, port: 80, weight: 1}, {name: c, port: 8080, weight: 3}]}]"
        }
        3 => {
            "parentRefs: [{kind: Service, group: '', name: a, namespace: one}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: c, port: 80}}}], backendRefs: [{name: a, namespace: one, port: 80}]}]"
        }
        4 => {
            "parentRefs: [{name: a, sectionName: other}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}]"
        }
        _ => {
            "parentRefs: [{name: a}, {name: b, namespace: two}], rules: [{timeouts: {request: 3s}, backendRefs: [{name: a, port: 80}]}, {matches: [{headers: [{name: h, value: v}]}], backendRefs: [{name: c, port: 80}]}]"
        }
    };
    head(API, "HTTPRoute", namespace, name) + &format!("spec: {{{spec}}}\n")
}

/// Routes of the other kinds.
pub fn stream_route(namespace: &str, name: &str, variant: usize) -> String {
    let (kind, spec) = match variant {
        0 => ("TCPRoute", "parentRefs: [{name: a}], rules: [{backendRefs: [{name: b, port: 90}]}]"),
        1 => (
            "TCPRoute",
            "parentRefs: [{kind: Service, group: '', name: a}], rules: [{backendRefs: [{name: b, port: 90}, {name: c, port: 90}]}]",
        ),
        2 => (
            "TLSRoute",
            "parentRefs: [{name: a, namespace: one}], hostnames: [s.example.com], rules: [{backendRefs: [{name: a, port: 443}]}]",
        ),
        3 => (
            "GRPCRoute",
            "parentRefs: [{name: a}], rules: [{matches: [{method: {service: shop.Echo}}], backendRefs: [{name: a, port: 82}]}]",
        ),
        4 => (
            "GRPCRoute",
            "parentRefs: [{kind: Service, group: '', name: c}], rules: [{backendRefs: [{name: a, port: 82}]}]",
        ),
        _ => (
            "TLSRoute",
            "parentRefs: [{name: b}], hostnames: ['*.example.com'], rules: [{backendRefs: [{name: c, namespace: two, port: 443}]}]",
        ),
    };
    head(API, kind, namespace, name) + &format!("spec: {{{spec}}}\n")
}

pub fn grant_or_policy(namespace: &str, name: &str, variant: usize) -> String {
    let (api, kind, spec) = match variant {
        0 | 1 => {
            let kind = if variant == 0 { "HTTPRoute" } else { "TLSRoute" };
            let from =
                format!("{{group: gateway.networking.k8s.io, kind: {kind}, namespace: one}}");
            let spec = format!("from: [{from}], to: [{{group: '', kind: Service}}]");
            ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", spec)
        }
        2 | 3 => {
            let target = NAMES[variant % NAMES.len()];
            let spec = format!(
                "targetRefs: [{{group: '', kind: Service, name: {target}}}], validation: {{hostname: {target}.example.com, wellKnownCACertificates: System}}"
            );
            (API, "BackendTLSPolicy", spec)
        }
        _ => {
            let port = 8000 + variant;
            let spec = format!(
                "parentRef: {{name: a}}, listeners: [{{name: more, port: {port}, protocol: HTTP}}]"
            );
            (API, "ListenerSet", spec)
        }
    };
    head(api, kind, namespace, name) + &format!("spec: {{{spec}}}\n")
}

pub fn envoy_filter(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => {
            "configPatches: [{applyTo: CLUSTER, match: {cluster: {service: a.one.svc.cluster.local}}, patch: {operation: MERGE, value: {connect_timeout: 7s}}}]"
        }
        1 => {
            "workloadSelector: {labels: {app: a}}, configPatches: [{applyTo: CLUSTER, patch: {operation: ADD, value: {name: added, type: STATIC, connect_timeout: 1s}}}]"
        }
        2 => {
            "workloadSelector: {labels: {version: v1}}, configPatches: [{applyTo: CLUSTER, match: {context: SIDECAR_INBOUND}, patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 4096}}}]"
        }
        3 => {
            "configPatches: [{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_OUTBOUND}, patch: {operation: MERGE, value: {include_request_attempt_count: true}}}]"
        }
        4 => {
            "priority: -1, configPatches: [{applyTo: HTTP_ROUTE, match: {context: GATEWAY}, patch: {operation: MERGE, value: {route: {timeout: 9s}}}}]"
        }
        _ => {
            "priority: 3, configPatches: [{applyTo: LISTENER, patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 8192}}}, {applyTo: CLUSTER, match: {cluster: {name: 'outbound|80||b.two.svc.cluster.local'}}, patch: {operation: REMOVE}}]"
        }
    };
    head(ISTIO, "EnvoyFilter", namespace, name) + &format!("spec: {{{spec}}}\n")
}

pub fn proxy_config(namespace: &str, name: &str, variant: usize) -> String {
    let spec = match variant {
        0 => "concurrency: 2",
        1 => "selector: {matchLabels: {app: a}}, concurrency: 4",
        2 => "environmentVariables: {ISTIO_META_IDLE_TIMEOUT: 5s}",
        3 => {
            "selector: {matchLabels: {version: v1}}, environmentVariables: {ISTIO_META_HTTP10: '1'}"
        }
        4 => "environmentVariables: {ISTIO_META_IDLE_TIMEOUT: 9s}, concurrency: 1",
        _ => "selector: {matchLabels: {app: edge}}, environmentVariables: {ISTIO_META_HTTP10: '1'}",
    };
    head("networking.istio.io/v1beta1", "ProxyConfig", namespace, name)
        + &format!("spec: {{{spec}}}\n")
}
