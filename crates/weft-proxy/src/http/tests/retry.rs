//! Failures of endpoints and what the client sees of them: retries, timeouts, limits, flags.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody";

/// Istio's default policy.
fn istio_retries() -> Value {
    json!({
        "timeout": "0s",
        "retryPolicy": {
            "retryOn": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "numRetries": 2,
            "retryHostPredicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }],
            "hostSelectionRetryMaxAttempts": "5",
        },
    })
}

async fn expect(client: &mut Raw, status: &str) -> String {
    let head = client.head().await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "expected {status}: {head}");
    head
}

#[test]
fn connection_refused_goes_to_another_endpoint() {
    run(Setup { apps: 2, action: istio_retries(), ..Setup::default() }, |mesh| async move {
        // The first endpoint's port is closed but still configured.
        let setup = mesh.setup.borrow().clone();
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let alive = mesh.apps[1].local_addr().unwrap();
        mesh.worker.set_tables(Arc::new(tables(&setup, &[dead, alive], 50)));
        for _ in 0..4 {
            let mut client = mesh.client().await;
            client.send(POST).await;
            let mut app = mesh.app_at(1).await;
            app.head().await;
            assert_eq!(app.bytes(4).await, "body");
            app.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
            expect(&mut client, "200").await;
        }
        mesh.expect_requests(&["response_code=\"200\"", "response_flags=\"-\""], 4).await;
    });
}

#[test]
fn a_retry_sends_the_body_again() {
    let mut action = istio_retries();
    action["retryPolicy"]["retryOn"] = json!("5xx");
    run(Setup { action, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(POST).await;
        for _ in 0..2 {
            let mut app = mesh.app().await;
            app.head().await;
            assert_eq!(app.bytes(4).await, "body");
            app.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        }
        let mut app = mesh.app().await;
        app.head().await;
        assert_eq!(app.bytes(4).await, "body");
        app.send(OK).await;
        expect(&mut client, "200").await;
        mesh.expect_requests(&[], 1).await;
    });
}

#[test]
fn retries_end() {
    let mut action = istio_retries();
    action["retryPolicy"]["retryOn"] = json!("5xx");
    action["retryPolicy"]["numRetries"] = json!(1);
    run(Setup { action, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        for _ in 0..2 {
            let mut app = mesh.app().await;
            app.head().await;
            app.send("HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno").await;
        }
        expect(&mut client, "503 Busy").await;
        assert_eq!(client.bytes(2).await, "no");
        mesh.expect_requests(&["response_flags=\"URX\""], 1).await;
    });
}

#[test]
fn a_body_too_long_to_keep_is_not_sent_twice() {
    let mut action = istio_retries();
    action["retryPolicy"]["retryOn"] = json!("5xx");
    run(Setup { action, ..Setup::default() }, |mesh| async move {
        let body = "x".repeat(100_000);
        let mut client = mesh.client().await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}"))
            .await;
        let mut app = mesh.app().await;
        app.head().await;
        app.bytes(100_000).await;
        app.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        expect(&mut client, "503").await;
        mesh.expect_no_app().await;
    });
}

#[test]
fn the_keep_alive_race_is_not_the_clients_problem() {
    run(Setup::default(), |mesh| async move {
        // The endpoint closes an idle connection: the next request takes a new one.
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(OK).await;
        client.bytes(OK.len()).await;
        drop(app);
        client.send(POST).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.bytes(4).await;
        app.send(OK).await;
        client.bytes(OK.len()).await;

        // It closes just as the request arrives: what is idempotent is sent again.
        client.send(GET).await;
        app.head().await;
        drop(app);
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        client.bytes(OK.len()).await;

        // What is not may have been executed, and is not sent twice.
        client.send(POST).await;
        app.head().await;
        app.bytes(4).await;
        drop(app);
        expect(&mut client, "503").await;
        mesh.expect_no_app().await;
        mesh.expect_requests(&["response_flags=\"UC\"", "response_code=\"503\""], 1).await;
    });
}

#[test]
fn a_fresh_connection_that_dies_is_503_uc() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        drop(app);
        expect(&mut client, "503").await;
        mesh.expect_requests(&["response_flags=\"UC\""], 1).await;
    });
}

#[test]
fn route_timeout_is_504_ut() {
    let setup = Setup { action: json!({"timeout": "0.05s"}), ..Setup::default() };
    run(setup, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        expect(&mut client, "504").await;
        assert_eq!(client.bytes(24).await, "upstream request timeout");
        // The endpoint is told by the end of its connection.
        assert_eq!(app.rest().await, "");
        mesh.expect_requests(&["response_flags=\"UT\"", "response_code=\"504\""], 1).await;
    });
}

#[test]
fn the_timeout_does_not_count_a_slow_upload() {
    let setup = Setup { action: json!({"timeout": "1s"}), ..Setup::default() };
    run(setup, |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
        let mut app = mesh.app().await;
        app.head().await;
        // Longer than the timeout; real time, since sockets know no other.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        client.send("body").await;
        app.bytes(4).await;
        app.send(OK).await;
        expect(&mut client, "200").await;
    });
}

#[test]
fn per_try_timeout_tries_elsewhere() {
    let mut action = istio_retries();
    action["retryPolicy"]["retryOn"] = json!("5xx");
    action["retryPolicy"]["perTryTimeout"] = json!("0.05s");
    action["timeout"] = json!("10s");
    run(Setup { action, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut slow = mesh.app().await;
        slow.head().await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(OK).await;
        expect(&mut client, "200").await;
        mesh.expect_requests(&["response_flags=\"-\"", "response_code=\"200\""], 1).await;
    });
}

#[test]
fn failures_before_any_endpoint_have_their_codes() {
    run(Setup::default(), |mesh| async move {
        let check = async |status: &str, flag: &str| {
            let mut client = mesh.client().await;
            client.send(GET).await;
            expect(&mut client, status).await;
            mesh.expect_requests(&[&format!("response_flags=\"{flag}\"")], 1).await;
        };
        mesh.configure(|setup| setup.action = json!({"cluster": "missing"}));
        check("503", "NC").await;
        mesh.configure(|setup| {
            setup.action = json!({});
            setup.host = json!({"domains": ["elsewhere"]});
        });
        check("404", "NR").await;
        mesh.configure(|setup| setup.host = json!({}));
        let setup = mesh.setup.borrow().clone();
        mesh.worker.set_tables(Arc::new(tables(&setup, &[], 90)));
        check("503", "UH").await;
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        mesh.worker.set_tables(Arc::new(tables(&setup, &[dead], 95)));
        check("503", "UF").await;
    });
}

#[test]
fn breakers_bound_what_is_under_way() {
    let limits = json!({"circuitBreakers": {"thresholds": [
        {"maxConnections": 1, "maxPendingRequests": 1, "maxRequests": 100},
    ]}});
    run(Setup { cluster: limits, ..Setup::default() }, |mesh| async move {
        let mut first = mesh.client().await;
        first.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        let mut second = mesh.client().await;
        second.send(GET).await;
        // The second waits for the connection; once it does, a third finds the queue full.
        let tables = mesh.worker.tables();
        let cluster = tables.cluster("app").unwrap();
        let circuit = mesh.worker.balancers.circuit(cluster, 0, Instant::now());
        while circuit.active(weft_traffic::circuit::Resource::Pending) == 0 {
            tokio::task::yield_now().await;
        }
        let mut third = mesh.client().await;
        third.send(GET).await;
        let head = third.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(head.contains("x-envoy-overloaded: true"), "{head}");
        app.send(OK).await;
        assert_eq!(first.bytes(OK.len()).await, OK);
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        assert_eq!(second.bytes(OK.len()).await, OK);
        mesh.expect_requests(&["response_flags=\"UO\""], 1).await;
    });
}

#[test]
fn connections_are_retired_after_their_requests() {
    let cluster = json!({"typedExtensionProtocolOptions": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "commonHttpProtocolOptions": {"maxRequestsPerConnection": 2},
            "explicitHttpConfig": {"httpProtocolOptions": {}},
        },
    }});
    run(Setup { cluster, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            let mut app = mesh.app().await;
            app.head().await;
            app.send(OK).await;
            client.bytes(OK.len()).await;
            client.send(GET).await;
            app.head().await;
            app.send(OK).await;
            client.bytes(OK.len()).await;
            assert_eq!(app.rest().await, "");
        }
    });
}

#[test]
fn announced_keep_alive_timeouts_are_believed() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n").await;
        expect(&mut client, "200").await;
        // One second less the margin; real time, since sockets know no other.
        tokio::time::sleep(Duration::from_millis(600)).await;
        client.send(GET).await;
        mesh.app().await.head().await;
    });
}

fn one_request_at_a_time() -> Value {
    json!({"circuitBreakers": {"thresholds": [{"maxRequests": 1}]}})
}

#[test]
fn a_streaming_response_is_a_request_under_way() {
    run(Setup { cluster: one_request_at_a_time(), ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        expect(&mut client, "200").await;
        let mut second = mesh.client().await;
        second.send(GET).await;
        let head = expect(&mut second, "503").await;
        assert!(head.to_ascii_lowercase().contains("x-envoy-overloaded: true"), "{head}");
        app.send("half").await;
        assert_eq!(client.bytes(8).await, "halfhalf");
        mesh.expect_requests(&["response_flags=\"UO\""], 1).await;
    });
}

#[test]
fn a_cookie_keeps_the_client_on_its_endpoint() {
    let cookie = json!({"cookie": {"name": "stick", "ttl": "60s", "path": "/"}});
    let action = json!({"timeout": "0s", "hashPolicy": [cookie]});
    let cluster = json!({"lbPolicy": "RING_HASH"});
    run(Setup { apps: 4, action, cluster, ..Setup::default() }, |mesh| async move {
        let mut first = None;
        let mut stick = String::new();
        for _ in 0..6 {
            let mut client = mesh.client().await;
            client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{stick}\r\n")).await;
            let (index, mut app) = tokio::select! {
                app = mesh.app_at(0) => (0, app),
                app = mesh.app_at(1) => (1, app),
                app = mesh.app_at(2) => (2, app),
                app = mesh.app_at(3) => (3, app),
            };
            app.head().await;
            app.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
            let head = expect(&mut client, "200").await;
            let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
            assert_eq!(set.is_some(), first.is_none(), "only the first answer sets it: {head}");
            if let Some(set) = set {
                let pair = set.split(';').next().unwrap();
                assert!(pair.starts_with("stick=") && set.contains("Max-Age=60"), "{set}");
                stick = format!("Cookie: {pair}\r\n");
            }
            assert_eq!(*first.get_or_insert(index), index);
        }
    });
}

#[test]
fn a_restarted_application_is_not_the_clients_problem() {
    run(Setup::default(), |mesh| async move {
        // As many idle connections as there were calls side by side; all of them die at once.
        let mut clients = Vec::new();
        let mut apps = Vec::new();
        for _ in 0..8 {
            let mut client = mesh.client().await;
            client.send(GET).await;
            let mut app = mesh.app().await;
            app.head().await;
            clients.push(client);
            apps.push(app);
        }
        for (client, app) in clients.iter_mut().zip(&mut apps) {
            app.send(OK).await;
            client.bytes(OK.len()).await;
        }
        drop(apps);
        let mut client = clients.remove(0);
        client.send(GET).await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        client.bytes(OK.len()).await;
    });
}
