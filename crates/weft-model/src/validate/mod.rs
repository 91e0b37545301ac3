//! What Istio's admission would say about one resource on its own. An error leaves the resource
//! out; everything that needs a second resource is in `snapshot::check`.

mod annotations;
mod bounds;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod gateway_api;
mod http_action;
mod kube;
mod service_entry;
mod sidecar;
mod telemetry;
mod text;
mod virtual_service;
mod workload_group;

pub(crate) use annotations::{INJECTION_LABEL, REVISION_LABEL};

use crate::diagnostic::{Diagnostic, Severity, code};
use crate::object::{Kind, Object, Origin, ResourceKey};
use crate::spec::{
    CURVES, LogEncoding, MeshConfig, MeshTls, OWN_CIPHERS, OWN_CURVES, PeerAuthentication,
    ProxyConfig, ProxyConfigResource, TlsProtocol, is_cipher,
};
use crate::yaml::{Node, Value};

/// Appends findings on `object`; `node` is its document, for lines.
pub(crate) fn resource(object: &Object, node: &Node, out: &mut Vec<Diagnostic>) {
    let Some(key) = object.key() else { return };
    let origin = object.meta().origin.clone();
    let mut findings = Findings { node, key, origin, out };
    metadata(&mut findings);
    annotations::check(object, &mut findings);
    match object {
        Object::VirtualService(r) => virtual_service::check(&r.spec, &mut findings),
        Object::DestinationRule(r) => destination_rule::check(&r.spec, &mut findings),
        Object::Gateway(r) => gateway::check(&r.spec, &mut findings),
        Object::ServiceEntry(r) => service_entry::check_entry(&r.spec, &mut findings),
        Object::WorkloadEntry(r) => {
            service_entry::check_workload(&r.spec, "spec", &mut findings);
        }
        Object::WorkloadGroup(r) => workload_group::check(&r.spec, &mut findings),
        Object::Sidecar(r) => sidecar::check(&r.spec, &mut findings),
        Object::PeerAuthentication(r) => peer_authentication(&r.spec, &mut findings),
        Object::EnvoyFilter(r) => envoy_filter::check(&r.spec, &mut findings),
        Object::ProxyConfig(r) => proxy_config(&r.spec, &mut findings),
        Object::Telemetry(r) => {
            telemetry::preset(&r.meta, &mut findings);
            telemetry::check(&r.spec, &mut findings);
        }
        Object::MeshConfig(r) => mesh_config(&r.spec, &mut findings),
        Object::Service(r) => kube::service(&r.spec, &mut findings),
        Object::Pod(r) => kube::pod(&r.spec, &mut findings),
        Object::PodTemplate(r) => {
            kube::runs_as_proxy(&r.spec.spec, "spec.template.spec", &mut findings)
        }
        Object::Namespace(r) => {
            annotations::namespace(&r.meta.name, &r.meta.labels, &mut findings);
        }
        Object::GatewayClass(r) => gateway_api::class(&r.spec, &mut findings),
        Object::KubeGateway(r) => gateway_api::gateway(&r.spec, &mut findings),
        Object::ListenerSet(r) => gateway_api::listener_set(&r.spec, &mut findings),
        Object::HttpRoute(r) => gateway_api::http_route(&r.spec, &mut findings),
        Object::GrpcRoute(r) => gateway_api::grpc_route(&r.spec, &mut findings),
        Object::TlsRoute(r) => gateway_api::tls_route(&r.spec, &mut findings),
        Object::TcpRoute(r) => gateway_api::tcp_route(&r.spec, &mut findings),
        Object::UdpRoute(r) => gateway_api::udp_route(&r.spec, &mut findings),
        Object::BackendTlsPolicy(r) => gateway_api::backend_tls_policy(&r.spec, &mut findings),
        Object::ReferenceGrant(r) => gateway_api::reference_grant(&r.spec, &mut findings),
        Object::Endpoints(_)
        | Object::EndpointSlice(_)
        | Object::Secret(_)
        | Object::Node(_)
        | Object::ConfigMap(_)
        | Object::Ignored { .. } => {}
    }
}

/// Collects findings on one resource.
pub(crate) struct Findings<'a> {
    node: &'a Node,
    key: ResourceKey,
    origin: Origin,
    out: &'a mut Vec<Diagnostic>,
}

impl Findings<'_> {
    pub(crate) fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, code::SCHEMA, path.into(), message.into(), "");
    }

    pub(crate) fn error_with_help(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(Severity::Error, code::SCHEMA, path.into(), message.into(), help);
    }

    pub(crate) fn warn(
        &mut self,
        code: &'static str,
        path: impl Into<String>,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(Severity::Warning, code, path.into(), message.into(), help);
    }

    pub(crate) fn info(
        &mut self,
        code: &'static str,
        path: impl Into<String>,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(Severity::Info, code, path.into(), message.into(), help);
    }

    /// A finding of Istio's catalogue, at its level.
    pub(crate) fn report(
        &mut self,
        code: &'static str,
        path: impl Into<String>,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(code::severity(code), code, path.into(), message.into(), help);
    }

    /// Is an empty list written there? The API tells it from an absent one.
    pub(crate) fn is_empty_list(&self, path: &str) -> bool {
        matches!(self.node.at(path), Some(Node { value: Value::Seq(items), .. }) if items.is_empty())
    }

    fn push(
        &mut self,
        severity: Severity,
        code: &'static str,
        path: String,
        message: String,
        help: &str,
    ) {
        let line = self.node.line_of(&path);
        let found = Diagnostic::new(severity, code, &self.origin, path, message)
            .with_resource(self.key.clone())
            .with_line(line)
            .with_help(help);
        self.out.push(found);
    }
}

fn metadata(findings: &mut Findings<'_>) {
    let (kind, name) = (findings.key.kind, findings.key.name.clone());
    let namespace = findings.key.namespace.clone();
    let legal = match kind {
        Kind::Service | Kind::Namespace => text::is_label(&name),
        Kind::MeshConfig => true,
        // A generateName ends with a dash until the API server completes it.
        _ => text::is_subdomain(name.strip_suffix('-').unwrap_or(&name)),
    };
    if !legal {
        findings.error_with_help(
            "metadata.name",
            format!("{name:?} is not a legal name"),
            "Use lower-case letters, digits and dashes.",
        );
    }
    if !namespace.is_empty() && !text::is_label(&namespace) {
        let message = format!("{namespace:?} is not a legal namespace");
        findings.error("metadata.namespace", message);
    }
}

/// Why a setting of proxies does not reach them by configuration.
const FOR_STARTER: &str =
    "it is for whoever starts the proxy; give it the option or environment variable";

fn proxy_config(spec: &ProxyConfigResource, findings: &mut Findings<'_>) {
    if let Some(wanted) = &spec.selector {
        bounds::selector(&wanted.match_labels, 4096, "spec.selector.matchLabels", findings);
    }
    for (name, value) in &spec.environment_variables {
        let path = entry("spec.environmentVariables", name);
        bounds::length(value, 2048, path, findings);
    }
    match spec.concurrency {
        Some(workers) if workers < 0 => {
            let message = "expected a number of workers, 0 for one a processor";
            findings.error("spec.concurrency", message);
        }
        Some(_) => findings.info(code::NOT_IMPLEMENTED, "spec.concurrency", FOR_STARTER, ""),
        None => {}
    }
    if !spec.environment_variables.is_empty() {
        let path = "spec.environmentVariables";
        findings.info(code::NOT_IMPLEMENTED, path, FOR_STARTER, "");
    }
}

fn peer_authentication(spec: &PeerAuthentication, findings: &mut Findings<'_>) {
    if let Some(wanted) = &spec.selector {
        bounds::selector(&wanted.match_labels, 4096, "spec.selector.matchLabels", findings);
    }
    let selecting = spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selecting {
        findings.error_with_help(
            "spec.portLevelMtls",
            "port-level mTLS needs a selector",
            "Add spec.selector.matchLabels; ports belong to workloads.",
        );
    }
    for port in spec.port_level_mtls.keys() {
        if !port.parse::<u32>().is_ok_and(text::is_port) {
            let message = format!("{port:?} is not a port number");
            findings.error(entry("spec.portLevelMtls", port), message);
        }
    }
}

fn mesh_config(spec: &MeshConfig, findings: &mut Findings<'_>) {
    if !text::is_label(&spec.root_namespace) {
        let message = format!("{:?} is not a legal namespace", spec.root_namespace);
        findings.error("rootNamespace", message);
    }
    if spec.trust_domain.is_empty() || spec.trust_domain.contains(['/', ' ', ':']) {
        findings.error("trustDomain", format!("{:?} is not a trust domain", spec.trust_domain));
    }
    let sampling = spec.default_config.tracing.as_ref().and_then(|tracing| tracing.sampling);
    if sampling.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        findings.error("defaultConfig.tracing.sampling", "expected a percentage from 0 to 100");
    }
    proxy_settings(&spec.default_config, "defaultConfig", findings);
    for (field, tls) in [("meshMTLS", &spec.mesh_mtls), ("tlsDefaults", &spec.tls_defaults)] {
        if let Some(tls) = tls {
            mesh_tls(tls, field, findings);
        }
    }
    if spec.access_log_encoding == LogEncoding::Json
        && !spec.access_log_format.is_empty()
        && spec.json_access_log_format().is_none()
    {
        let message = "expected a JSON object, for accessLogEncoding is JSON";
        findings.error("accessLogFormat", message);
    }
    for (index, provider) in spec.extension_providers.iter().enumerate() {
        telemetry::provider(provider, &format!("extensionProviders[{index}]"), findings);
    }
}

/// What nobody speaks is left out; of the rest, what our own proxy does not speak.
fn mesh_tls(tls: &MeshTls, path: &str, findings: &mut Findings<'_>) {
    let MeshTls { min_protocol_version, ecdh_curves, cipher_suites } = tls;
    gateway::suites(cipher_suites, ecdh_curves, path, findings);
    let not_ours = |list: &[String], own: &[&str], known: fn(&str) -> bool| -> Vec<String> {
        let missing = list.iter().filter(|name| known(name) && !own.contains(&name.as_str()));
        missing.cloned().collect()
    };
    let ciphers = not_ours(cipher_suites, &OWN_CIPHERS, is_cipher);
    let curves = not_ours(ecdh_curves, &OWN_CURVES, |name| CURVES.contains(&name));
    for (field, missing) in [("cipherSuites", ciphers), ("ecdhCurves", curves)] {
        if !missing.is_empty() {
            let message = format!("our own proxy does not speak {}", missing.join(", "));
            findings.info(code::NOT_IMPLEMENTED, format!("{path}.{field}"), message, "");
        }
    }
    if matches!(min_protocol_version, TlsProtocol::V1_0 | TlsProtocol::V1_1) {
        let message = "our own proxy speaks TLS 1.2 and 1.3 only";
        findings.info(code::NOT_IMPLEMENTED, format!("{path}.minProtocolVersion"), message, "");
    }
}

/// Settings of proxies that are read and do not reach them.
fn proxy_settings(spec: &ProxyConfig, path: &str, findings: &mut Findings<'_>) {
    let headers = spec.proxy_headers.as_ref();
    let started = FOR_STARTER;
    let of_envoy = "only a stock Envoy acts on it";
    let unbuilt = [
        ("concurrency", spec.concurrency.is_some(), started),
        ("drainDuration", spec.drain_duration.is_some(), started),
        ("terminationDrainDuration", spec.termination_drain_duration.is_some(), started),
        (
            "holdApplicationUntilProxyStarts",
            spec.hold_application_until_proxy_starts.is_some(),
            "it is for injection",
        ),
        ("discoveryAddress", !spec.discovery_address.is_empty(), started),
        ("proxyMetadata", !spec.proxy_metadata.is_empty(), started),
        (
            "proxyHeaders.envoyDebugHeaders",
            headers.is_some_and(|headers| headers.envoy_debug_headers.is_some()),
            of_envoy,
        ),
        (
            "proxyHeaders.preserveHttp1HeaderCase",
            headers.is_some_and(|headers| headers.preserve_http1_header_case == Some(false)),
            of_envoy,
        ),
        (
            "proxyHeaders.metadataExchangeHeaders",
            headers.is_some_and(|headers| headers.metadata_exchange_headers.is_some()),
            "peers always tell each other who they are",
        ),
        (
            "proxyHeaders.xForwardedHost",
            headers.is_some_and(|headers| headers.x_forwarded_host.is_some()),
            "the header is not added",
        ),
    ];
    for (field, _, why) in unbuilt.into_iter().filter(|(_, set, _)| *set) {
        // A field of an annotation's text has no place of its own.
        let at =
            if path.starts_with("default") { format!("{path}.{field}") } else { path.to_owned() };
        findings.info(code::NOT_IMPLEMENTED, at, format!("{field} is not built yet: {why}"), "");
    }
}

/// The path of a map's entry; names that hold dots or slashes are bracketed and quoted.
pub(crate) fn entry(path: &str, name: &str) -> String {
    if name.contains(['.', '/']) { format!("{path}[{name:?}]") } else { format!("{path}.{name}") }
}

/// `exportTo` of any kind.
pub(crate) fn export_to(export_to: &[String], findings: &mut Findings<'_>) {
    for (index, to) in export_to.iter().enumerate() {
        let path = format!("spec.exportTo[{index}]");
        match to.as_str() {
            "." => {}
            "*" | "~" if export_to.len() == 1 => {}
            "*" | "~" => findings.error(path, format!("{to:?} must stand alone")),
            name if text::is_label(name) => {}
            name => findings.error_with_help(
                path,
                format!("{name:?} is not a namespace"),
                "Use a namespace, \".\" for this one, or \"*\" for all.",
            ),
        }
    }
}

/// A destination's or server's port.
pub(crate) fn port_number(number: u32, path: String, findings: &mut Findings<'_>) {
    if !text::is_port(number) {
        findings.error(path, format!("{number} is not a port number from 1 to 65535"));
    }
}
