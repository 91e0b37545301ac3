//! Who gets secrets in a cluster: Pods, by the token their kubelet gave them.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use weft_control::Handle;
use weft_testkit::kube::{Fault, Token};
use weft_xds::ResourceType::Secret;
use weft_xds::connect::Target;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_xds::session::Mode;

use crate::client::{Behaviour, Seen, TestProxy, carries};
use crate::cluster::Cluster;

const OWN: &[&str] = &["default", "ROOTCA"];

pub const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}}
spec: {serviceAccountName: web, nodeName: n1}
status: {phase: Running, podIP: 10.9.0.1}
";

/// As a kubelet projects it; the API server knows it or does not.
fn token(name: &str, audience: &str) -> String {
    let end = SystemTime::now() + Duration::from_secs(3600);
    let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({"aud": [audience], "exp": end, "sub": name});
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}".to_owned()), part(claims.to_string()), part("x".to_owned()))
}

pub fn known(cluster: &Cluster, name: &str, pod: &str) -> String {
    let token = token(name, "istio-ca");
    let extra =
        |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), value.to_owned());
    cluster.server().know(Token {
        token: token.clone(),
        audiences: vec!["istio-ca".to_owned()],
        username: format!("system:serviceaccount:default:{name}"),
        extra: vec![extra("pod-name", pod), extra("node-name", "n1")],
    });
    token
}

pub fn proxy(plane: &Handle, name: &'static str, token: String) -> TestProxy {
    let target = Target::plain(format!("http://{}", plane.xds));
    let behaviour =
        Behaviour { token: Some(token), secrets: OWN, ..Behaviour::new(Mode::Delta, name) };
    TestProxy::start(target, behaviour)
}

async fn refused(proxy: &mut TestProxy) -> String {
    loop {
        match proxy.next().await {
            Seen::Disconnected(why) => return why,
            Seen::Connected => {}
            update => panic!("{update:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_proves_itself_by_its_token() {
    let cluster = Cluster::start().await;
    cluster.apply(POD).await;
    let plane = cluster.plane().await;
    let web = known(&cluster, "web", "web-1");
    proxy(&plane, "web-1", web.clone()).until(carries(Secret, "default")).await;

    // Somebody else's Pod, a Pod of another account, other audiences, what nobody knows.
    let mut other = proxy(&plane, "web-2", web.clone());
    let seen = other.until(|seen| matches!(seen, Seen::Disconnected(_))).await;
    assert!(format!("{seen:?}").contains("of Pod web-1"), "{seen:?}");
    let stranger = known(&cluster, "stranger", "web-1");
    let seen = proxy(&plane, "web-1", stranger).until(|s| matches!(s, Seen::Disconnected(_))).await;
    assert!(!seen.iter().any(carries(Secret, "default")), "{seen:?}");
    let why = refused(&mut proxy(&plane, "web-1", token("web", "api"))).await;
    assert!(why.contains("audience istio-ca"), "{why}");
    let why = refused(&mut proxy(&plane, "web-1", token("nobody", "istio-ca"))).await;
    assert!(why.contains("invalid bearer token"), "{why}");
    let why = refused(&mut proxy(&plane, "web-1", "no token".to_owned())).await;
    assert!(why.contains("JSON Web Token"), "{why}");

    // What was never asked about cannot be checked while the API server is away; what it said a
    // moment ago still holds.
    let late = known(&cluster, "late", "late-1");
    cluster.server().fail("tokenreviews", Fault::Status(503, None), usize::MAX);
    let why = refused(&mut proxy(&plane, "late-1", late.clone())).await;
    assert!(why.contains("cannot be checked now"), "{why}");
    proxy(&plane, "web-1", web).until(carries(Secret, "default")).await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_may_be_plugged_into_the_cluster() {
    let cluster = Cluster::start().await;
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("a certificate").pem();
    let encoded = |text: &str| STANDARD.encode(text);
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": "istio-system"},
        "data": {
            "ca-cert.pem": encoded(&root), "ca-key.pem": encoded(&key.serialize_pem()),
            "root-cert.pem": encoded(&root), "cert-chain.pem": "",
        },
    });
    cluster.server().apply(&secret);
    cluster.apply(POD).await;
    let plane = cluster.plane().await;
    let der = |pem: &str| pem.split_whitespace().collect::<String>();
    assert_eq!(der(&plane.root_pem), der(&root));
    assert!(
        plane.world.snapshot().secret("istio-system", "cacerts").is_none(),
        "its key is no resource"
    );
    let mut web = proxy(&plane, "web-1", known(&cluster, "web", "web-1"));
    let own: tls::Secret = web.resource("default").await.decode().expect("a secret");
    assert!(matches!(own.r#type, Some(tls::secret::Type::TlsCertificate(_))));
    plane.stop().await;

    // One that does not hold together is not replaced by one of ours.
    secret["data"]["ca-key.pem"] = encoded("none").into();
    cluster.server().apply(&secret);
    let error = cluster.failing_plane().await;
    assert!(error.contains("ca-key.pem"), "{error}");
}
