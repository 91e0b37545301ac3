//! How a client connects: plaintext, mutual TLS inside the mesh, or TLS the rule asks for.

use weft_model::MeshService;
use weft_model::gateway_api::BackendTls;
use weft_model::spec::gateway_api::SubjectAltName;
use weft_model::spec::{ClientTlsMode, ClientTlsSettings, ProxyProtocolVersion};
use weft_xds::names;
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use weft_xds::pb::envoy::config::core::v3::transport_socket::ConfigType;
use weft_xds::pb::envoy::config::core::v3::{
    ProxyProtocolConfig, TransportSocket, proxy_protocol_config,
};
use weft_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;

use super::{Upstream, limits};
use crate::build::tls::{
    Certificate, MESH_ROOTS, Trust, WORKLOAD_CERT, raw_buffer, upstream, upstream_of_provider,
    upstream_unverified,
};
use crate::build::{any, structure, text};
use crate::scope::Scope;
use crate::view::{Flavor, ProxyKind};

/// Stock Envoy cannot ask for "the system's roots", only for a file; this is where Debian, Ubuntu
/// and Alpine (hence Envoy's and Istio's images) keep them.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The part of a cluster's identity that TLS needs.
pub(crate) struct Target<'a> {
    pub(crate) service: &'a MeshService,
    pub(crate) port: u16,
    pub(crate) subset: &'a str,
    pub(crate) upstream: Upstream,
    /// The rule names workloads: Istio lets only such a rule give sidecars credentials.
    pub(crate) selective: bool,
}

/// Sets the cluster's transport sockets.
pub(crate) fn apply(
    scope: &Scope<'_>,
    cluster: &mut Cluster,
    target: &Target<'_>,
    settings: Option<&ClientTlsSettings>,
) {
    let policy = scope.snapshot.backend_tls(target.service, target.port);
    match settings {
        // A DestinationRule that speaks of TLS is the client's own word, and stands before it.
        None if policy.is_some() => {
            let policy = policy.as_ref();
            cluster.transport_socket = policy.map(|policy| of_policy(scope, target, policy));
        }
        None if cluster.eds_cluster_config.is_some() && is_automatic(scope, target.service) => {
            cluster.transport_socket_matches = automatic(scope, target);
        }
        None => {}
        Some(settings) => {
            cluster.transport_socket = explicit(scope, target, settings);
            if target.service.host.starts_with('*') {
                limits::name_by_request(
                    cluster,
                    settings.sni.is_empty(),
                    names_by_request(settings),
                );
            }
        }
    }
}

/// Whether the name that TLS asks for, and the certificate must have, is the request's: that of a
/// wildcard service is nobody's.
pub(crate) fn names_by_request(settings: &ClientTlsSettings) -> bool {
    matches!(settings.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
        && settings.sni.is_empty()
        && settings.insecure_skip_verify != Some(true)
}

/// The PROXY protocol header goes out before anything else, TLS included, on every socket.
pub(crate) fn announce_client(cluster: &mut Cluster, version: ProxyProtocolVersion) {
    let around = |inner: Option<TransportSocket>| {
        let version = match version {
            ProxyProtocolVersion::V1 => proxy_protocol_config::Version::V1,
            ProxyProtocolVersion::V2 => proxy_protocol_config::Version::V2,
        };
        let message = ProxyProtocolUpstreamTransport {
            config: Some(ProxyProtocolConfig { version: version as i32, ..Default::default() }),
            transport_socket: Some(inner.unwrap_or_else(raw_buffer)),
            ..Default::default()
        };
        Some(TransportSocket {
            name: "envoy.transport_sockets.upstream_proxy_protocol".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any(&message))),
        })
    };
    for one in &mut cluster.transport_socket_matches {
        one.transport_socket = around(one.transport_socket.take());
    }
    if cluster.transport_socket_matches.is_empty() || cluster.transport_socket.is_some() {
        cluster.transport_socket = around(cluster.transport_socket.take());
    }
}

/// Mutual TLS by endpoint: only inside the mesh. (And only where endpoints are known one by one:
/// Envoy 1.40 crashes on socket matches in a cluster of original destinations.)
fn is_automatic(scope: &Scope<'_>, service: &MeshService) -> bool {
    scope.snapshot.mesh().enable_auto_mtls && !service.mesh_external
}

fn automatic(scope: &Scope<'_>, target: &Target<'_>) -> Vec<TransportSocketMatch> {
    let mesh = mutual(scope, target, &[], "");
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(structure([("tlsMode", text("istio"))])),
            transport_socket: Some(mesh),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(structure([])),
            transport_socket: Some(raw_buffer()),
        },
    ]
}

/// The mesh's own mutual TLS. Without `names` the service's accounts are what is accepted.
fn mutual(scope: &Scope<'_>, target: &Target<'_>, names: &[String], sni: &str) -> TransportSocket {
    let names = match names {
        [] => scope.identities(target.service),
        given => given.to_vec(),
    };
    let own_sni = names::outbound_sni(target.port, target.subset, &target.service.host);
    let alpn: &[&str] = match target.upstream {
        Upstream::Http2 => &["istio", "h2"],
        Upstream::Tcp | Upstream::Http1 | Upstream::AsClient => &["istio"],
    };
    upstream(
        Some(&Certificate::Sds(WORKLOAD_CERT.to_owned())),
        &Trust::Sds { roots: MESH_ROOTS.to_owned(), names },
        if sni.is_empty() { &own_sni } else { sni },
        alpn,
        &scope.mesh_suites(),
    )
}

/// gRPC's client: the mesh's mutual TLS when a rule says so, else plaintext; it can choose neither
/// by endpoint nor by SDS secret.
pub(crate) fn for_grpc(
    scope: &Scope<'_>,
    service: &MeshService,
    settings: Option<&ClientTlsSettings>,
) -> Option<TransportSocket> {
    let settings = settings.filter(|settings| settings.mode == ClientTlsMode::IstioMutual)?;
    let names = match settings.subject_alt_names.as_slice() {
        [] => scope.identities(service),
        given => given.to_vec(),
    };
    Some(upstream_of_provider(&names))
}

fn explicit(
    scope: &Scope<'_>,
    target: &Target<'_>,
    settings: &ClientTlsSettings,
) -> Option<TransportSocket> {
    // As in Istio, where it would otherwise hold up every sidecar that may not have the secret.
    if scope.view.kind != ProxyKind::Gateway && !target.selective && names_credential(settings) {
        return None;
    }
    let certificate = match settings.mode {
        ClientTlsMode::Disable => return None,
        ClientTlsMode::IstioMutual => {
            return Some(mutual(scope, target, &settings.subject_alt_names, &settings.sni));
        }
        ClientTlsMode::Simple => None,
        ClientTlsMode::Mutual => Some(client_certificate(scope, settings)),
    };
    let sni = match settings.sni.as_str() {
        "" if !target.service.host.starts_with('*') => &*target.service.host,
        given => given,
    };
    let alpn: &[&str] = if target.upstream == Upstream::Http2 { &["h2"] } else { &[] };
    let suites = scope.default_suites();
    if settings.insecure_skip_verify == Some(true) {
        return Some(upstream_unverified(certificate.as_ref(), sni, alpn, &suites));
    }
    let trust = trust(scope, target, settings, sni);
    Some(upstream(certificate.as_ref(), &trust, sni, alpn, &suites))
}

/// Whether certificates or roots are a secret's.
pub(crate) fn names_credential(settings: &ClientTlsSettings) -> bool {
    matches!(settings.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
        && !settings.credential_name.is_empty()
}

/// TLS as a BackendTLSPolicy of the Gateway API wants it.
fn of_policy(scope: &Scope<'_>, target: &Target<'_>, policy: &BackendTls<'_>) -> TransportSocket {
    let validation = &policy.policy.spec.validation;
    let own = |name: &SubjectAltName| match name.name_type.as_str() {
        "URI" => name.uri.clone(),
        _ => name.hostname.clone(),
    };
    let mut names: Vec<String> = validation.subject_alt_names.iter().map(own).collect();
    if names.is_empty() {
        names.push(validation.hostname.clone());
    }
    let trust = match (&policy.roots, scope.view.flavor) {
        // Nobody can be trusted: a name that no certificate has.
        _ if policy.broken => return untrusting(scope, &validation.hostname),
        (Some(roots), _) => Trust::Inline { roots: roots.clone(), names },
        (None, Flavor::Envoy) => Trust::File { roots: SYSTEM_ROOTS.to_owned(), names, crl: None },
        (None, Flavor::Weft | Flavor::Grpc) => Trust::System { names, crl: None },
    };
    let certificate = scope
        .client_certificate()
        .map(|(namespace, name)| Certificate::Sds(kubernetes(&format!("{namespace}/{name}"))));
    let alpn: &[&str] = if target.upstream == Upstream::Http2 { &["h2"] } else { &[] };
    upstream(certificate.as_ref(), &trust, &validation.hostname, alpn, &scope.default_suites())
}

/// TLS that always fails, so that requests get 503 as the API asks, and never go out in plain.
fn untrusting(scope: &Scope<'_>, sni: &str) -> TransportSocket {
    let names = vec!["no-valid-ca-certificate.gateway-api.invalid".to_owned()];
    let trust = match scope.view.flavor {
        Flavor::Envoy => Trust::File { roots: SYSTEM_ROOTS.to_owned(), names, crl: None },
        Flavor::Weft | Flavor::Grpc => Trust::System { names, crl: None },
    };
    upstream(None, &trust, sni, &[], &scope.default_suites())
}

fn client_certificate(scope: &Scope<'_>, settings: &ClientTlsSettings) -> Certificate {
    if !settings.credential_name.is_empty() {
        return Certificate::Sds(kubernetes(&settings.credential_name));
    }
    let (chain, key) = (settings.client_certificate.clone(), settings.private_key.clone());
    match scope.view.flavor {
        Flavor::Weft => {
            Certificate::Sds(names::SecretName::File { certificate: &chain, key: &key }.to_string())
        }
        Flavor::Envoy | Flavor::Grpc => Certificate::Files { chain, key },
    }
}

/// Roots: the credential's, a file's, or the system's. The server must carry one of the given
/// names, else of its ServiceEntry's, else the one asked for in SNI.
fn trust(scope: &Scope<'_>, target: &Target<'_>, settings: &ClientTlsSettings, sni: &str) -> Trust {
    let of_entry = &target.service.subject_alt_names;
    let names = match (settings.subject_alt_names.as_slice(), of_entry.as_slice()) {
        ([], []) if sni.is_empty() => Vec::new(),
        ([], []) => vec![sni.to_owned()],
        ([], of_entry) => of_entry.to_vec(),
        (given, _) => given.to_vec(),
    };
    if !settings.credential_name.is_empty() {
        let roots =
            format!("{}{}", kubernetes(&settings.credential_name), names::SECRET_CACERT_SUFFIX);
        return Trust::Sds { roots, names };
    }
    let crl = (!settings.ca_crl.is_empty()).then(|| settings.ca_crl.clone());
    match (settings.ca_certificates.as_str(), scope.view.flavor) {
        ("" | "system", Flavor::Envoy) => {
            Trust::File { roots: SYSTEM_ROOTS.to_owned(), names, crl }
        }
        ("" | "system", Flavor::Weft | Flavor::Grpc) => Trust::System { names, crl },
        (path, Flavor::Weft) if settings.ca_crl.is_empty() => Trust::Sds {
            roots: names::SecretName::FileRoot { certificate: path }.to_string(),
            names,
        },
        (path, _) => Trust::File { roots: path.to_owned(), names, crl },
    }
}

/// SDS name of a Kubernetes secret.
fn kubernetes(credential: &str) -> String {
    names::SecretName::Kubernetes { credential }.to_string()
}
