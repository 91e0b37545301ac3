//! TLS: identities from the CA, mutual TLS between two proxies, the ALPN trap, rotation.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::tls::verify::{Expected, UpstreamVerifier};
use weft_xds::ResourceType::{Cluster, Listener, Secret};

use crate::control::Control;
use crate::rig::*;

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// A client that trusts anybody and has no certificate.
pub fn any_server_config(alpn: &[&str]) -> Arc<rustls::ClientConfig> {
    Arc::new(client_config(alpn, None))
}

fn client_config(alpn: &[&str], identity: Option<(String, String)>) -> rustls::ClientConfig {
    use rustls::pki_types::pem::PemObject;
    let builder = rustls::ClientConfig::builder_with_provider(weft_proxy::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(UpstreamVerifier::new(
            None,
            Expected::default(),
        )));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = rustls::pki_types::CertificateDer::pem_slice_iter(chain.as_bytes());
            let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

type TlsStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn tls_connect(
    to: std::net::SocketAddr,
    config: rustls::ClientConfig,
) -> std::io::Result<TlsStream> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "server.example".try_into().unwrap();
    let mut stream = connector.connect(name, connect(to).await).await?;
    // TLS 1.3 clients learn of a refused certificate with the first read.
    stream.flush().await?;
    Ok(stream)
}

fn permissive_inbound(cluster: &str) -> serde_json::Value {
    json!({
        "name": "in",
        "address": any_port(),
        "traffic_direction": "INBOUND",
        "listener_filters": [inspector("tls_inspector", "TlsInspector")],
        "filter_chains": [
            {
                "filter_chain_match": { "transport_protocol": "tls", "application_protocols": ["istio", "istio-h2", "h2-mesh"] },
                "transport_socket": mtls_server(&["h2", "http/1.1"]),
                "filters": [tcp_proxy(cluster)],
            },
            {
                "filter_chain_match": { "transport_protocol": "raw_buffer" },
                "filters": [tcp_proxy(cluster)],
            },
        ],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_speak_mutual_tls_and_check_names() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("inbound|80||", &[backend]));
    control.set(Listener, permissive_inbound("inbound|80||"));
    let server_dir = dir.path().join("server");
    let server = start(&Wish {
        xds: control.address,
        account: Some("server"),
        dir: Some(&server_dir),
        extra: &[],
    });
    server.ready().await;
    let inbound = server.listener("in").await;

    let callers = tokio::task::block_in_place(|| Control::with_ca(0, control.ca.clone()));
    for (name, expect) in [("good", SERVER), ("bad", "spiffe://cluster.local/ns/default/sa/other")]
    {
        let mut cluster = static_cluster(name, &[inbound]);
        cluster["transport_socket"] = mtls_client(expect);
        callers.set(Cluster, cluster);
        callers.set(Listener, tcp_listener(name, name));
    }
    let client_dir = dir.path().join("client");
    let client = start(&Wish {
        xds: callers.address,
        account: Some("client"),
        dir: Some(&client_dir),
        extra: &[],
    });
    client.ready().await;

    let mut stream = connect(client.listener("good").await).await;
    assert_eq!(greeting(&mut stream).await.unwrap(), "app");
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "end 1\n", "half-close crosses TLS both ways");

    let mut stream = connect(client.listener("bad").await).await;
    assert!(greeting(&mut stream).await.is_err(), "the server is not who was expected");

    server.shows("/stats/prometheus", "connection_security_policy=\"mutual_tls\"").await;
    let metrics = server.page("/stats/prometheus").await;
    let principal = "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"";
    assert!(metrics.contains(principal), "{metrics}");
    assert!(client.page("/stats/prometheus").await.contains("response_flags=\"UF\""));
    assert!(server.page("/certs").await.contains(SERVER));
    for control in [control, callers] {
        tokio::task::block_in_place(|| control.kill());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_alpn_without_overlap_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("inbound|80||", &[backend]));
    control.set(Listener, permissive_inbound("inbound|80||"));
    let server = start(&Wish {
        xds: control.address,
        account: Some("server"),
        dir: Some(dir.path()),
        extra: &[],
    });
    server.ready().await;
    let inbound = server.listener("in").await;
    let friend = control.ca.issue(&["spiffe://cluster.local/ns/default/sa/friend"]);
    let foreigner = control.ca.issue(&["spiffe://elsewhere/ns/default/sa/friend"]);
    let unknown_root = crate::control::Authority::new("other root")
        .issue(&["spiffe://cluster.local/ns/default/sa/friend"]);

    // Our server speaks h2 and http/1.1; an Istio client may offer `istio` alone.
    let mut stream =
        tls_connect(inbound, client_config(&["istio"], Some(friend.clone()))).await.unwrap();
    assert_eq!(greeting(&mut stream).await.unwrap(), "app");
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    let mut stream =
        tls_connect(inbound, client_config(&["istio", "h2"], Some(friend))).await.unwrap();
    assert_eq!(greeting(&mut stream).await.unwrap(), "app");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    for (who, identity) in [
        ("foreign domain", Some(foreigner)),
        ("foreign root", Some(unknown_root)),
        ("nobody", None),
    ] {
        let refused = match tls_connect(inbound, client_config(&["istio"], identity)).await {
            Err(_) => true,
            Ok(mut stream) => greeting(&mut stream).await.is_err(),
        };
        assert!(refused, "{who} must not be served");
    }
    // PERMISSIVE: plain text is served; TLS that is not the mesh's has no chain here.
    let mut stream = connect(inbound).await;
    stream.write_all(b"plain").await.unwrap();
    assert_eq!(greeting(&mut stream).await.unwrap(), "app");
    assert!(tls_connect(inbound, client_config(&["http/1.1"], None)).await.is_err());
    tokio::task::block_in_place(|| control.kill());
}

/// A certificate for some names, to be pushed.
pub fn site_secret(control: &Control, names: &[&str]) -> serde_json::Value {
    let (chain, key) = control.ca.issue(names);
    json!({
        "name": "kubernetes://shop",
        "tls_certificate": {
            "certificate_chain": { "inline_string": chain },
            "private_key": { "inline_string": key },
        },
    })
}

/// Transport socket of a server with that certificate.
pub fn site_tls(alpn: &[&str]) -> serde_json::Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": alpn,
                "tls_certificate_sds_secret_configs": [{
                    "name": "kubernetes://shop",
                    "sds_config": { "ads": {}, "resource_api_version": "V3" },
                }],
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pushed_certificate_serves_by_name_and_is_replaced_for_new_handshakes() {
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    let secret = |names: &[&str]| site_secret(&control, names);
    control.set(Secret, secret(&["first.example"]));
    control.set(Cluster, static_cluster("c", &[backend]));
    let mut listener = tcp_listener("l", "c");
    listener["filter_chains"][0]["transport_socket"] = site_tls(&[]);
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let mut old = tls_connect(address, client_config(&[], None)).await.unwrap();
    assert_eq!(greeting(&mut old).await.unwrap(), "app");
    let shown = |stream: &TlsStream| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();

    control.set(Secret, secret(&["second.example"]));
    proxy.shows("/certs", "second.example").await;
    let new = tls_connect(address, client_config(&[], None)).await.unwrap();
    assert_ne!(shown(&old), shown(&new));
    old.write_all(b"y").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'y', "old connections stay");

    let dump = proxy.page("/config_dump").await;
    assert!(dump.contains("kubernetes://shop") && dump.contains("[redacted]"), "{dump}");
    assert!(!dump.contains("PRIVATE KEY"), "{dump}");

    // A bad certificate is refused and the good one stays.
    let mut bad = secret(&["third.example"]);
    bad["tls_certificate"]["private_key"]["inline_string"] = json!("nonsense");
    control.set(Secret, bad);
    let reason = control.refusal(Secret).await;
    assert!(reason.contains("kubernetes://shop") && reason.contains("private key"), "{reason}");
    let still = tls_connect(address, client_config(&[], None)).await.unwrap();
    assert_eq!(shown(&still), shown(&new));
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_lived_identity_is_renewed_under_open_connections() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend("app").await;
    let ca = Arc::new(crate::control::Authority::with_validity("short", 4));
    let control = tokio::task::block_in_place(|| Control::with_ca(0, ca.clone()));
    control.set(Cluster, static_cluster("inbound|80||", &[backend]));
    control.set(Listener, permissive_inbound("inbound|80||"));
    let account = Some("server");
    let server = start(&Wish { xds: control.address, account, dir: Some(dir.path()), extra: &[] });
    server.ready().await;
    let inbound = server.listener("in").await;
    let friend = || Some(ca.issue(&["spiffe://cluster.local/ns/default/sa/friend"]));
    let shown = |stream: &TlsStream| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let mut old = tls_connect(inbound, client_config(&["istio"], friend())).await.unwrap();
    assert_eq!(greeting(&mut old).await.unwrap(), "app");
    // Two renewals: longer than the first certificate lives.
    server.shows("/stats", "renewals_total{result=\"success\"}: 4").await;
    let new = tls_connect(inbound, client_config(&["istio"], friend())).await.unwrap();
    assert_ne!(shown(&old), shown(&new));
    old.write_all(b"w").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'w');
    assert!(!server.page("/stats").await.contains("result=\"failure\""));
    tokio::task::block_in_place(|| control.kill());
}

fn server_context(validation: &serde_json::Value) -> serde_json::Value {
    let mut socket = site_tls(&[]);
    let context = &mut socket["typed_config"];
    context["require_client_certificate"] = json!(true);
    let common = context["common_tls_context"].as_object_mut().unwrap();
    common.extend(validation.as_object().unwrap().clone());
    socket
}

fn client_context(roots: &str, crl: &serde_json::Value) -> serde_json::Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "validation_context": { "trusted_ca": { "inline_string": roots }, "crl": crl },
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_certificate_was_taken_back_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    let ca = control.ca.clone();
    let (good, bad) = (ca.issue(&["good.example"]), ca.issue(&["bad.example"]));
    let list = ca.revoke(&[&bad.0]);
    let file = dir.path().join("revoked.pem");
    std::fs::write(&file, &list).unwrap();
    control.set(Secret, site_secret(&control, &["site.example"]));
    control.set(
        Secret,
        json!({"name": "kubernetes://clients-cacert", "validation_context": {
            "trusted_ca": { "inline_string": ca.root_pem() },
            "crl": { "inline_string": list },
        }}),
    );
    control.set(Cluster, static_cluster("c", &[backend]));
    for (name, validation) in [
        (
            "by secret",
            json!({"validation_context_sds_secret_config": {
                "name": "kubernetes://clients-cacert",
                "sds_config": { "ads": {}, "resource_api_version": "V3" },
            }}),
        ),
        (
            "by file",
            json!({"validation_context": {
                "trusted_ca": { "inline_string": ca.root_pem() },
                "crl": { "filename": file },
            }}),
        ),
    ] {
        let mut listener = tcp_listener(name, "c");
        listener["filter_chains"][0]["transport_socket"] = server_context(&validation);
        control.set(Listener, listener);
    }
    let proxy = plain(&control);
    proxy.ready().await;
    for name in ["by secret", "by file"] {
        let address = proxy.listener(name).await;
        let mut stream =
            tls_connect(address, client_config(&[], Some(good.clone()))).await.unwrap();
        assert_eq!(greeting(&mut stream).await.unwrap(), "app", "{name}");
        let served = match tls_connect(address, client_config(&[], Some(bad.clone()))).await {
            Ok(mut stream) => greeting(&mut stream).await.is_ok(),
            Err(_) => false,
        };
        assert!(!served, "{name}");
    }
    // A list that does not parse is refused, and the one before stays.
    control.set(
        Secret,
        json!({"name": "kubernetes://clients-cacert", "validation_context": {
            "trusted_ca": { "inline_string": ca.root_pem() },
            "crl": { "inline_string": "nonsense" },
        }}),
    );
    let reason = control.refusal(Secret).await;
    assert!(reason.contains("revocation list"), "{reason}");
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_certificate_was_taken_back_is_not_spoken_to() {
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    let ca = control.ca.clone();
    let (chain, key) = ca.issue(&["site.example"]);
    control.set(
        Secret,
        json!({"name": "kubernetes://shop", "tls_certificate": {
            "certificate_chain": { "inline_string": chain },
            "private_key": { "inline_string": key },
        }}),
    );
    control.set(Cluster, static_cluster("app", &[backend]));
    let mut listener = tcp_listener("site", "app");
    listener["filter_chains"][0]["transport_socket"] = site_tls(&[]);
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let site = proxy.listener("site").await;
    let (other, _) = ca.issue(&["other.example"]);
    for (name, list) in [("open", ca.revoke(&[&other])), ("shut", ca.revoke(&[&chain]))] {
        let mut cluster = static_cluster(name, &[site]);
        let crl = json!({ "inline_string": list });
        cluster["transport_socket"] = client_context(&ca.root_pem(), &crl);
        control.set(Cluster, cluster);
        control.set(Listener, tcp_listener(name, name));
    }
    let mut stream = connect(proxy.listener("open").await).await;
    assert_eq!(greeting(&mut stream).await.unwrap(), "app");
    let mut stream = connect(proxy.listener("shut").await).await;
    assert!(greeting(&mut stream).await.is_err());
    tokio::task::block_in_place(|| control.kill());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ciphers_and_groups_are_those_that_are_listed() {
    let backend = backend("app").await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Secret, site_secret(&control, &["site.example"]));
    control.set(Cluster, static_cluster("c", &[backend]));
    let mut listener = tcp_listener("l", "c");
    let mut socket = site_tls(&[]);
    socket["typed_config"]["common_tls_context"]["tls_params"] = json!({
        "tls_maximum_protocol_version": "TLSv1_2",
        "cipher_suites": ["[ECDHE-ECDSA-AES256-GCM-SHA384|ECDHE-RSA-AES256-GCM-SHA384]", "AES128-SHA"],
        "ecdh_curves": ["P-384"],
    });
    listener["filter_chains"][0]["transport_socket"] = socket;
    control.set(Listener, listener);
    let proxy = plain(&control);
    proxy.ready().await;
    let address = proxy.listener("l").await;
    let stream = tls_connect(address, client_config(&[], None)).await.unwrap();
    let session = stream.get_ref().1;
    let suite = session.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
    tokio::task::block_in_place(|| control.kill());
}
