//! Injection from both ends: what the webhook patches is what `weft inject` prints.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use weft_testkit::client::{self, Connection, Wire};
use weft_testkit::process::Process;
use weft_testkit::{free_port, peer, wait};

use crate::harness::WEFT;

const SETTINGS: [&str; 3] =
    ["--image=registry.example/weft:9", "--cluster-id=c1", "--native-sidecars=false"];

struct Webhook {
    folder: tempfile::TempDir,
    address: SocketAddr,
    http: SocketAddr,
    _control: Process,
}

impl Webhook {
    async fn start() -> Webhook {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        let [http, address] = [0; 2].map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let mut args = vec![
            "control".to_owned(),
            format!("--config-dir={}", config.display()),
            format!("--state-dir={}", folder.path().join("state").display()),
            "--xds-address=127.0.0.1:0".to_owned(),
            "--xds-tls-address=127.0.0.1:0".to_owned(),
            format!("--http-address={http}"),
            format!("--webhook-address={address}"),
        ];
        args.extend(SETTINGS.map(str::to_owned));
        let mut control = Process::start("control", folder.path(), Path::new(WEFT), &args);
        wait::until("the control plane to be ready", Duration::from_secs(20), || {
            assert!(control.ended().is_none(), "weft control ended: {}", control.output());
            async move { client::get(http, "/ready", &[]).await.ok().filter(|r| r.status == 200) }
        })
        .await;
        Webhook { folder, address, http, _control: control }
    }

    /// Asks as an API server does: TLS, the mesh's root trusted, the Service's name.
    async fn ask(&self, path: &str, review: &Value) -> Value {
        let root = std::fs::read(self.folder.path().join("state/ca/root.pem")).expect("the root");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&root).expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(self.address).await.expect("it listens");
        let name = ServerName::try_from("istiod.istio-system.svc").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let mut connection = Connection::open(Wire::H1, stream.expect("a certificate of the mesh"))
            .await
            .expect("HTTP");
        let headers = [("host", "istiod.istio-system.svc"), ("content-type", "application/json")];
        let reply = connection
            .send(Method::POST, path, &headers, Bytes::from(review.to_string()))
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    async fn pod(&self, pod: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "1-2", "namespace": pod["metadata"]["namespace"], "operation": "CREATE",
                "object": pod},
        });
        let answer = self.ask("/inject", &review).await;
        assert_eq!(answer["response"]["uid"], "1-2");
        answer["response"].clone()
    }
}

/// What `weft inject` prints of an object, read back.
fn inject(object: &Value) -> Value {
    let mut child = Command::new(WEFT)
        .args(["inject", "-f", "-"])
        .args(SETTINGS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("weft starts");
    let input = object.to_string();
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    weft_model::yaml_documents(&text).expect("YAML").remove(0)
}

/// RFC 6902, as far as our patches use it.
fn patched(pod: &Value, response: &Value) -> Value {
    use base64::Engine as _;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = response["patch"].as_str().expect("a patch");
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).expect("base64");
    let patch: Value = serde_json::from_slice(&patch).expect("JSON");
    let mut pod = pod.clone();
    for operation in patch.as_array().expect("operations") {
        let path = operation["path"].as_str().expect("a path");
        let (parent, key) = path.rsplit_once('/').expect("never the whole pod");
        let key = key.replace("~1", "/").replace("~0", "~");
        let parent = pod.pointer_mut(parent).expect("a place").as_object_mut().expect("an object");
        match operation["op"].as_str() {
            Some("remove") => drop(parent.shift_remove(&key)),
            _ => drop(parent.insert(key, operation["value"].clone())),
        }
    }
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_patches_what_the_command_prints() {
    let Some(data) = peer::data("the_webhook_patches_what_the_command_prints") else { return };
    let webhook = Webhook::start().await;
    let mut pods = 0;
    for file in std::fs::read_dir(data.join("inject")).expect("a folder") {
        let path = file.expect("a folder").path();
        if path.extension().is_some_and(|end| end != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file");
        for object in weft_model::yaml_documents(&text).expect("YAML") {
            let template = object
                .pointer("/spec/template")
                .or(object.pointer("/spec/jobTemplate/spec/template"));
            let mut pod = template.expect("a template").clone();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["generateName"] = json!("p-");
            pod["metadata"]["namespace"] = json!("shop");
            let mut result = patched(&pod, &webhook.pod(&pod).await);
            result.sort_all_objects();
            assert_eq!(result.to_string(), inject(&pod).to_string(), "{}", path.display());
            // The API server asks again when another webhook changed the pod.
            let again = patched(&result, &webhook.pod(&result).await);
            assert_eq!(again, result, "{}", path.display());
            pods += 1;
        }
    }
    assert!(pods >= 12, "only {pods}");
    // No, never, and not like this.
    let mut pod = json!({"metadata": {"name": "a", "namespace": "shop", "labels": {"sidecar.istio.io/inject": "false"}}, "spec": {"containers": []}});
    assert_eq!(webhook.pod(&pod).await, json!({"uid": "1-2", "allowed": true}));
    pod["metadata"]["labels"] = json!({});
    pod["metadata"]["annotations"] =
        json!({"traffic.sidecar.istio.io/includeInboundPorts": "http"});
    let refused = webhook.pod(&pod).await;
    assert_eq!(refused["allowed"], false);
    let why = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(why.contains("includeInboundPorts") && why.contains("is no port"), "{why}");
    let metrics = client::get(webhook.http, "/metrics", &[]).await.expect("an answer").text();
    assert!(metrics.contains("sidecar_injection_skip_total 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_that_analyze_calls_wrong_is_not_admitted() {
    let webhook = Webhook::start().await;
    let review = |host: &str| {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "7", "namespace": "shop", "operation": "CREATE", "object": {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": {"name": "v", "namespace": "shop"},
                "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": "nobody"}}]}]},
            }},
        })
    };
    let answer = webhook.ask("/validate", &review("")).await["response"].clone();
    assert_eq!(answer["allowed"], false, "{answer}");
    assert!(answer["status"]["message"].to_string().contains("spec.hosts"), "{answer}");
    let answer = webhook.ask("/validate", &review("a")).await["response"].clone();
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(answer["warnings"].to_string().contains("nobody"), "{answer}");
}
