//! Clusters without endpoints: the request's own host says where it goes.

use super::*;

const TYPE: &str =
    "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";

/// A proxy whose only cluster resolves what requests name, and a server beside it.
async fn by_name(mesh: &Mesh, most: u32) -> TcpListener {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cache = json!({"name": "c", "dnsLookupFamily": "V4_ONLY", "maxHosts": most});
    let cluster = json!({
        "name": "app",
        "connectTimeout": "1s",
        "lbPolicy": "CLUSTER_PROVIDED",
        "clusterType": {
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typedConfig": {"@type": TYPE, "dnsCacheConfig": cache},
        },
    });
    let cluster = lower::cluster(&message(&cluster)).unwrap();
    mesh.worker.set_tables(Arc::new(mesh.worker.tables().with_cluster(cluster)));
    server
}

#[test]
fn the_requests_host_is_resolved() {
    run(Setup::default(), |mesh| async move {
        let server = by_name(&mesh, 10).await;
        let port = server.local_addr().unwrap().port();
        // By the system's hosts file, and by address.
        for host in ["localhost", "127.0.0.1"] {
            let mut client = mesh.client().await;
            client.send(&format!("GET /x HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n")).await;
            let mut app = Raw::new(server.accept().await.unwrap().0);
            assert!(app.head().await.contains(&format!("Host: {host}:{port}\r\n")));
            app.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
        }
    });
}

#[test]
fn too_many_names_are_refused_and_known_ones_go_on() {
    run(Setup::default(), |mesh| async move {
        let server = by_name(&mesh, 1).await;
        let port = server.local_addr().unwrap().port();
        let mut client = mesh.client().await;
        client.send(&format!("GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n")).await;
        let mut app = Raw::new(server.accept().await.unwrap().0);
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        let mut second = mesh.client().await;
        second.send("GET / HTTP/1.1\r\nHost: other.invalid\r\n\r\n").await;
        let answer = second.head().await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("overload"), "{answer}");
    });
}
