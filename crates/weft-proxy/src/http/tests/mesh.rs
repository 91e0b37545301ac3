//! What the mesh adds to a request and takes away: identity, trace, routes' own answers and edits.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";

/// The endpoint has a sidecar of its own; plain transport keeps the test readable.
fn sidecar_endpoint(mesh: &Mesh) -> Value {
    let app = mesh.apps[0].local_addr().unwrap();
    json!({"loadAssignment": {"clusterName": "app", "endpoints": [{"lbEndpoints": [{
        "endpoint": {"address": {"socketAddress": {
            "address": app.ip().to_string(), "portValue": app.port(),
        }}},
        "metadata": {"filterMetadata": {
            "envoy.transport_socket_match": {"tlsMode": "istio"},
            "istio": {"workload": "app-v2;prod;app;v2;Kubernetes"},
        }},
    }]}]}})
}

fn value_of<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(": ")?;
        field.eq_ignore_ascii_case(name).then_some(value)
    })
}

#[test]
fn outbound_introduces_itself_to_sidecars_only() {
    run(Setup { direction: "OUTBOUND", ..Setup::default() }, |mesh| async move {
        let forged = "GET / HTTP/1.1\r\nHost: app\r\nx-envoy-peer-metadata: forged\r\n\r\n";
        let mut client = mesh.client().await;
        client.send(forged).await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        client.bytes(OK.len()).await;

        let endpoint = sidecar_endpoint(&mesh);
        mesh.configure(|setup| setup.cluster = endpoint);
        client.send(forged).await;
        let head = app.head().await;
        let metadata = value_of(&head, "x-envoy-peer-metadata").unwrap();
        assert_eq!(PeerInfo::decode(metadata.as_bytes()).unwrap().workload, "test-v1");
        assert!(value_of(&head, "x-envoy-peer-metadata-id").unwrap().starts_with("sidecar~"));
        // What the answer says of its workload counts only over mTLS, and never gets through.
        app.send("HTTP/1.1 200 OK\r\nx-envoy-peer-metadata: forged\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let labels = [
            "reporter=\"source\"",
            "source_workload=\"test-v1\"",
            "destination_workload=\"app-v2\"",
            "destination_workload_namespace=\"prod\"",
            "destination_service=\"app.default.svc.cluster.local\"",
            "connection_security_policy=\"unknown\"",
        ];
        mesh.expect_requests(&labels, 1).await;
    });
}

#[test]
fn inbound_hears_the_caller_and_hides_the_mesh_from_the_application() {
    run(Setup::default(), |mesh| async move {
        let caller = PeerInfo {
            workload: "caller-v3".into(),
            namespace: "web".into(),
            ..PeerInfo::default()
        };
        let mut client = mesh.client().await;
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: app\r\nx-envoy-peer-metadata: {}\r\nx-envoy-peer-metadata-id: x\r\n\r\n",
                caller.encode(),
            ))
            .await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        let head = client.head().await;
        let metadata = value_of(&head, "x-envoy-peer-metadata").unwrap();
        assert_eq!(PeerInfo::decode(metadata.as_bytes()).unwrap().workload, "test-v1");
        client.bytes(2).await;
        let labels = [
            "reporter=\"destination\"",
            "source_workload=\"caller-v3\"",
            "destination_workload=\"test-v1\"",
            "connection_security_policy=\"none\"",
        ];
        mesh.expect_requests(&labels, 1).await;
    });
}

#[test]
fn traces_begin_and_continue() {
    let hcm = json!({"tracing": {
        "clientSampling": {"value": 100},
        "randomSampling": {"value": 100},
        "overallSampling": {"value": 100},
    }});
    run(Setup { direction: "OUTBOUND", hcm, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        // Empty headers, as applications copy them that never received any, count as absent.
        client
            .send("GET / HTTP/1.1\r\nHost: app\r\nx-request-id: \r\nx-b3-traceid: \r\n\r\n")
            .await;
        let mut app = mesh.app().await;
        let head = app.head().await;
        let trace = value_of(&head, "x-b3-traceid").unwrap();
        assert_eq!(trace.len(), 32);
        assert_eq!(value_of(&head, "x-b3-sampled"), Some("1"));
        assert_eq!(value_of(&head, "x-request-id").unwrap().len(), 36);
        assert!(value_of(&head, "traceparent").unwrap().contains(trace));
        app.send(OK).await;
        client.bytes(OK.len()).await;
        client
            .send(
                "GET / HTTP/1.1\r\nHost: app\r\nX-Request-Id: mine\r\nX-B3-TraceId: 463ac35c9f6413ad\r\n\
                 X-B3-SpanId: a2fb4a1d1a96d312\r\nX-B3-Sampled: 0\r\n\r\n",
            )
            .await;
        let head = app.head().await;
        assert_eq!(value_of(&head, "x-b3-traceid"), Some("463ac35c9f6413ad"));
        assert_eq!(value_of(&head, "x-b3-parentspanid"), Some("a2fb4a1d1a96d312"));
        assert_ne!(value_of(&head, "x-b3-spanid"), Some("a2fb4a1d1a96d312"));
        assert_eq!(value_of(&head, "x-b3-sampled"), Some("0"));
        assert_eq!(value_of(&head, "x-request-id"), Some("mine"));
    });
}

#[test]
fn a_gateway_believes_nobody() {
    let hcm = json!({"generateRequestId": true, "useRemoteAddress": true});
    run(Setup { direction: "UNSPECIFIED", hcm, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client
            .send(
                "GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\
                 x-envoy-retry-on: 5xx\r\nx-envoy-upstream-rq-timeout-ms: 1\r\nX-Envoy-Internal: true\r\n\
                 x-forwarded-client-cert: By=me\r\nx-envoy-peer-metadata: forged\r\n\r\n",
            )
            .await;
        let mut app = mesh.app().await;
        let head = app.head().await;
        assert_eq!(value_of(&head, "x-forwarded-for"), Some("9.9.9.9,127.0.0.1"));
        assert_eq!(value_of(&head, "x-forwarded-proto"), Some("http"));
        assert_eq!(value_of(&head, "x-request-id").unwrap().len(), 36);
        assert_eq!(value_of(&head, "x-envoy-external-address"), Some("127.0.0.1"));
        assert_eq!(head.to_lowercase().matches("x-envoy").count(), 1, "{head}");
        assert!(!head.contains("client-cert"), "{head}");
        app.send(OK).await;
        client.bytes(OK.len()).await;
        mesh.expect_requests(&["reporter=\"source\"", "source_workload=\"test-v1\""], 1).await;
    });
}

#[test]
fn routes_answer_redirect_rewrite_and_edit() {
    let host = json!({
        "routes": [
            {"match": {"path": "/direct"}, "directResponse": {"status": 418, "body": {"inlineString": "teapot"}}},
            {"match": {"prefix": "/old"}, "redirect": {"pathRedirect": "/new", "responseCode": "FOUND"}},
            {
                "match": {"prefix": "/api/"},
                "route": {"cluster": "app", "prefixRewrite": "/", "hostRewriteLiteral": "inner", "timeout": "0s"},
                "requestHeadersToAdd": [{"header": {"key": "x-added", "value": "yes"}}],
                "requestHeadersToRemove": ["x-secret"],
                "responseHeadersToAdd": [{"header": {"key": "x-answer", "value": "42"}}],
            },
        ],
    });
    let setup = Setup {
        host,
        hcm: json!({"normalizePath": true, "generateRequestId": false}),
        ..Setup::default()
    };
    run(setup, |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST /direct HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 418"), "{head}");
        assert_eq!(client.bytes(6).await, "teapot");
        client.send("GET /old/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 302"), "{head}");
        assert_eq!(value_of(&head, "location"), Some("http://a/new"));
        client.send("GET /api/x/../v1?q HTTP/1.1\r\nHost: a\r\nX-Secret: 1\r\n\r\n").await;
        let mut app = mesh.app().await;
        assert_eq!(
            app.head().await,
            "GET /v1?q HTTP/1.1\r\nHost: inner\r\nx-added: yes\r\nx-envoy-original-path: /api/v1?q\r\nx-envoy-original-host: a\r\n\r\n"
        );
        app.send(OK).await;
        assert_eq!(value_of(&client.head().await, "x-answer"), Some("42"));
        client.bytes(2).await;
        mesh.expect_requests(&["response_code=\"418\""], 1).await;
        mesh.expect_requests(&["response_code=\"302\""], 1).await;
    });
}

#[test]
fn weights_hold() {
    let action = json!({"cluster": null, "timeout": "0s", "weightedClusters": {"clusters": [
        {"name": "app", "weight": 90}, {"name": "missing", "weight": 10},
    ]}});
    run(Setup { action, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        let mut app = None;
        let mut there = 0;
        for _ in 0..400 {
            client.send(GET).await;
            let answered = async {
                loop {
                    match &mut app {
                        None => app = Some(mesh.app().await),
                        Some(app) => {
                            app.head().await;
                            app.send(OK).await;
                            there += 1;
                        }
                    }
                }
            };
            tokio::select! {
                head = client.head() => {
                    if head.starts_with("HTTP/1.1 200") {
                        client.bytes(2).await;
                    }
                }
                () = answered => unreachable!(),
            }
        }
        // 360 expected, standard deviation 6.
        assert!((325..395).contains(&there), "{there} of 400");
        mesh.expect_requests(&["response_flags=\"NC\""], 400 - there).await;
    });
}
