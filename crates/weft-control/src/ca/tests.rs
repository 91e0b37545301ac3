use super::*;
use base64::Engine as _;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName, UnixTime};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tonic::{Code, Request};
use weft_xds::ca::{CertificateService as _, IstioCertificateRequest};
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use x509_parser::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

fn open() -> (TempDir, Authority, JoinKey) {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let authority = Authority::open(&ca, "cluster.local", Lifetimes::default()).unwrap();
    let join_key = JoinKey::open(&ca).unwrap();
    (dir, authority, join_key)
}

fn servicea() -> Identity {
    Identity::new("default", "servicea").unwrap()
}

fn csr(sans: Vec<SanType>) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The URI names of a certificate, and whether their extension is critical.
fn uris(der: &[u8]) -> (Vec<String>, bool) {
    let (_, cert) = parse_x509_certificate(der).unwrap();
    let san = cert.subject_alternative_name().unwrap().unwrap();
    let names = san.value.general_names.iter().map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("unexpected name {other:?}"),
    });
    (names.collect(), san.critical)
}

/// Verifies a chain as a TLS server would verify its client.
fn verify(root: &CertificateDer<'static>, leaf: &[u8], at: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let leaf = CertificateDer::from(leaf.to_vec());
    verifier.verify_client_cert(&leaf, &[], UnixTime::since_unix_epoch(at)).is_ok()
}

#[test]
fn files_are_private_and_survive_a_restart() {
    let (dir, authority, join_key) = open();
    let ca = dir.path().join("ca");
    assert_eq!(mode(&ca), 0o700);
    assert_eq!(mode(&ca.join("root.key")), 0o600);
    assert_eq!(mode(&ca.join("join.key")), 0o600);
    let again = Authority::open(&ca, "cluster.local", Lifetimes::default()).unwrap();
    assert_eq!(again.root_pem(), authority.root_pem());
    let now = SystemTime::now();
    let token = join_key.mint(&servicea(), HOUR, now);
    assert_eq!(JoinKey::open(&ca).unwrap().verify(&token, now), Ok(servicea()));
    let signed = again.sign(&servicea(), &csr(vec![]), None, now).unwrap();
    assert!(verify(&authority.root_der(), &signed.der, now));
    let left: Vec<_> = std::fs::read_dir(&ca).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn exposed_or_damaged_keys_are_refused() {
    let (dir, _, _) = open();
    let key = dir.path().join("ca/root.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let open = || Authority::open(&dir.path().join("ca"), "cluster.local", Lifetimes::default());
    let error = open().err().unwrap().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stranger = KeyPair::generate().unwrap();
    std::fs::write(&key, stranger.serialize_pem()).unwrap();
    assert!(matches!(open(), Err(CaError::Damaged { .. })));
    std::fs::write(&key, "nonsense").unwrap();
    assert!(matches!(open(), Err(CaError::Damaged { .. })));
}

#[test]
fn the_name_comes_from_the_identity_and_never_from_the_request() {
    let (_dir, authority, _) = open();
    let now = SystemTime::now();
    let foreign =
        SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap());
    let request = csr(vec![foreign, SanType::DnsName("admin.example".try_into().unwrap())]);
    let signed = authority.sign(&servicea(), &request, None, now).unwrap();
    let expected = vec!["spiffe://cluster.local/ns/default/sa/servicea".to_owned()];
    assert_eq!(uris(&signed.der), (expected, true));
    let (_, cert) = parse_x509_certificate(&signed.der).unwrap();
    assert!(!cert.is_ca());
    assert!(cert.subject().iter().next().is_none());
    assert!(verify(&authority.root_der(), &signed.der, now));
    assert!(!verify(&authority.root_der(), &signed.der, now + 25 * HOUR), "it ends");
    let (_other_dir, other, _) = open();
    assert!(!verify(&other.root_der(), &signed.der, now), "another root does not vouch");
}

#[test]
fn lifetimes_are_bounded_and_backdated() {
    let (_dir, authority, _) = open();
    let now = SystemTime::now();
    let life = |wish| {
        let signed = authority.sign(&servicea(), &csr(vec![]), wish, now).unwrap();
        assert!(verify(&authority.root_der(), &signed.der, now - Duration::from_secs(1)));
        signed.ends.duration_since(now).unwrap()
    };
    assert_eq!(life(None), 24 * HOUR);
    assert_eq!(life(Some(HOUR)), HOUR);
    assert_eq!(life(Some(1000 * HOUR)), 24 * HOUR);
    assert_eq!(life(Some(Duration::ZERO)), Duration::from_secs(10));
}

#[test]
fn renewal_is_spread_around_half_life() {
    let now = SystemTime::now();
    let ends = now + Duration::from_secs(100);
    assert_eq!(renew_at(now, ends, 0.0), now + Duration::from_secs(40));
    assert_eq!(renew_at(now, ends, 0.5), now + Duration::from_secs(50));
    assert_eq!(renew_at(now, ends, 7.0), now + Duration::from_secs(60));
}

#[test]
fn bad_requests_are_refused() {
    let (_dir, authority, _) = open();
    let good = csr(vec![]);
    // Flip a bit of the signature, which ends the structure.
    let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let tampered = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::engine::general_purpose::STANDARD.encode(der)
    );
    let huge = good.repeat(100);
    for (request, reason) in [
        (tampered.as_str(), "not signed"),
        ("", "PEM"),
        (huge.as_str(), "16 KiB"),
        (&*authority.root_pem(), "PEM block"),
    ] {
        let error = authority.sign(&servicea(), request, None, SystemTime::now()).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn names_that_could_change_a_spiffe_id_are_refused() {
    for (namespace, account) in
        [("default", "a/../b"), ("", "a"), ("Default", "a"), ("default", "a b"), ("a%2f", "b")]
    {
        assert!(Identity::new(namespace, account).is_err(), "{namespace}/{account}");
    }
}

#[test]
fn join_tokens_are_checked() {
    let (_dir, _, join_key) = open();
    let (_other_dir, _, other_key) = open();
    let now = SystemTime::now();
    let token = join_key.mint(&servicea(), HOUR, now);
    assert_eq!(join_key.verify(&token, now), Ok(servicea()));
    assert_eq!(join_key.verify(&token, now + 2 * HOUR), Err(TokenError::Expired));
    assert_eq!(other_key.verify(&token, now), Err(TokenError::Foreign));
    let mut parts: Vec<&str> = token.split('.').collect();
    let forged = other_key.mint(&Identity::new("kube-system", "admin").unwrap(), HOUR, now);
    parts[1] = forged.split('.').nth(1).unwrap();
    assert_eq!(join_key.verify(&parts.join("."), now), Err(TokenError::Foreign));
    for bad in ["", "a.b", "a.b.c", "..", &"x".repeat(5000)] {
        assert!(join_key.verify(bad, now).is_err(), "{bad}");
    }
}

async fn ask(
    issuer: &CertificateIssuer<impl Fn(&Proven) -> bool + Send + Sync + 'static>,
    authorization: Option<&str>,
) -> Result<Vec<String>, tonic::Status> {
    let message =
        IstioCertificateRequest { csr: csr(vec![]), validity_duration: 60, metadata: None };
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    issuer.create_certificate(request).await.map(|response| response.cert_chain)
}

#[tokio::test]
async fn only_known_workloads_with_our_token_get_a_certificate() {
    let (_dir, authority, join_key) = open();
    let now = SystemTime::now();
    let known = |proven: &Proven| proven.identity.service_account() == "servicea";
    let issuer = CertificateIssuer::new(authority.clone(), join_key.clone(), known);

    let token = format!("Bearer {}", join_key.mint(&servicea(), HOUR, now));
    let chain = ask(&issuer, Some(&token)).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], *authority.root_pem());
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    assert!(verify(&authority.root_der(), &leaf, now));

    let code = |result: Result<_, tonic::Status>| result.map(|_: Vec<String>| ()).unwrap_err();
    assert_eq!(code(ask(&issuer, None).await).code(), Code::Unauthenticated);
    assert_eq!(code(ask(&issuer, Some("Basic eA==")).await).code(), Code::Unauthenticated);
    let (_other_dir, _, other_key) = open();
    let foreign = format!("Bearer {}", other_key.mint(&servicea(), HOUR, now));
    let refused = code(ask(&issuer, Some(&foreign)).await);
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("weft token"), "{refused}");
    let stranger = Identity::new("default", "stranger").unwrap();
    let unknown = format!("bearer {}", join_key.mint(&stranger, HOUR, now));
    assert_eq!(code(ask(&issuer, Some(&unknown)).await).code(), Code::PermissionDenied);
}

#[test]
fn stream_secrets_rotate_at_half_life() {
    let (_dir, authority, _) = open();
    let now = SystemTime::now();
    let mut secrets = StreamSecrets::new(authority.clone(), servicea());
    let first = secrets.at(now, 0.5).unwrap().clone();
    assert_eq!(first.renew_at, now + 12 * HOUR);
    let same = secrets.at(now + 11 * HOUR, 0.5).unwrap().clone();
    assert_eq!(same.certificate.version, first.certificate.version);
    let second = secrets.at(now + 12 * HOUR, 0.5).unwrap().clone();
    assert_ne!(second.certificate.version, first.certificate.version);
    assert_eq!(second.root.version, first.root.version);

    let secret: Secret = second.certificate.decode().unwrap();
    assert_eq!(secret.name, "default");
    let Some(Type::TlsCertificate(tls)) = secret.r#type else { panic!("no certificate") };
    let pem = match tls.certificate_chain.unwrap().specifier.unwrap() {
        weft_xds::pb::envoy::config::core::v3::data_source::Specifier::InlineBytes(pem) => pem,
        other => panic!("{other:?}"),
    };
    let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
    assert!(verify(&authority.root_der(), &leaf, now + 13 * HOUR));
}

#[tokio::test]
async fn the_tls_port_is_trusted_by_the_root() {
    let (_dir, authority, _) = open();
    let config = server_config(
        authority.clone(),
        &["control.example".into()],
        &[std::net::Ipv4Addr::LOCALHOST.into()],
    )
    .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.root_der()).unwrap();
    let mut client =
        rustls::ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    for name in ["127.0.0.1", "localhost", "control.example"] {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
        let name = ServerName::try_from(name).unwrap();
        let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert!(server.is_ok());
    }
}

/// A CA certificate of this name, signed by another or by itself, with its key.
fn made_ca(
    name: &str,
    by: Option<&(rcgen::Issuer<'static, KeyPair>, String)>,
) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let certificate = match by {
        Some((issuer, _)) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    (certificate.pem(), key)
}

fn issuer_of(pem: &str, key: KeyPair) -> (rcgen::Issuer<'static, KeyPair>, String) {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    (rcgen::Issuer::from_ca_cert_der(&der, key).unwrap(), pem.to_owned())
}

#[test]
fn an_authority_that_is_plugged_in_signs_through_its_chain() {
    let (root, root_key) = made_ca("root", None);
    let (next_root, _) = made_ca("next root", None);
    let root_issuer = issuer_of(&root, root_key);
    let (middle, middle_key) = made_ca("middle", Some(&root_issuer));
    let key = middle_key.serialize_pem();
    let plugged = PluggedIn {
        certificate: middle.clone(),
        key,
        chain: format!("{middle}{root}"),
        roots: format!("{root}{next_root}"),
    };
    let open =
        |plugged: &PluggedIn| Authority::plugged(plugged, "cluster.local", Lifetimes::default());
    let authority = open(&plugged).unwrap();
    let now = SystemTime::now();
    let signed = authority.sign(&servicea(), &csr(Vec::new()), None, now).unwrap();
    assert_eq!(signed.chain.len(), 3, "leaf, intermediate, roots");
    let ders = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    };
    assert_eq!(ders(&signed.chain[1]), ders(&middle));
    let both = [ders(&root), ders(&next_root)].concat();
    assert_eq!(ders(&signed.chain[2]), both, "both roots are trusted while one replaces the other");

    let mut roots = RootCertStore::empty();
    roots.add(both[0].clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    verifier.verify_client_cert(&signed.der, &ders(&middle), now).unwrap();

    let says = |plugged: &PluggedIn, why: &str| {
        let error = open(plugged).err().expect("it does not hold together").to_string();
        assert!(error.contains(why), "{error}");
    };
    let (stranger, stranger_key) = made_ca("stranger", None);
    says(&PluggedIn { key: stranger_key.serialize_pem(), ..plugged.clone() }, "does not belong");
    let apart = PluggedIn { chain: String::new(), roots: stranger, ..plugged.clone() };
    says(&apart, "nothing that is trusted signed");
    says(&PluggedIn { roots: String::new(), ..plugged }, "");
}
