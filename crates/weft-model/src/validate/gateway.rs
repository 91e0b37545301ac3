//! Gateway: servers, ports, hosts and their TLS.

use super::text::{is_host, is_ip, is_label};
use super::{Findings, bounds, port_number};
use crate::diagnostic::code;
use crate::snapshot::Protocol;
use crate::spec::{CURVES, Gateway, Port, Server, ServerTlsMode, ServerTlsSettings, is_cipher};

pub(super) fn check(spec: &Gateway, findings: &mut Findings<'_>) {
    if spec.servers.is_empty() {
        findings.error("spec.servers", "at least one server is required");
    }
    if spec.selector.is_empty() {
        findings.warn(
            code::SCHEMA_WARNING,
            "spec.selector",
            "without a selector the Gateway is served by every gateway proxy",
            "Set spec.selector, for example istio: ingressgateway.",
        );
    }
    for (index, server) in spec.servers.iter().enumerate() {
        check_server(server, &format!("spec.servers[{index}]"), findings);
        let name = |server: &Server| server.port.as_ref().map(|port| port.name.clone());
        let earlier = spec.servers[..index].iter().map(name);
        let mine = name(server).filter(|name| !name.is_empty());
        if mine.is_some() && earlier.into_iter().any(|other| other == mine) {
            let path = format!("spec.servers[{index}].port.name");
            findings.error(path, "port names must be unique within a Gateway");
        }
    }
}

fn check_server(server: &Server, path: &str, findings: &mut Findings<'_>) {
    if server.hosts.is_empty() {
        findings.error(format!("{path}.hosts"), "at least one host is required");
    }
    for (index, host) in server.hosts.iter().enumerate() {
        server_host(host, format!("{path}.hosts[{index}]"), findings);
    }
    if !server.bind.is_empty() && !server.bind.starts_with("unix://") && !is_ip(&server.bind) {
        findings.error(format!("{path}.bind"), format!("{:?} is not an address", server.bind));
    }
    let Some(port) = &server.port else {
        findings.error(format!("{path}.port"), "a port is required");
        return;
    };
    let protocol = check_port(port, &format!("{path}.port"), true, findings);
    let tls_path = format!("{path}.tls");
    if let Some(tls) = &server.tls {
        one_certificate(tls, &tls_path, findings);
    }
    match (&server.tls, protocol) {
        (None, Some(Protocol::Https | Protocol::Tls)) => {
            findings.error_with_help(
                tls_path,
                format!("TLS settings are required for {}", port.protocol),
                "Set tls.mode and a certificate.",
            );
        }
        (Some(tls), Some(protocol)) => {
            if !protocol.is_tls() && tls.mode != ServerTlsMode::Passthrough {
                findings.warn(
                    code::SCHEMA_WARNING,
                    format!("{tls_path}.mode"),
                    format!("TLS settings have no effect on protocol {}", port.protocol),
                    "Use HTTPS or TLS as the protocol.",
                );
            }
            if protocol.is_tls() && tls.https_redirect {
                let message = "a redirect to HTTPS belongs on an HTTP server";
                findings.error(format!("{tls_path}.httpsRedirect"), message);
            }
            if protocol.is_tls() {
                server_tls(tls, &tls_path, findings);
            }
        }
        (None, _) | (Some(_), None) => {}
    }
}

/// `host`, `ns/host`, `./host`, `*/host`.
fn server_host(host: &str, path: String, findings: &mut Findings<'_>) {
    let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
    if !matches!(namespace, "*" | ".") && !is_label(namespace) {
        findings.error(path, format!("{namespace:?} is not a namespace"));
    } else if !is_host(name) && !is_ip(name) {
        findings.error(path, format!("{name:?} is not a host"));
    }
}

/// A Gateway's or Sidecar listener's port; its protocol when that is a known one.
pub(super) fn check_port(
    port: &Port,
    path: &str,
    named: bool,
    findings: &mut Findings<'_>,
) -> Option<Protocol> {
    port_number(port.number, format!("{path}.number"), findings);
    if named && port.name.is_empty() {
        findings.error(format!("{path}.name"), "a port name is required");
    }
    if port.target_port.is_some() {
        findings.warn(
            code::DEPRECATED,
            format!("{path}.targetPort"),
            "targetPort is deprecated here and has no effect",
            "Remove it.",
        );
    }
    let protocol = Protocol::parse(&port.protocol);
    if protocol.is_none() {
        findings.error_with_help(
            format!("{path}.protocol"),
            format!("{:?} is not a protocol", port.protocol),
            "Use one of HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS.",
        );
    }
    protocol
}

/// A certificate is named in one way, and not too often.
pub(super) fn one_certificate(tls: &ServerTlsSettings, path: &str, findings: &mut Findings<'_>) {
    let ways = [
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ];
    let used: Vec<&str> = ways.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if let [first, second, ..] = used[..] {
        findings.error(path, format!("only one of {first} or {second} can be set"));
    }
    let lists = [
        ("credentialNames", tls.credential_names.len()),
        ("tlsCertificates", tls.tls_certificates.len()),
    ];
    for (field, length) in lists {
        let path = format!("{path}.{field}");
        if findings.is_empty_list(&path) {
            findings.error(&*path, "at least one is required");
        }
        bounds::count(length, 2, path, findings);
    }
}

/// Certificates must fit the mode.
pub(super) fn server_tls(tls: &ServerTlsSettings, path: &str, findings: &mut Findings<'_>) {
    let by_name = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    let by_list = !tls.tls_certificates.is_empty();
    let own = [("serverCertificate", &tls.server_certificate), ("privateKey", &tls.private_key)];
    match tls.mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {}
        ServerTlsMode::IstioMutual => {
            let files = own.iter().filter(|(_, value)| !value.is_empty());
            for (field, _) in files {
                let message = "certificates come from the mesh in mode ISTIO_MUTUAL";
                findings.error(format!("{path}.{field}"), message);
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            if !by_name && !by_list {
                for (field, value) in own {
                    if value.is_empty() {
                        findings.error_with_help(
                            format!("{path}.{field}"),
                            "a certificate and its key are required",
                            "Set serverCertificate and privateKey, or credentialName.",
                        );
                    }
                }
            }
            let verifies =
                matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
            let authority = by_name
                || !tls.ca_certificates.is_empty()
                || !tls.ca_cert_credential_name.is_empty();
            if verifies && !authority {
                let message = "client certificates are asked for, but nothing can verify them";
                findings.error(format!("{path}.caCertificates"), message);
            }
        }
    }
    suites(&tls.cipher_suites, &tls.ecdh_curves, path, findings);
    revocation(tls, path, findings);
    use crate::spec::TlsProtocol::Auto;
    let (min, max) = (tls.min_protocol_version, tls.max_protocol_version);
    if min != Auto && max != Auto && min > max {
        findings.error(format!("{path}.minProtocolVersion"), "it is above maxProtocolVersion");
    }
}

/// Names of ciphers and curves that nobody knows are left out, as Istio does.
pub(super) fn suites(
    ciphers: &[String],
    curves: &[String],
    path: &str,
    findings: &mut Findings<'_>,
) {
    let ciphers = ciphers.iter().filter(|name| !is_cipher(name));
    let curves = curves.iter().filter(|name| !CURVES.contains(&name.as_str()));
    let unknown =
        ciphers.map(|one| ("cipherSuites", one)).chain(curves.map(|one| ("ecdhCurves", one)));
    for (field, name) in unknown {
        let message = format!("{name:?} is not known; it is left out");
        let help = "Use the names of OpenSSL.";
        findings.warn(code::SCHEMA_WARNING, format!("{path}.{field}"), message, help);
    }
}

/// `caCrl` goes with `caCertificates`; a secret brings its own.
fn revocation(tls: &ServerTlsSettings, path: &str, findings: &mut Findings<'_>) {
    if tls.ca_crl.is_empty() {
        return;
    }
    let verifies = matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let by_secret = !tls.credential_name.is_empty()
        || !tls.credential_names.is_empty()
        || !tls.ca_cert_credential_name.is_empty();
    let message = match (verifies, by_secret) {
        (true, false) => return,
        (true, true) => "it has no effect: the roots are a secret's, whose ca.crl counts",
        (false, _) => "it has no effect: client certificates are not checked in this mode",
    };
    findings.warn(code::SCHEMA_WARNING, format!("{path}.caCrl"), message, "Remove it.");
}
