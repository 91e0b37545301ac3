//! Limits of clients and streams: whoever sends or takes too little, or too much, is answered, cut
//! off and counted.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";

fn hcm(change: &Value) -> Setup {
    let mut hcm = Setup::default().hcm;
    merge(&mut hcm, change);
    Setup { hcm, ..Setup::default() }
}

fn stall(ms: u64) -> Limits {
    Limits { client_stall: Duration::from_millis(ms), ..Limits::of(1000) }
}

impl Mesh {
    /// Waits until a counter without labels, or with exactly these, has this value.
    pub(super) async fn expect_counter(&self, name: &str, value: u64) {
        let line = format!("{name} {value}");
        let since = Instant::now();
        loop {
            let mut text = Vec::new();
            self.registry.render_prometheus(&mut text);
            let text = String::from_utf8(text).unwrap();
            let found: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
            if found.contains(&&*line) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{line:?} among {found:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_head_that_does_not_come_whole_is_given_up() {
    run(hcm(&json!({"requestHeadersTimeout": "0.1s"})), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a").await;
        assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
        mesh.expect_counter("envoy_http_downstream_rq_header_timeout", 1).await;
        mesh.expect_requests(&["response_code=\"408\"", "response_flags=\"DPE\""], 1).await;
    });
}

#[test]
fn an_http2_head_that_does_not_come_whole_is_given_up() {
    run(hcm(&json!({"requestHeadersTimeout": "0.1s"})), |mesh| async move {
        let opening: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        // A block that CONTINUATION should follow, and the start of a frame with one.
        for (which, head) in
            [&b"\0\0\x01\x01\x01\0\0\0\x01\x82"[..], b"\0\0\x09\x01\x05\0\0\0\x01\x82"]
                .into_iter()
                .enumerate()
        {
            let mut client = mesh.client().await;
            client.stream.write_all(&[opening, head].concat()).await.unwrap();
            let mut answer = Vec::new();
            client.stream.read_to_end(&mut answer).await.unwrap();
            mesh.expect_counter("envoy_http_downstream_rq_header_timeout", which as u64 + 1).await;
        }
    });
}

#[test]
fn a_request_that_does_not_come_whole_is_given_up() {
    run(hcm(&json!({"requestTimeout": "0.1s"})), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nabc").await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.ends_with("request timeout"), "{answer}");
        mesh.expect_counter("envoy_http_downstream_rq_timeout", 1).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.rest().await; // Cut, so that the application does not wait for the rest.
    });
}

#[test]
fn a_stream_on_which_nothing_moves_is_ended() {
    run(hcm(&json!({"streamIdleTimeout": "0.1s"})), |mesh| async move {
        // The client owes its body.
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nabc").await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("stream timeout"));
        // The application owes its answer.
        let mut client = mesh.client().await;
        client.send(GET).await;
        assert!(client.head().await.starts_with("HTTP/1.1 504 "));
        // Too late for an answer of ours: cut.
        let (mut client, mut app) = (mesh.client().await, mesh.app().await);
        app.head().await;
        app.rest().await;
        let mut second = mesh.app().await;
        second.head().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
        assert!(client.rest().await.ends_with("\r\n\r\nabc"));
        mesh.expect_counter("envoy_http_downstream_rq_idle_timeout", 3).await;
        mesh.expect_requests(&["response_flags=\"SI\""], 3).await;
        mesh.expect_requests(&["response_flags=\"SI\"", "response_code=\"504\""], 1).await;
    });
}

#[test]
fn a_tunnel_on_which_nothing_moves_is_ended() {
    run(hcm(&json!({"streamIdleTimeout": "0.1s"})), |mesh| async move {
        let mut client = mesh.client().await;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{upgrade}")).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}")).await;
        client.head().await;
        client.send("ping").await;
        assert_eq!(app.bytes(4).await, "ping");
        assert_eq!(client.rest().await, "");
        assert_eq!(app.rest().await, "");
        mesh.expect_counter("envoy_http_downstream_rq_idle_timeout", 1).await;
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    run(Setup { limits: stall(200), ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        // More than all buffers in between, until the proxy has had enough of waiting.
        let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
        while app.stream.write_all(&chunk).await.is_ok() {}
        mesh.expect_counter("envoy_http_downstream_rq_idle_timeout", 1).await;
        mesh.expect_requests(&["response_flags=\"SI\""], 1).await;
        drop(client);
    });
}

#[test]
fn a_client_that_never_takes_our_own_replies_is_cut_off() {
    let host = json!({"routes": [{
        "match": {"prefix": "/"},
        "directResponse": {"status": 200, "body": {"inlineString": "x".repeat(4000)}},
    }]});
    run(Setup { limits: stall(200), host, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        let many = GET.repeat(1000);
        while client.stream.write_all(many.as_bytes()).await.is_ok() {}
        mesh.expect_counter("envoy_http_downstream_rq_idle_timeout", 1).await;
    });
}

#[test]
fn a_client_that_rests_in_its_body_is_cut_off() {
    run(Setup { limits: stall(100), ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3").await;
        assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
        mesh.expect_counter("envoy_http_downstream_rq_idle_timeout", 1).await;
    });
}

#[test]
fn connections_end_when_idle_or_old() {
    let options = json!({"commonHttpProtocolOptions": {"idleTimeout": "0.1s"}});
    run(hcm(&options), |mesh| async move {
        let mut client = mesh.client().await;
        assert_eq!(client.rest().await, "");
        mesh.expect_counter("envoy_http_downstream_cx_idle_timeout", 1).await;
    });
    let options = json!({"commonHttpProtocolOptions": {"maxConnectionDuration": "0.1s"}});
    run(hcm(&options), |mesh| async move {
        let mut client = mesh.client().await;
        assert_eq!(client.rest().await, "");
        mesh.expect_counter("envoy_http_downstream_cx_max_duration_reached", 1).await;
        // In the middle of a request the response is the last one, and says so.
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        tokio::time::sleep(Duration::from_millis(110)).await; // The age itself is what is tested.
        app.send(OK).await;
        assert!(client.rest().await.to_ascii_lowercase().contains("connection: close"));
        mesh.expect_counter("envoy_http_downstream_cx_max_duration_reached", 2).await;
    });
}

#[test]
fn heads_are_bounded_in_every_direction() {
    let hcm = json!({
        "maxRequestHeadersKb": 1, "commonHttpProtocolOptions": {"maxHeadersCount": 5},
    });
    let limits = Limits { url_bytes_max: 200, ..Limits::of(1000) };
    run(Setup { limits, hcm, ..Setup::default() }, |mesh| async move {
        let refused = |reason| format!("weft_proxy_requests_refused_total{{reason=\"{reason}\"}}");
        for (request, status, reason) in [
            (format!("GET /{}", "a".repeat(300)), 414, "http1.request_line_too_long"),
            (format!("{GET_LINE}a: {}\r\n", "b".repeat(2000)), 431, "http1.head_too_large"),
            (format!("{GET_LINE}{}\r\n", "a: b\r\n".repeat(9)), 431, "http1.too_many_headers"),
        ] {
            let mut client = mesh.client().await;
            client.send(&request).await;
            let answer = client.rest().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {answer}");
            mesh.expect_counter(&refused(reason), 1).await;
        }
        mesh.expect_requests(&["response_flags=\"DPE\""], 3).await;
    });
}

const GET_LINE: &str = "GET / HTTP/1.1\r\nHost: app\r\n";

#[test]
fn pipelined_requests_wait_in_the_kernel() {
    run(Setup::default(), |mesh| async move {
        let client = mesh.client().await;
        let (_read, mut write) = client.stream.into_split();
        let writer = tokio::task::spawn_local(async move {
            // Far more than the proxy would buffer; it must stop taking them.
            let many = GET.repeat(2000);
            for _ in 0..2000 {
                if write.write_all(many.as_bytes()).await.is_err() {
                    return;
                }
            }
            panic!("100 MB of pipelined requests were taken");
        });
        let mut app = mesh.app().await;
        app.head().await;
        let quiet = tokio::time::timeout(Duration::from_millis(300), writer).await;
        assert!(quiet.is_err(), "the client could go on writing");
    });
}

#[test]
fn requests_beyond_a_circuit_breaker_are_refused() {
    let cluster = json!({"circuitBreakers": {"thresholds": [{"maxRequests": 1}]}});
    run(Setup { cluster, ..Setup::default() }, |mesh| async move {
        let (mut first, mut second) = (mesh.client().await, mesh.client().await);
        first.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        second.send(GET).await;
        assert!(second.head().await.starts_with("HTTP/1.1 503 "));
        mesh.expect_counter("envoy_cluster_upstream_rq_pending_overflow", 1).await;
        mesh.expect_requests(&["response_flags=\"UO\""], 1).await;
        app.send(OK).await;
        first.bytes(OK.len()).await;
    });
}

#[test]
fn an_endpoint_without_a_connection_gets_one_whatever_the_limit() {
    let cluster = json!({
        "lbPolicy": "ROUND_ROBIN",
        "circuitBreakers": {"thresholds": [{"maxConnections": 1}]},
    });
    run(Setup { cluster, apps: 2, ..Setup::default() }, |mesh| async move {
        let (mut first, mut second) = (mesh.client().await, mesh.client().await);
        first.send(GET).await;
        second.send(GET).await;
        // Both are under way at once; a third waits for one of them.
        let (mut one, mut other) = (mesh.app_at(0).await, mesh.app_at(1).await);
        one.head().await;
        other.head().await;
        let mut third = mesh.client().await;
        third.send(GET).await;
        one.send(OK).await;
        other.send(OK).await;
        first.bytes(OK.len()).await;
        second.bytes(OK.len()).await;
        let app = tokio::select! {
            _ = one.head() => &mut one,
            _ = other.head() => &mut other,
        };
        app.send(OK).await;
        third.bytes(OK.len()).await;
    });
}
