//! The Gateway API's admission: the CRDs' structural schemas (`schema`, checked by `shape`), and
//! here their CEL rules, field against field. Beyond the CRDs only patterns are checked that no
//! proxy could run.

mod forms;
mod route;
mod schema;
mod shape;

use super::Findings;
use crate::spec::gateway_api as api;
use crate::yaml::Node;

pub(super) use route::{grpc_route, http_route, tcp_route, tls_route, udp_route};

/// Reports where the document's `spec` is not of the shape.
fn structure(shape: &shape::Shape, findings: &mut Findings<'_>) {
    let document: &Node = findings.node;
    match document.get("spec") {
        Some(spec) => shape::check(shape, spec, "spec", findings),
        None => findings.error("spec", "a required field is missing"),
    }
}

pub(super) fn class(_: &api::GatewayClass, findings: &mut Findings<'_>) {
    structure(&schema::GATEWAY_CLASS, findings);
}

pub(super) fn reference_grant(_: &api::ReferenceGrant, findings: &mut Findings<'_>) {
    structure(&schema::REFERENCE_GRANT, findings);
}

pub(super) fn listener_set(spec: &api::ListenerSet, findings: &mut Findings<'_>) {
    structure(&schema::LISTENER_SET, findings);
    listeners(&spec.listeners, findings);
}

pub(super) fn gateway(spec: &api::Gateway, findings: &mut Findings<'_>) {
    structure(&schema::GATEWAY, findings);
    listeners(&spec.listeners, findings);
    for (index, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        let named = matches!(address.address_type.as_str(), "Hostname" | "IPAddress");
        let same = |other: &api::GatewayAddress| other == address;
        if named && !address.value.is_empty() && spec.addresses[..index].iter().any(same) {
            findings.error(&*path, format!("the address {:?} is there twice", address.value));
        }
        if address.address_type == "Hostname"
            && !address.value.is_empty()
            && !forms::is_wildcard_dns(&address.value)
        {
            let message = format!("{:?} is not a DNS name", address.value);
            findings.error(format!("{path}.value"), message);
        }
    }
    for (infrastructure, field) in spec.infrastructure.iter().flat_map(|infrastructure| {
        [(&infrastructure.labels, "labels"), (&infrastructure.annotations, "annotations")]
    }) {
        for key in infrastructure.keys().filter(|key| !forms::is_key(key)) {
            let path = super::entry(&format!("spec.infrastructure.{field}"), key);
            findings.error(path, format!("{key:?} is not a legal key"));
        }
    }
}

fn listeners(listeners: &[api::Listener], findings: &mut Findings<'_>) {
    for (index, listener) in listeners.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        let protocol = listener.protocol.as_str();
        if matches!(protocol, "HTTP" | "TCP" | "UDP") && listener.tls.is_some() {
            findings.error_with_help(
                format!("{path}.tls"),
                format!("must not be set for protocol {protocol}"),
                "Use protocol HTTPS or TLS.",
            );
        }
        match &listener.tls {
            Some(tls) if protocol == "HTTPS" && tls.mode != api::TlsMode::Terminate => {
                let message = "must be Terminate for protocol HTTPS";
                findings.error_with_help(
                    format!("{path}.tls.mode"),
                    message,
                    "Use protocol TLS to pass TLS on.",
                );
            }
            Some(tls)
                if tls.mode == api::TlsMode::Terminate
                    && tls.certificate_refs.is_empty()
                    && tls.options.is_empty() =>
            {
                let message = "certificateRefs or options must be set for mode Terminate";
                findings.error(format!("{path}.tls.certificateRefs"), message);
            }
            None if protocol == "TLS" => {
                findings.error(format!("{path}.tls.mode"), "must be set for protocol TLS");
            }
            _ => {}
        }
        if matches!(protocol, "TCP" | "UDP") && listener.hostname.is_some() {
            let message = format!("must not be set for protocol {protocol}");
            findings.error(format!("{path}.hostname"), message);
        }
        let same = |other: &api::Listener| {
            other.port == listener.port
                && other.protocol == listener.protocol
                && other.hostname == listener.hostname
        };
        if listeners[..index].iter().any(same) {
            let message = "another listener has this port, protocol and hostname";
            findings.error(path, message);
        }
    }
}

pub(super) fn backend_tls_policy(spec: &api::BackendTlsPolicy, findings: &mut Findings<'_>) {
    structure(&schema::BACKEND_TLS_POLICY, findings);
    for (index, target) in spec.target_refs.iter().enumerate() {
        let same = |other: &&api::PolicyTarget| {
            (&other.group, &other.kind, &other.name) == (&target.group, &target.kind, &target.name)
        };
        for other in spec.target_refs[..index].iter().filter(same) {
            section_names(
                &other.section_name,
                &target.section_name,
                &format!("spec.targetRefs[{index}].sectionName"),
                findings,
            );
        }
    }
    let validation = &spec.validation;
    match (validation.ca_certificate_refs.is_empty(), &*validation.well_known_ca_certificates) {
        (true, "") => findings.error(
            "spec.validation",
            "either caCertificateRefs or wellKnownCACertificates must be set",
        ),
        (false, known) if !known.is_empty() => findings.error(
            "spec.validation",
            "only one of caCertificateRefs and wellKnownCACertificates may be set",
        ),
        _ => {}
    }
    for (index, name) in validation.subject_alt_names.iter().enumerate() {
        let path = format!("spec.validation.subjectAltNames[{index}]");
        for (kind, value, field) in
            [("Hostname", &name.hostname, "hostname"), ("URI", &name.uri, "uri")]
        {
            one_of(name.name_type == kind, !value.is_empty(), kind, &path, field, findings);
        }
    }
}

/// Two references to one object need section names, and different ones.
fn section_names(
    first: &Option<String>,
    second: &Option<String>,
    path: &str,
    findings: &mut Findings<'_>,
) {
    match (first.as_deref().unwrap_or_default(), second.as_deref().unwrap_or_default()) {
        ("", "") => findings.error(path, "the same object is referred to twice"),
        ("", _) | (_, "") => findings.error(
            path,
            "must be set everywhere when the same object is referred to more than once",
        ),
        (first, second) if first == second => {
            findings.error(path, format!("{second:?} is referred to twice"));
        }
        _ => {}
    }
}

/// A field that exists exactly for one `type`.
fn one_of(
    wanted: bool,
    given: bool,
    kind: &str,
    path: &str,
    field: &str,
    findings: &mut Findings<'_>,
) {
    match (wanted, given) {
        (true, false) => {
            findings.error(format!("{path}.{field}"), format!("required by type {kind}"))
        }
        (false, true) => {
            findings.error(format!("{path}.{field}"), format!("only for type {kind}"));
        }
        (true, true) | (false, false) => {}
    }
}
