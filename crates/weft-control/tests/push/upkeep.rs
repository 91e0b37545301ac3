//! What the control plane keeps up to date in its cluster, and its authority while it is replaced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use weft_control::Handle;
use weft_control::kube::{Install, apply, manifests};
use weft_testkit::wait;
use weft_xds::pb::envoy::config::core::v3::DataSource;
use weft_xds::pb::envoy::config::core::v3::data_source::Specifier;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use crate::cluster::Cluster;
use crate::plane::LIMIT;
use crate::trust::{POD, known, proxy};

const ROOTS: &str = "istio-ca-root-cert";

fn roots_of(cluster: &Cluster, namespace: &str) -> Option<String> {
    let found = cluster.server().get("configmaps", namespace, ROOTS)?;
    found["data"]["root-cert.pem"].as_str().map(ToOwned::to_owned)
}

async fn until_roots(cluster: &Cluster, namespace: &str, pem: &str) {
    let what = format!("the roots in {namespace}");
    let there = || async { (roots_of(cluster, namespace)? == pem).then_some(()) };
    wait::until(&what, LIMIT, there).await;
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_namespace_has_the_roots_and_the_webhooks_their_certificates() {
    let cluster = Cluster::start().await;
    let all = manifests(&Install::default());
    apply(&cluster.client, &all, false).await.expect("it is applied");
    cluster.apply(&namespace("shop")).await;
    cluster.apply(&namespace("kube-system")).await;
    let plane = cluster.plane_called(Some("one")).await;
    until_roots(&cluster, "shop", &plane.root_pem).await;
    until_roots(&cluster, "istio-system", &plane.root_pem).await;

    let hooks = |plural: &str, name: &str| -> Vec<Value> {
        let found = cluster.server().get(plural, "", name).expect("it is there");
        found["webhooks"].as_array().expect("a list").clone()
    };
    let bundle = STANDARD.encode(&plane.root_pem);
    let kept = |plural: &'static str, name: &'static str| {
        let (bundle, hooks) = (bundle.clone(), &hooks);
        async move {
            wait::until("the certificates", LIMIT, || async {
                let all = hooks(plural, name);
                let has = |one: &Value| one["clientConfig"]["caBundle"] == bundle.as_str();
                (all.iter().all(has) && all[0]["failurePolicy"] == "Fail").then_some(all.len())
            })
            .await
        }
    };
    assert_eq!(kept("mutatingwebhookconfigurations", "istio-sidecar-injector").await, 4);
    assert_eq!(kept("validatingwebhookconfigurations", "istio-validator").await, 2);

    // What somebody changes or deletes comes back; new namespaces get it; an install on top too.
    let changed = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS, "namespace": "shop"},
        "data": {"root-cert.pem": "mine"},
    });
    cluster.server().apply(&changed);
    until_roots(&cluster, "shop", &plane.root_pem).await;
    cluster.server().delete(&changed);
    until_roots(&cluster, "shop", &plane.root_pem).await;
    cluster.apply(&namespace("later")).await;
    until_roots(&cluster, "later", &plane.root_pem).await;
    apply(&cluster.client, &all, false).await.expect("it is applied");
    kept("validatingwebhookconfigurations", "istio-validator").await;
    assert_eq!(roots_of(&cluster, "kube-system"), None);
    plane.stop().await;
}

/// An authority as operators plug it in, and its certificate.
fn cacerts() -> (Value, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("a certificate").pem();
    let encoded = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": "istio-system"},
        "data": {
            "ca-cert.pem": encoded(&root), "ca-key.pem": encoded(&key.serialize_pem()),
            "root-cert.pem": encoded(&root), "cert-chain.pem": "",
        },
    });
    (secret, root)
}

fn inline(source: Option<DataSource>) -> String {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.to_vec()).expect("PEM"),
        other => panic!("{other:?}"),
    }
}

/// DER of all certificates of a PEM text, as text.
fn certificates(pem: &str) -> Vec<String> {
    let parts = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let body = |part: &str| part.split("-----END").next().unwrap_or_default().to_owned();
    parts.map(|part| body(part).split_whitespace().collect()).collect()
}

fn refused(plane: &Handle) -> bool {
    let mut text = Vec::new();
    plane.metrics.render_prometheus(&mut text);
    String::from_utf8_lossy(&text).contains(r#"weft_ca_rotations_total{step="refused"} 1"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_trusted_before_it_signs() {
    let cluster = Cluster::start().await;
    let (first, first_root) = cacerts();
    cluster.server().apply(&first);
    cluster.apply(POD).await;
    cluster.apply(&namespace("default")).await;
    let plane = cluster.plane_called(Some("one")).await;
    tokio::time::timeout(LIMIT, plane.ready()).await.expect("the cluster is read");
    let mut web = proxy(&plane, "web-1", known(&cluster, "web", "web-1"));
    let roots = async |proxy: &mut crate::client::TestProxy| {
        let secret: tls::Secret = proxy.resource("ROOTCA").await.decode().expect("a secret");
        let Some(tls::secret::Type::ValidationContext(context)) = secret.r#type else { panic!() };
        certificates(&inline(context.trusted_ca))
    };
    assert_eq!(roots(&mut web).await, certificates(&first_root));

    // One that does not hold together changes nothing.
    let (mut broken, _) = cacerts();
    broken["data"]["ca-key.pem"] = first["data"]["ca-key.pem"].clone();
    cluster.server().apply(&broken);
    wait::until("the refusal", LIMIT, || async { refused(&plane).then_some(()) }).await;

    // The next one: trusted by push, also where it is mounted; the first stays trusted.
    let (second, second_root) = cacerts();
    cluster.server().apply(&second);
    let both = certificates(&format!("{second_root}{first_root}"));
    assert_eq!(roots(&mut web).await, both);
    wait::until("the roots in the namespace", LIMIT, || async {
        (certificates(&roots_of(&cluster, "default")?) == both).then_some(())
    })
    .await;

    // It signs when the grace is over.
    let issuer = wait::until("a certificate of the second", LIMIT, || async {
        let mut late = proxy(&plane, "web-1", known(&cluster, "web", "web-1"));
        let secret: tls::Secret = late.resource("default").await.decode().expect("a secret");
        let Some(tls::secret::Type::TlsCertificate(own)) = secret.r#type else { panic!() };
        let leaf = inline(own.certificate_chain);
        let signed = |root: &str| signed_by(&certificates(&leaf)[0], &certificates(root)[0]);
        assert!(signed(&first_root) || signed(&second_root));
        signed(&second_root).then_some(())
    });
    issuer.await;
    plane.stop().await;
}

fn signed_by(leaf: &str, root: &str) -> bool {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let der = |text: &str| STANDARD.decode(text).expect("base64");
    let (leaf, root) = (der(leaf), der(root));
    let (_, leaf) = X509Certificate::from_der(&leaf).expect("a certificate");
    let (_, root) = X509Certificate::from_der(&root).expect("a certificate");
    leaf.verify_signature(Some(root.public_key())).is_ok()
}
