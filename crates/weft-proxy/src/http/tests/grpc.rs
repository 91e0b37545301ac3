//! gRPC above the engine: local replies, deadlines and retries, asked of stock Envoy too.

use bytes::Bytes;
use http::Method as HttpMethod;
use weft_testkit::client::{self, Wire};
use weft_testkit::peer;

use super::stock::Stock;
use super::*;

/// Everything an answer says that Weft and Envoy must agree on.
#[derive(Debug, PartialEq)]
pub(super) struct Said {
    status: u16,
    pub(super) headers: Vec<String>,
    body: String,
    trailers: Vec<String>,
}

/// Differ by clock or by name; Envoy closes connections after some local replies, for no need.
const IGNORED: [&str; 4] = ["connection", "date", "server", "x-envoy-upstream-service-time"];

pub(super) async fn ask(
    to: SocketAddr,
    wire: Wire,
    path: &str,
    headers: &[(&str, &str)],
    body: &'static [u8],
) -> Said {
    let headers: Vec<_> = [("host", "app")].into_iter().chain(headers.iter().copied()).collect();
    let body = Bytes::from_static(body);
    let reply = client::send(wire, to, HttpMethod::POST, path, &headers, body).await;
    let reply = reply.unwrap_or_else(|error| panic!("{wire:?} {path} at {to}: {error:#}"));
    let lines = |map: &http::HeaderMap| {
        let mut lines: Vec<String> = map
            .iter()
            .filter(|(name, _)| !IGNORED.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        lines
    };
    Said {
        status: reply.status,
        headers: lines(&reply.headers),
        body: reply.text(),
        trailers: lines(&reply.trailers),
    }
}

pub(super) fn filter(name: &str, kind: &str) -> Value {
    json!({
        "name": format!("envoy.filters.http.{name}"),
        "typedConfig": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{name}.v3.{kind}"),
        },
    })
}

fn filters() -> Value {
    json!([filter("fault", "HTTPFault"), filter("cors", "Cors"), filter("router", "Router")])
}

fn abort(error: &Value) -> Value {
    let mut abort = json!({"percentage": {"numerator": 100}});
    merge(&mut abort, error);
    json!({"envoy.filters.http.fault": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": abort,
    }})
}

/// One way to fail per path.
pub(super) fn ways_to_fail(closed: SocketAddr) -> Setup {
    let route = |path: &str, action: Value| {
        let mut route = json!({"match": {"prefix": path}});
        merge(&mut route, &action);
        route
    };
    let to = |cluster: &str| json!({"route": {"cluster": cluster, "timeout": "0s"}});
    let direct = |status: u16, body: &str| {
        let body = match body {
            "" => Value::Null,
            body => json!({"inlineString": body}),
        };
        json!({"directResponse": {"status": status, "body": body}})
    };
    let fault = |error: Value| {
        let mut route = to("app");
        merge(&mut route, &json!({"typedPerFilterConfig": abort(&error)}));
        route
    };
    let mut full = cluster("full", &[closed]);
    merge(
        &mut full,
        &json!({"circuitBreakers": {"thresholds": [
            {"maxConnections": 0, "maxPendingRequests": 0, "maxRequests": 0},
        ]}}),
    );
    let mut h2_refused = cluster("h2-refused", &[closed]);
    merge(&mut h2_refused, &h2_cluster());
    Setup {
        hcm: json!({"generateRequestId": false, "httpFilters": filters()}),
        host: json!({"routes": [
            route("/no-cluster", to("missing")),
            route("/not-found-404", json!({"route": {
                "cluster": "missing", "clusterNotFoundResponseCode": "NOT_FOUND",
            }})),
            route("/no-endpoint", to("empty")),
            route("/refused", to("refused")),
            route("/h2-refused", to("h2-refused")),
            route("/overflow", to("full")),
            route("/timeout", json!({"route": {"cluster": "app", "timeout": "0.05s"}})),
            route("/duration", json!({"route": {
                "cluster": "app", "maxStreamDuration": {"maxStreamDuration": "0.05s"},
            }})),
            route("/app", to("app")),
            route("/direct-200", direct(200, "all ~is% w\u{f6}ll\n")),
            route("/direct-400", direct(400, "")),
            route("/direct-401", direct(401, "who?")),
            route("/direct-403", direct(403, "RBAC: access denied")),
            route("/direct-413", direct(413, "Payload Too Large")),
            route("/direct-429", direct(429, "")),
            route("/direct-500", direct(500, "")),
            route("/redirect", json!({"redirect": {"pathRedirect": "/there"}})),
            route("/abort-500", fault(json!({"httpStatus": 500}))),
            route("/abort-503", fault(json!({"httpStatus": 503}))),
            route("/abort-grpc", fault(json!({"grpcStatus": 8}))),
        ]}),
        clusters: vec![cluster("empty", &[]), cluster("refused", &[closed]), h2_refused, full],
        ..Setup::default()
    }
}

pub(super) const FAILING: [&str; 21] = [
    "/nowhere",
    "/no-cluster",
    "/not-found-404",
    "/no-endpoint",
    "/refused",
    "/h2-refused",
    "/overflow",
    "/timeout",
    "/duration",
    "/app/closes",
    "/app/garbage",
    "/direct-200",
    "/direct-400",
    "/direct-401",
    "/direct-403",
    "/direct-413",
    "/direct-429",
    "/direct-500",
    "/redirect",
    "/abort-500",
    "/abort-grpc",
];

/// An HTTP/1 application that fails as the path says.
pub(super) async fn failing_app(mesh: Rc<Mesh>) {
    loop {
        let mut app = mesh.app().await;
        tokio::task::spawn_local(async move {
            let head = app.head().await;
            match head.split(' ').nth(1).unwrap() {
                "/app/closes" => {}
                "/app/garbage" => app.send("what?\r\n\r\n").await,
                _ => drop(app.rest().await),
            }
        });
    }
}

/// A port that refuses connections for as long as the test holds it.
pub(super) fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn local_replies_are_envoys_for_grpc_and_plain_callers() {
    let Some(binary) = peer::envoy("local_replies_are_envoys_for_grpc_and_plain_callers") else {
        return;
    };
    let (_held, closed) = closed_port();
    run(ways_to_fail(closed), |mesh| async move {
        tokio::task::spawn_local(failing_app(mesh.clone()));
        let envoy = Stock::start(&binary, &mesh).await;
        let grpc = [("content-type", "application/grpc+proto"), ("te", "trailers")];
        let plain = [("content-type", "application/json")];
        let mut wrong = Vec::new();
        for path in FAILING {
            for (wire, headers) in [
                (Wire::H2, &grpc[..]),
                (Wire::H1, &grpc[..]),
                (Wire::H2, &plain),
                (Wire::H1, &plain),
            ] {
                let ours = ask(mesh.address, wire, path, headers, b"").await;
                let theirs = ask(envoy.address, wire, path, headers, b"").await;
                if ours != theirs {
                    wrong.push(format!(
                        "{wire:?} {path} {headers:?}\n  weft  {ours:?}\n  envoy {theirs:?}"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// Routes by how they treat `grpc-timeout`. `/istio` and `/istio-limited` are as Istio has them.
fn timeout_routes() -> Setup {
    let route = |path: &str, action: Value| {
        let mut route = json!({"match": {"prefix": path}, "route": {"cluster": "app"}});
        merge(&mut route, &json!({"route": action}));
        route
    };
    let stream = |value: Value| json!({"timeout": "0s", "maxStreamDuration": value});
    Setup {
        host: json!({"routes": [
            route("/ignored", json!({"timeout": "0s"})),
            route("/istio-limited", json!({"timeout": "3s", "maxGrpcTimeout": "3s"})),
            route("/istio", stream(json!({"maxStreamDuration": "0s", "grpcTimeoutHeaderMax": "0s"}))),
            route("/old-open", json!({"timeout": "5s", "maxGrpcTimeout": "0s"})),
            route("/old-offset", json!({"maxGrpcTimeout": "0s", "grpcTimeoutOffset": "0.1s"})),
            route("/old-tries", json!({
                "maxGrpcTimeout": "0s",
                "retryPolicy": {"retryOn": "unavailable", "numRetries": 1, "perTryTimeout": "2s"},
            })),
            route("/new-capped", stream(json!({
                "maxStreamDuration": "60s", "grpcTimeoutHeaderMax": "2s",
                "grpcTimeoutHeaderOffset": "0.1s",
            }))),
            route("/new-plain", stream(json!({"maxStreamDuration": "60s"}))),
        ]}),
        ..Setup::default()
    }
}

/// Answers with the `grpc-timeout` it got; never, if that path is asked for.
async fn timeout_app(mesh: Rc<Mesh>) {
    loop {
        let mut app = mesh.app().await;
        tokio::task::spawn_local(async move {
            loop {
                let head = app.head().await.to_ascii_lowercase();
                if head.contains("/hangs ") {
                    drop(app.rest().await);
                    return;
                }
                let line = head.lines().find_map(|line| line.strip_prefix("grpc-timeout: "));
                let seen = line.unwrap_or("none");
                app.send(format!("HTTP/1.1 200 OK\r\nx-seen: {seen}\r\ncontent-length: 0\r\n\r\n"))
                    .await;
            }
        });
    }
}

const TIMEOUT_ROUTES: [&str; 8] = [
    "/ignored",
    "/istio-limited",
    "/istio",
    "/old-open",
    "/old-offset",
    "/old-tries",
    "/new-capped",
    "/new-plain",
];

#[test]
fn grpc_timeout_is_read_capped_and_told_as_by_envoy() {
    let Some(binary) = peer::envoy("grpc_timeout_is_read_capped_and_told_as_by_envoy") else {
        return;
    };
    let values = [
        "1H",
        "30M",
        "10S",
        "1500m",
        "2999999u",
        "1000000001n",
        "99999999H",
        "5000m",
        // None of these is a timeout.
        "bad",
        "S",
        "1s",
        "123456789S",
        "-1S",
    ];
    run(timeout_routes(), |mesh| async move {
        tokio::task::spawn_local(timeout_app(mesh.clone()));
        let envoy = Stock::start(&binary, &mesh).await;
        let mut wrong = Vec::new();
        for path in TIMEOUT_ROUTES {
            for value in values.iter().copied().map(Some).chain([None]) {
                let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
                headers.extend(value.map(|value| ("grpc-timeout", value)));
                let ours = ask(mesh.address, Wire::H1, path, &headers, b"").await;
                let theirs = ask(envoy.address, Wire::H1, path, &headers, b"").await;
                if ours != theirs {
                    wrong.push(format!("{path} {value:?}\n  weft  {ours:?}\n  envoy {theirs:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn a_callers_deadline_ends_in_deadline_exceeded() {
    run(timeout_routes(), |mesh| async move {
        tokio::task::spawn_local(timeout_app(mesh.clone()));
        for path in ["/istio", "/istio-limited", "/old-open", "/new-capped"] {
            let path = format!("{path}/hangs");
            let headers = [
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("grpc-timeout", "150m"),
            ];
            let said = ask(mesh.address, Wire::H2, &path, &headers, b"").await;
            assert!(said.headers.contains(&"grpc-status: 4".to_owned()), "{path} {said:?}");
        }
        mesh.expect_requests(&["grpc_response_status=\"4\"", "response_flags=\"UT\""], 2).await;
        mesh.expect_requests(&["grpc_response_status=\"4\"", "response_flags=\"DT\""], 2).await;
    });
}

/// The retry conditions that are gRPC statuses.
const RETRIED: [(&str, u8); 5] = [
    ("cancelled", 1),
    ("deadline-exceeded", 4),
    ("resource-exhausted", 8),
    ("internal", 13),
    ("unavailable", 14),
];

fn retry_routes() -> Setup {
    let all = RETRIED.map(|(on, _)| on).join(",");
    let conditions = RETRIED.iter().map(|(on, _)| *on).chain([all.as_str()]);
    let routes: Vec<Value> = conditions
        .enumerate()
        .map(|(index, on)| {
            json!({
                "match": {"prefix": format!("/on-{index}/")},
                "route": {"cluster": "app", "timeout": "0s", "retryPolicy": {
                    "retryOn": on, "numRetries": 2,
                    "retryBackOff": {"baseInterval": "0.001s", "maxInterval": "0.002s"},
                }},
            })
        })
        .collect();
    Setup { host: json!({"routes": routes}), cluster: h2_cluster(), ..Setup::default() }
}

/// `/on-I/now/N` ends with status N at once (trailers only), `/on-I/late/N` after a message.
async fn status_app(mesh: Rc<Mesh>, calls: Rc<std::cell::Cell<usize>>) {
    loop {
        let (stream, _) = mesh.apps[0].accept().await.unwrap();
        let calls = calls.clone();
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                calls.set(calls.get() + 1);
                let path = request.uri().path().to_owned();
                let (kind, status) = path.rsplit_once('/').unwrap();
                let head = http::Response::builder().header("content-type", "application/grpc");
                if kind.ends_with("now") {
                    let head = head.header("grpc-status", status).body(()).unwrap();
                    respond.send_response(head, true).unwrap();
                    continue;
                }
                let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                stream.send_trailers(trailers).unwrap();
            }
        });
    }
}

#[test]
fn retries_on_grpc_statuses_are_envoys() {
    let binary = peer::envoy("retries_on_grpc_statuses_are_envoys");
    run(retry_routes(), |mesh| async move {
        let calls = Rc::new(std::cell::Cell::new(0));
        tokio::task::spawn_local(status_app(mesh.clone(), calls.clone()));
        let envoy = match &binary {
            Some(binary) => Some(Stock::start(binary, &mesh).await),
            None => None,
        };
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        for index in 0..=RETRIED.len() {
            for status in 0..=16 {
                let retried = match RETRIED.get(index) {
                    Some((_, code)) => *code == status,
                    None => RETRIED.iter().any(|(_, code)| *code == status),
                };
                for (kind, attempts) in [("now", if retried { 3 } else { 1 }), ("late", 1)] {
                    let path = format!("/on-{index}/{kind}/{status}");
                    let ours = ask(mesh.address, Wire::H2, &path, &grpc, b"").await;
                    assert_eq!(calls.replace(0), attempts, "{path}");
                    // The last answer is passed on as it is.
                    let said = format!("grpc-status: {status}");
                    assert!(
                        ours.headers.contains(&said) || ours.trailers.contains(&said),
                        "{ours:?}"
                    );
                    let Some(envoy) = &envoy else { continue };
                    assert_eq!(
                        ours,
                        ask(envoy.address, Wire::H2, &path, &grpc, b"").await,
                        "{path}"
                    );
                    assert_eq!(calls.replace(0), attempts, "Envoy: {path}");
                }
            }
        }
    });
}
