use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use weft_telemetry::Registry;

use super::*;

/// A gateway that calls a service that calls another: as our proxies and Envoy report it, the
/// server's half of a call under the client's id.
fn spans() -> Value {
    let end = |name: &str| json!({"serviceName": name, "ipv4": "10.0.0.1", "port": 80});
    json!([
        {"traceId": "A1", "id": "1", "kind": "SERVER", "name": "Front", "timestamp": 1_000_000_u64,
         "duration": 900, "localEndpoint": end("Gateway"), "tags": {"http.status_code": "500", "error": "500"}},
        {"traceId": "a1", "id": "2", "parentId": "1", "kind": "CLIENT", "name": "get", "timestamp": 1_000_100_u64,
         "duration": 700, "localEndpoint": end("gateway")},
        {"traceId": "a1", "id": "2", "parentId": "1", "kind": "SERVER", "name": "get", "shared": true,
         "timestamp": 1_000_200_u64, "duration": 500, "localEndpoint": end("reviews"),
         "tags": {"http.status_code": "500", "error": "500"}},
        {"traceId": "a1", "id": "3", "parentId": "2", "kind": "CLIENT", "name": "query", "timestamp": 1_000_300_u64,
         "duration": 100, "localEndpoint": end("reviews"), "remoteEndpoint": end("mysql"),
         "annotations": [{"timestamp": 1_000_350_u64, "value": "retried"}]},
        {"traceId": "463ac35c9f6413ad48485a3953bb6124", "id": "9", "kind": "SERVER", "name": "other",
         "timestamp": 2_000_000_u64, "duration": 10, "localEndpoint": end("ratings")},
        {"traceId": "0", "id": "9"},
    ])
}

async fn call(traces: &Traces, request: Request<Body>) -> (StatusCode, Value) {
    use tower::ServiceExt as _;
    let response = router(traces.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn get(traces: &Traces, path: &str) -> Value {
    let (status, body) = call(traces, Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::OK, "{path}");
    body
}

async fn filled() -> Traces {
    let traces = Traces::new(&Registry::new());
    let report = Request::post("/api/v2/spans").body(Body::from(spans().to_string())).unwrap();
    assert_eq!(call(&traces, report).await.0, StatusCode::ACCEPTED);
    traces
}

#[tokio::test]
async fn names_are_listed_as_zipkin_does() {
    let traces = filled().await;
    assert_eq!(get(&traces, "/api/v2/services").await, json!(["gateway", "ratings", "reviews"]));
    assert_eq!(get(&traces, "/api/v2/spans?serviceName=Gateway").await, json!(["front", "get"]));
    assert_eq!(get(&traces, "/api/v2/remoteServices?serviceName=reviews").await, json!(["mysql"]));
}

#[tokio::test]
async fn a_trace_is_found_by_its_id() {
    let traces = filled().await;
    let trace = get(&traces, "/api/v2/trace/a1").await;
    let ids: Vec<&str> =
        trace.as_array().unwrap().iter().map(|span| span["id"].as_str().unwrap()).collect();
    assert_eq!(
        ids,
        ["0000000000000001", "0000000000000002", "0000000000000002", "0000000000000003"]
    );
    assert_eq!(trace[0]["traceId"], "00000000000000a1");
    assert_eq!(trace[2]["shared"], true);
    assert_eq!(
        trace[0]["localEndpoint"],
        json!({"serviceName": "gateway", "ipv4": "10.0.0.1", "port": 80})
    );
    let request = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    assert_eq!(call(&traces, request("/api/v2/trace/ff")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(call(&traces, request("/api/v2/trace/xyz")).await.0, StatusCode::BAD_REQUEST);
    let many = get(&traces, "/api/v2/traceMany?traceIds=a1,463ac35c9f6413ad48485a3953bb6124").await;
    assert_eq!(many.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_search_knows_zipkins_parameters() {
    let traces = filled().await;
    for (query, expect) in [
        ("", 2),
        ("&serviceName=reviews", 1),
        ("&serviceName=nobody", 0),
        ("&serviceName=reviews&spanName=query", 1),
        ("&serviceName=gateway&spanName=query", 0),
        ("&serviceName=reviews&remoteServiceName=mysql", 1),
        ("&annotationQuery=error", 1),
        ("&annotationQuery=error%20and%20http.status_code%3D500", 1),
        ("&annotationQuery=http.status_code%3D404", 0),
        ("&annotationQuery=retried", 1),
        ("&minDuration=100", 1),
        ("&serviceName=ratings&minDuration=5&maxDuration=10", 1),
        ("&serviceName=ratings&minDuration=11", 0),
        ("&limit=1", 1),
        ("&lookback=500", 1),
    ] {
        let found = get(&traces, &format!("/api/v2/traces?endTs=2100{query}")).await;
        assert_eq!(found.as_array().unwrap().len(), expect, "{query}: {found}");
    }
    assert_eq!(get(&traces, "/api/v2/traces?endTs=2100").await[0][0]["name"], "other");
    assert_eq!(get(&traces, "/api/v2/traces?endTs=500").await, json!([]));
}

#[tokio::test]
async fn dependencies_count_each_call_once() {
    let traces = filled().await;
    let links = get(&traces, "/api/v2/dependencies?endTs=2100").await;
    let expect = json!([
        {"parent": "gateway", "child": "reviews", "callCount": 1, "errorCount": 1},
        {"parent": "reviews", "child": "mysql", "callCount": 1},
    ]);
    assert_eq!(links, expect);
}

#[tokio::test]
async fn what_is_no_report_is_refused() {
    let traces = Traces::new(&Registry::new());
    for body in ["", "{}", "[{}]", "[{\"traceId\": 7, \"id\": \"1\"}]", "nonsense"] {
        let report = Request::post("/api/v2/spans").body(Body::from(body)).unwrap();
        assert_eq!(call(&traces, report).await.0, StatusCode::BAD_REQUEST, "{body}");
    }
    let large = "x".repeat(6 << 20);
    let report = Request::post("/api/v2/spans").body(Body::from(large)).unwrap();
    assert_eq!(call(&traces, report).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(get(&traces, "/api/v2/services").await, json!([]));
}
