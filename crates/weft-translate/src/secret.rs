//! Credentials of gateways and of sidecars from Kubernetes secrets. The workload's own certificate and the mesh's
//! roots are the CA's business, never found here.

use std::sync::Arc;

use weft_model::{self as model, Kind, spec};
use weft_xds::Resource;
use weft_xds::names::{SECRET_CACERT_SUFFIX, SecretName};
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::build::inline_bytes;
use crate::scope::Scope;
use crate::view::ProxyKind;

/// Marks a credential that is a ConfigMap's.
const CONFIG_MAP: &str = "configmap:";
/// Keys of a certificate, a private key and roots, in Kubernetes' and in Istio's older spelling.
const CERTIFICATE: [&str; 2] = ["tls.crt", "cert"];
const PRIVATE_KEY: [&str; 2] = ["tls.key", "key"];
const ROOTS: [&str; 2] = ["ca.crt", "cacert"];
/// Key of the certificates that these roots took back.
const REVOKED: [&str; 2] = ["ca.crl", "crl"];

/// The secret of this SDS name, if it exists and this proxy may have it.
pub(crate) fn of_name(scope: &Scope<'_>, name: &str) -> Option<Resource> {
    let SecretName::Kubernetes { credential } = SecretName::parse(name)? else { return None };
    // A gateway serves credentials of its own namespace; a sidecar gets those that resources of its
    // namespace give its workload: it could otherwise ask for any key in the cluster.
    match scope.view.kind {
        ProxyKind::Gateway => {}
        ProxyKind::Sidecar if is_given(scope, credential) => {}
        ProxyKind::Sidecar | ProxyKind::Grpc => return None,
    }
    let (kind, credential) = match credential.strip_prefix(CONFIG_MAP) {
        Some(credential) => (Kind::ConfigMap, credential),
        None => (Kind::Secret, credential),
    };
    let (namespace, credential) =
        credential.split_once('/').unwrap_or((&scope.view.namespace, credential));
    if kind == Kind::ConfigMap || namespace != &*scope.view.namespace {
        return of_gateway_api(scope, name, kind, (namespace, credential));
    }
    let find = |name: &str| scope.snapshot.secret(namespace, name);
    let secret_type = match credential.strip_suffix(SECRET_CACERT_SUFFIX) {
        // Roots live in a secret of that very name, or beside the certificate.
        Some(base) => {
            let own = find(credential).and_then(|secret| roots(&secret.spec));
            own.or_else(|| find(base).and_then(|secret| roots(&secret.spec)))?
        }
        None => certificate(&find(credential)?.spec)?,
    };
    let secret = pb::Secret { name: name.to_owned(), r#type: Some(secret_type) };
    Some(Resource::new(name, &secret))
}

/// Whether a DestinationRule that selects this workload, or the Sidecar's ingress, names the
/// credential.
fn is_given(scope: &Scope<'_>, credential: &str) -> bool {
    let base = credential.strip_suffix(SECRET_CACERT_SUFFIX).unwrap_or(credential);
    let is_it = |name: &String| !name.is_empty() && (name == credential || name == base);
    let of_server = |tls: &spec::ServerTlsSettings| {
        is_it(&tls.credential_name)
            || tls.credential_names.iter().any(is_it)
            || is_it(&tls.ca_cert_credential_name)
    };
    let served = scope.sidecar.is_some_and(|sidecar| {
        sidecar.spec.ingress.iter().filter_map(|ingress| ingress.tls.as_ref()).any(of_server)
    });
    let selects = |rule: &&Arc<model::Resource<spec::DestinationRule>>| {
        rule.meta.namespace == scope.view.namespace
            && rule.spec.workload_selector.as_ref().is_some_and(|selector| {
                let labels = &scope.view.labels;
                selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
    };
    let of_client = |policy: &spec::TrafficPolicy| {
        let ports = policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref());
        policy.tls.iter().chain(ports).any(|tls| is_it(&tls.credential_name))
    };
    let mut rules = scope.snapshot.all_destination_rules().filter(selects);
    served
        || rules.any(|rule| {
            let subsets = rule.spec.subsets.iter().filter_map(|one| one.traffic_policy.as_ref());
            rule.spec.traffic_policy.iter().chain(subsets).any(of_client)
        })
}

/// What the Gateway API's Gateways of this proxy refer to: of their own namespace, or of one whose
/// ReferenceGrant lets them.
fn of_gateway_api(
    scope: &Scope<'_>,
    name: &str,
    kind: Kind,
    (namespace, credential): (&str, &str),
) -> Option<Resource> {
    let is_it = |(own, name): &(String, String), wanted: &str| own == namespace && name == wanted;
    let base = credential.strip_suffix(SECRET_CACERT_SUFFIX);
    let gateways = scope.served_gateways();
    let mut listeners = gateways.iter().flat_map(|gateway| &gateway.listeners);
    let secret_type = match base {
        Some(base)
            if listeners.any(|one| {
                one.client.as_ref().is_some_and(|client| {
                    client.roots == (kind, namespace.to_owned(), base.to_owned())
                })
            }) =>
        {
            roots_of(scope.snapshot.root_certificates(kind, namespace, base)?, None)
        }
        _ => {
            let mut served = gateways.iter().flat_map(|gateway| {
                let own = gateway.listeners.iter().flat_map(|one| one.certificates.clone());
                own.chain(gateway.client_certificate(scope.snapshot))
            });
            if kind != Kind::Secret || !served.any(|one| is_it(&one, credential)) {
                return None;
            }
            certificate(&scope.snapshot.secret(namespace, credential)?.spec)?
        }
    };
    let secret = pb::Secret { name: name.to_owned(), r#type: Some(secret_type) };
    Some(Resource::new(name, &secret))
}

fn value<'a>(secret: &'a spec::Secret, keys: &[&str]) -> Option<&'a Vec<u8>> {
    keys.iter().find_map(|key| secret.data.get(*key)).filter(|value| !value.is_empty())
}

fn certificate(secret: &spec::Secret) -> Option<pb::secret::Type> {
    Some(pb::secret::Type::TlsCertificate(pb::TlsCertificate {
        certificate_chain: Some(inline_bytes(value(secret, &CERTIFICATE)?.clone())),
        private_key: Some(inline_bytes(value(secret, &PRIVATE_KEY)?.clone())),
        ..Default::default()
    }))
}

fn roots(secret: &spec::Secret) -> Option<pb::secret::Type> {
    let revoked = value(secret, &REVOKED).cloned();
    Some(roots_of(value(secret, &ROOTS)?.clone(), revoked))
}

fn roots_of(pem: Vec<u8>, revoked: Option<Vec<u8>>) -> pb::secret::Type {
    pb::secret::Type::ValidationContext(pb::CertificateValidationContext {
        trusted_ca: Some(inline_bytes(pem)),
        crl: revoked.map(inline_bytes),
        ..Default::default()
    })
}
