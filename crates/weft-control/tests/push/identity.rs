//! Who gets secrets, and who gets nothing.

use std::time::Duration;

use weft_control::ca::Lifetimes;
use weft_control::status::Sync;
use weft_xds::ResourceType::{Cluster, Endpoint, Secret};
use weft_xds::connect::Target;
use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_xds::session::Mode;

use crate::client::{Behaviour, Seen, TestProxy, carries, removes};
use crate::plane::{Plane, cluster};

const OWN: &[&str] = &["default", "ROOTCA"];

fn with_token(plane: &Plane, name: &'static str, account: &str) -> Behaviour {
    let token = Some(plane.token(account));
    Behaviour { token, secrets: OWN, ..Behaviour::new(Mode::Delta, name) }
}

#[tokio::test]
async fn a_known_workload_gets_its_certificate() {
    let plane = Plane::start().await;
    let mut proxy = TestProxy::start(plane.target(), with_token(&plane, "a-1", "a"));
    let secret: tls::Secret = proxy.resource("default").await.decode().unwrap();
    assert!(matches!(secret.r#type, Some(tls::secret::Type::TlsCertificate(_))));
    proxy.until(carries(Secret, "default")).await;
    let status = plane.wait_for("sds", Sync::Synced).await;
    assert_eq!(status.identity.as_deref(), Some("default/a"));
}

#[tokio::test]
async fn sotw_gets_its_certificate_too() {
    let plane = Plane::start().await;
    let behaviour = Behaviour { mode: Mode::Sotw, ..with_token(&plane, "a-1", "a") };
    let mut proxy = TestProxy::start(plane.target(), behaviour);
    proxy.resource("ROOTCA").await;
    plane.wait_for("sds", Sync::Synced).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_on_its_stream() {
    let lifetimes = Lifetimes {
        default: Duration::from_secs(1),
        min: Duration::from_secs(1),
        max: Duration::from_secs(1),
    };
    let plane = Plane::with("", |config| config.lifetimes = lifetimes).await;
    let mut proxy = TestProxy::start(plane.target(), with_token(&plane, "a-1", "a"));
    let first = proxy.resource("default").await;
    let second = proxy.resource("default").await;
    assert_ne!(first.version, second.version);
    plane.wait_for("sds", Sync::Synced).await;
}

#[tokio::test]
async fn no_token_no_secret_but_configuration() {
    let plane = Plane::start().await;
    let behaviour = Behaviour { secrets: OWN, ..Behaviour::new(Mode::Delta, "a-1") };
    let mut proxy = TestProxy::start(plane.target(), behaviour);
    let seen = proxy.until(removes(Secret, "default")).await;
    assert!(!seen.iter().any(carries(Secret, "default")));
    assert!(seen.iter().any(carries(Cluster, &cluster("a", ""))));
}

#[tokio::test]
async fn claims_must_agree_with_the_token() {
    let plane = Plane::start().await;
    // The Pod a-1 runs as service account a.
    for (name, account) in [("a-1", "b"), ("a-1", "stranger")] {
        let mut proxy = TestProxy::start(plane.target(), with_token(&plane, name, account));
        let refused =
            |seen: &Seen| matches!(seen, Seen::Disconnected(why) if why.contains("token is for"));
        let seen = proxy.until(refused).await;
        assert!(!seen.iter().any(|seen| matches!(seen, Seen::Update { .. })), "{seen:?}");
    }
    let behaviour =
        Behaviour { token: Some("forged".into()), ..Behaviour::new(Mode::Delta, "a-1") };
    let mut proxy = TestProxy::start(plane.target(), behaviour);
    let seen = proxy.next().await;
    assert!(
        matches!(&seen, Seen::Disconnected(why) if why.contains("not a join token")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn an_unknown_identity_gets_no_certificate() {
    let plane = Plane::start().await;
    let mut proxy = TestProxy::start(plane.target(), with_token(&plane, "new-1", "stranger"));
    let seen = proxy.until(removes(Secret, "default")).await;
    assert!(!seen.iter().any(carries(Secret, "default")));
    // Once the mesh knows such a workload, the certificate comes by itself.
    plane.write("stranger.yaml", &crate::plane::pod("stranger", 1, true));
    plane.write(
        "service.yaml",
        "
apiVersion: v1
kind: Service
metadata: {name: stranger, namespace: default}
spec: {selector: {app: stranger}, ports: [{name: http, port: 80, targetPort: 8080}]}
",
    );
    proxy.until(carries(Secret, "default")).await;
}

#[tokio::test]
async fn tls_needs_the_root_and_a_token() {
    let plane = Plane::start().await;
    let address = format!("https://{}", plane.handle.xds_tls.unwrap());
    let target = Target::tls(address, plane.handle.root_pem.clone().into_bytes());
    let mut proxy = TestProxy::start(target.clone(), with_token(&plane, "a-1", "a"));
    proxy.until(carries(Endpoint, &cluster("a", ""))).await;
    let mut anonymous = TestProxy::start(target, Behaviour::new(Mode::Delta, "b-1"));
    let seen = anonymous.next().await;
    assert!(matches!(&seen, Seen::Disconnected(why) if why.contains("no join token")), "{seen:?}");
}
