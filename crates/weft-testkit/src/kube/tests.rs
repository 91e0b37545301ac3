//! The server is only as useful as it is honest: the semantics that clients rely on.

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::client;

const PODS: &str = "/api/v1/namespaces/shop/pods";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": {"a": 1}})
}

async fn send(server: &Server, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let content_type = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let headers = [("content-type", content_type)];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let wire = client::Wire::H1;
    let reply = client::send(wire, server.address, method, path, &headers, body.into()).await;
    let reply = reply.expect("an answer");
    (reply.status, reply.json())
}

async fn get(server: &Server, path: &str) -> (u16, Value) {
    send(server, Method::GET, path, &Value::Null).await
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("a list");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn pages_of_a_list_show_one_version() {
    let server = Server::start(Vec::new()).await;
    for name in ["a", "b", "c"] {
        server.apply(&pod(name));
    }
    let (_, first) = get(&server, &format!("{PODS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    let token = first["metadata"]["continue"].as_str().expect("there is more");
    server.apply(&pod("d"));
    server.delete(&pod("c"));
    let rest = format!("{PODS}?limit=2&continue={token}");
    let (_, second) = get(&server, &rest).await;
    assert_eq!(names(&second), ["c"]);
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    server.compact();
    assert_eq!(get(&server, &rest).await.0, 410);
}

#[tokio::test]
async fn writes_conflict_and_count_generations() {
    let server = Server::start(Vec::new()).await;
    let (status, made) = send(&server, Method::POST, PODS, &pod("a")).await;
    assert_eq!((status, &made["metadata"]["generation"]), (200, &json!(1)));
    assert_eq!(send(&server, Method::POST, PODS, &pod("a")).await.0, 409);

    let one = format!("{PODS}/a");
    let mut newer = made.clone();
    newer["spec"]["a"] = 2.into();
    newer["status"] = json!({"phase": "Running"});
    let (status, newer) = send(&server, Method::PUT, &one, &newer).await;
    assert_eq!((status, &newer["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!(newer.get("status"), None, "the status is its subresource's");
    assert_eq!(send(&server, Method::PUT, &one, &made).await.0, 409);

    let status_path = format!("{one}/status");
    let patch = json!({"spec": {"a": 9}, "status": {"phase": "Running"}});
    let (_, patched) = send(&server, Method::PATCH, &status_path, &patch).await;
    assert_eq!(patched["spec"]["a"], 2);
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["metadata"]["generation"], 2);
    let (_, same) = send(&server, Method::PATCH, &status_path, &patch).await;
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&same), version(&patched), "nothing changed");

    let stale = json!({"metadata": {"resourceVersion": "1"}, "status": {}});
    assert_eq!(send(&server, Method::PATCH, &status_path, &stale).await.0, 409);
    assert_eq!(send(&server, Method::DELETE, &one, &Value::Null).await.0, 200);
    assert_eq!(send(&server, Method::DELETE, &one, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn watches_go_on_from_a_version() {
    let server = Server::start(Vec::new()).await;
    server.apply(&pod("a"));
    let (_, list) = get(&server, PODS).await;
    let version = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    server.apply(&pod("b"));
    server.delete(&pod("a"));
    let watch = |version: &str, more: &str| {
        format!("{PODS}?watch=1&timeoutSeconds=0&resourceVersion={version}{more}")
    };
    let events = |text: &[u8]| -> Vec<(String, String)> {
        let lines = String::from_utf8_lossy(text).into_owned();
        let told = |line: &str| {
            let event: Value = serde_json::from_str(line).expect("a whole line");
            let name = &event["object"]["metadata"]["name"];
            (text_of(&event["type"]), text_of(name))
        };
        lines.lines().map(told).collect()
    };
    // A time limit of nothing: what is known already, then the end.
    let told = client::get(server.address, &watch(&version, ""), &[]).await.expect("an answer");
    let expect = [("ADDED", "b"), ("DELETED", "a")];
    assert_eq!(events(&told.body), expect.map(|(e, n)| (e.to_owned(), n.to_owned())));
    let all = watch("", "&sendInitialEvents=true&allowWatchBookmarks=true");
    let told = client::get(server.address, &all, &[]).await.expect("an answer");
    assert_eq!(events(&told.body), [("ADDED", "b"), ("BOOKMARK", "")].map(owned));
    server.compact();
    let told = client::get(server.address, &watch(&version, ""), &[]).await.expect("an answer");
    assert!(String::from_utf8_lossy(&told.body).contains("410"));
}

fn owned((event, name): (&str, &str)) -> (String, String) {
    (event.to_owned(), name.to_owned())
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn faults_rules_and_discovery() {
    let mut server = Server::start(istio()).await;
    server.apply(&pod("a"));
    server.fail("GET /api/v1/namespaces/shop/pods", Fault::Status(429, Some(3)), 1);
    server.fail("GET /api/v1/namespaces/shop/pods", Fault::Cut, 1);
    let refused = client::get(server.address, PODS, &[]).await.expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (429, "3"));
    assert!(client::get(server.address, PODS, &[]).await.is_err(), "half a body is an error");
    assert_eq!(get(&server, PODS).await.0, 200);

    let (_, list) = get(&server, "/apis/networking.istio.io/v1beta1").await;
    assert!(list.to_string().contains("\"sidecars\""));
    assert_eq!(get(&server, "/apis/gateway.networking.k8s.io/v1").await.0, 404);
    assert_eq!(get(&server, "/apis/networking.istio.io/v9/sidecars").await.0, 404);

    let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
    server.restrict(vec![Rule {
        namespace: String::new(),
        groups: texts(&[""]),
        resources: texts(&["pods"]),
        names: Vec::new(),
        verbs: texts(&["list"]),
    }]);
    assert_eq!(get(&server, PODS).await.0, 200);
    assert_eq!(get(&server, &format!("{PODS}/a")).await.0, 403);

    server.kill();
    crate::wait::until("the server to be gone", LIMIT, || async {
        client::get(server.address, "/version", &[]).await.is_err().then_some(())
    })
    .await;
    server.revive().await;
    assert_eq!(get(&server, "/version").await.0, 200);
    let last = server.requests().pop().expect("a request");
    assert_eq!((last.path.as_str(), last.status), ("/version", 200));
}
