//! Mirrored requests: the copy arrives whole, and nothing that happens to it reaches the client.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Mirrors everything to cluster `shadow`, which listens at the returned socket.
fn mirrored(policy: &Value) -> Setup {
    let mut mirror = json!({"cluster": "shadow"});
    merge(&mut mirror, policy);
    let action = json!({"timeout": "0s", "requestMirrorPolicies": [mirror]});
    Setup { action, ..Setup::default() }
}

async fn shadow(mesh: &Mesh) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    point_shadow_at(mesh, listener.local_addr().unwrap());
    listener
}

fn point_shadow_at(mesh: &Mesh, address: SocketAddr) {
    let socket = json!({"address": "127.0.0.1", "portValue": address.port()});
    let endpoint = json!({"endpoint": {"address": {"socketAddress": socket}}});
    let cluster = json!({
        "name": "shadow",
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": {"clusterName": "shadow", "endpoints": [{"lbEndpoints": [endpoint]}]},
    });
    let cluster = lower::cluster(&message(&cluster)).unwrap();
    mesh.worker.set_tables(Arc::new(mesh.worker.tables().with_cluster(cluster)));
}

async fn accepted(listener: &TcpListener) -> Raw {
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    Raw::new(accepted.expect("no copy came").unwrap().0)
}

/// One request through the real application.
async fn exchange(mesh: &Mesh, client: &mut Raw, request: &str, body: &str) {
    client.send(request).await;
    let mut app = mesh.app().await;
    app.head().await;
    assert_eq!(app.bytes(body.len()).await, body);
    app.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.bytes(2).await, "ok");
}

#[test]
fn a_copy_carries_head_and_body() {
    run(mirrored(&json!({})), |mesh| async move {
        let shadow = shadow(&mesh).await;
        let mut client = mesh.client().await;
        let post = "POST /p?q HTTP/1.1\r\nHost: app:80\r\nX-A: 1\r\nContent-Length: 4\r\n\r\nbody";
        exchange(&mesh, &mut client, post, "body").await;
        let mut copy = accepted(&shadow).await;
        let head = copy.head().await;
        assert!(head.starts_with("POST /p?q HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Host: app-shadow:80\r\n") && head.contains("X-A: 1\r\n"), "{head}");
        assert_eq!(copy.bytes(4).await, "body");
        // Its connection is used again, and its answer goes nowhere.
        copy.send("HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad").await;
        exchange(&mesh, &mut client, "GET /2 HTTP/1.1\r\nHost: app\r\n\r\n", "").await;
        assert!(copy.head().await.starts_with("GET /2 "));
        copy.send(OK).await;
        mesh.expect_requests(&["response_code=\"200\""], 2).await;
        assert_eq!(mesh.requests(&[]), 2);
    });
}

#[test]
fn a_silent_copy_holds_nobody_up() {
    run(mirrored(&json!({})), |mesh| async move {
        let shadow = shadow(&mesh).await;
        let mut client = mesh.client().await;
        for _ in 0..3 {
            exchange(&mesh, &mut client, "GET / HTTP/1.1\r\nHost: app\r\n\r\n", "").await;
            // Taken, never answered.
            std::mem::forget(accepted(&shadow).await);
        }
    });
}

#[test]
fn a_refused_copy_fails_nobody() {
    run(mirrored(&json!({})), |mesh| async move {
        let address = shadow(&mesh).await.local_addr().unwrap();
        point_shadow_at(&mesh, address);
        let mut client = mesh.client().await;
        for _ in 0..3 {
            exchange(&mesh, &mut client, "GET / HTTP/1.1\r\nHost: app\r\n\r\n", "").await;
        }
        mesh.expect_requests(&["response_code=\"200\"", "response_flags=\"-\""], 3).await;
    });
}

#[test]
fn a_large_body_is_copied_or_given_up_but_never_waited_for() {
    run(mirrored(&json!({})), |mesh| async move {
        let shadow = shadow(&mesh).await;
        let body = "x".repeat(4 * 1024 * 1024);
        let mut client = mesh.client().await;
        let head =
            format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len());
        // The copy's socket is never read, so that its buffers fill.
        let ignored = tokio::task::spawn_local(async move { shadow.accept().await });
        let (answered, ()) = tokio::join!(
            async {
                let mut app = mesh.app().await;
                app.head().await;
                app.bytes(body.len()).await;
                app.send(OK).await;
            },
            client.send(format!("{head}{body}")),
        );
        let () = answered;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        drop(ignored);
    });
}

#[test]
fn the_fraction_decides() {
    let never = json!({"runtimeFraction": {"defaultValue": {"numerator": 0}}});
    run(mirrored(&never), |mesh| async move {
        let shadow = shadow(&mesh).await;
        let mut client = mesh.client().await;
        exchange(&mesh, &mut client, "GET / HTTP/1.1\r\nHost: app\r\n\r\n", "").await;
        tokio::select! {
            biased;
            _ = shadow.accept() => panic!("a copy came"),
            () = tokio::task::yield_now() => {}
        }
    });
}
