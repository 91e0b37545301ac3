//! gRPC-Web: the same bytes to Weft and to stock Envoy, the same bytes back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use weft_testkit::client::Wire;
use weft_testkit::peer;

use super::grpc::{FAILING, Said, ask, closed_port, failing_app, filter, ways_to_fail};
use super::stock::Stock;
use super::*;

fn filters() -> Value {
    json!([
        filter("grpc_web", "GrpcWeb"),
        filter("fault", "HTTPFault"),
        filter("cors", "Cors"),
        filter("router", "Router"),
    ])
}

fn cors() -> Value {
    json!({"envoy.filters.http.cors": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allowOriginStringMatch": [{"exact": "https://page.example"}],
        "allowMethods": "POST",
        "allowHeaders": "content-type,x-grpc-web",
        "exposeHeaders": "grpc-status,grpc-message",
        "maxAge": "3600",
    }})
}

fn setup() -> Setup {
    Setup {
        hcm: json!({"generateRequestId": false, "httpFilters": filters()}),
        host: json!({"typedPerFilterConfig": cors()}),
        cluster: h2_cluster(),
        ..Setup::default()
    }
}

fn message(text: &str) -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    message.extend_from_slice(text.as_bytes());
    message
}

/// A gRPC application, and one that is none, by path. It sees no trace of gRPC-Web.
fn grpc_app(mesh: Rc<Mesh>) {
    tokio::task::spawn_local(async move {
        loop {
            let stream = mesh.app().await.stream;
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::task::spawn_local(answer(request, respond));
                }
            });
        }
    });
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (head, mut body) = request.into_parts();
    let mut received = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        received.extend_from_slice(&data);
    }
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    let response = http::Response::builder();
    let grpc = || http::Response::builder().header("content-type", "application/grpc+proto");
    let accepted = head.headers["grpc-accept-encoding"].clone();
    match head.uri.path() {
        "/a.B/Unary" => {
            let head = grpc().header("x-accepted", accepted).body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(received.into(), false).unwrap();
            stream.send_trailers(trailers("0")).unwrap();
        }
        "/a.B/Stream" => {
            let mut stream = respond.send_response(grpc().body(()).unwrap(), false).unwrap();
            let all: Vec<u8> =
                ["one", "", "three and more"].iter().copied().flat_map(message).collect();
            for part in all.chunks(4) {
                stream.send_data(Bytes::copy_from_slice(part), false).unwrap();
                tokio::task::yield_now().await;
            }
            stream.send_trailers(trailers("7")).unwrap();
        }
        "/a.B/TrailersOnly" => {
            let head = grpc().header("grpc-status", "5").header("grpc-message", "gone%21");
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
        "/a.B/Html" => {
            let head = response.header("content-type", "text/html").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data("<p>100% \u{e9}~</p>\n".into(), true).unwrap();
        }
        "/a.B/Down" => {
            let head = response.status(503).header("content-type", "text/plain").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data("down".into(), true).unwrap();
        }
        "/a.B/Empty" => {
            respond.send_response(response.status(429).body(()).unwrap(), true).unwrap();
        }
        other => panic!("{other}"),
    }
}

fn trailers(status: &str) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    trailers.insert("grpc-message", "well%21".parse().unwrap());
    trailers.insert("x-key-bin", "AQID".parse().unwrap());
    trailers
}

const PATHS: [&str; 6] =
    ["/a.B/Unary", "/a.B/Stream", "/a.B/TrailersOnly", "/a.B/Html", "/a.B/Down", "/a.B/Empty"];

#[test]
fn answers_are_envoys_byte_for_byte() {
    let Some(binary) = peer::envoy("grpc_web::answers_are_envoys_byte_for_byte") else { return };
    run(setup(), |mesh| async move {
        grpc_app(mesh.clone());
        let envoy = Stock::start(&binary, &mesh).await;
        let plain: &'static [u8] = message("hello").leak();
        let text: &'static [u8] = STANDARD.encode(plain).into_bytes().leak();
        let origin = ("origin", "https://page.example");
        let mut wrong = Vec::new();
        for (kind, accept, body) in [
            ("application/grpc-web", "*/*", plain),
            ("application/grpc-web+proto", "application/grpc-web+proto", plain),
            ("application/grpc-web-text", "application/grpc-web-text", text),
            ("application/grpc-web-text+proto", "application/grpc-web-text+proto", text),
            ("application/grpc-web-text", "application/grpc-web", text),
            ("application/grpc-web", "application/grpc-web-text", plain),
            ("application/grpc-web-text", "application/grpc-web-text", b"!!!!"),
            ("application/grpc-web-text", "application/grpc-web-text", b"AAAAA"),
        ] {
            for (path, wire) in PATHS.iter().flat_map(|path| [(path, Wire::H1), (path, Wire::H2)]) {
                let headers = [("content-type", kind), ("accept", accept), origin];
                let ours = ask(mesh.address, wire, path, &headers, body).await;
                let theirs = ask(envoy.address, wire, path, &headers, body).await;
                if ours != theirs {
                    wrong.push(format!(
                        "{wire:?} {path} {headers:?}\n  weft  {ours:?}\n  envoy {theirs:?}"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"7\""];
        mesh.expect_requests(&labels, 12).await;
    });
}

#[test]
fn local_replies_are_envoys() {
    let Some(binary) = peer::envoy("grpc_web::local_replies_are_envoys") else { return };
    let (_held, closed) = closed_port();
    let mut setup = ways_to_fail(closed);
    merge(&mut setup.hcm, &json!({"httpFilters": filters()}));
    run(setup, |mesh| async move {
        tokio::task::spawn_local(failing_app(mesh.clone()));
        let envoy = Stock::start(&binary, &mesh).await;
        let mut wrong = Vec::new();
        // Envoy loses the status of these two: it says what stands for 504 and 200.
        let better = ["/duration", "/abort-grpc"];
        for path in FAILING.into_iter().filter(|path| !better.contains(path)) {
            for wire in [Wire::H1, Wire::H2] {
                let headers = [("content-type", "application/grpc-web+proto"), ("accept", "*/*")];
                let mut ours = ask(mesh.address, wire, path, &headers, b"").await;
                let theirs = ask(envoy.address, wire, path, &headers, b"").await;
                let status = |line: &String| line.starts_with("grpc-status");
                if !theirs.headers.iter().any(status) {
                    // Envoy leaves errors without a text to the HTTP status; we say both.
                    ours.headers.retain(|line| !status(line));
                }
                if ours != theirs {
                    wrong.push(format!("{wire:?} {path}\n  weft  {ours:?}\n  envoy {theirs:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        for (path, status) in [("/duration", "grpc-status: 4"), ("/abort-grpc", "grpc-status: 8")] {
            let headers = [("content-type", "application/grpc-web")];
            let Said { headers, .. } = ask(mesh.address, Wire::H1, path, &headers, b"").await;
            assert!(headers.contains(&status.to_owned()), "{path} {headers:?}");
        }
    });
}

#[test]
fn a_preflight_is_answered_here() {
    run(setup(), |mesh| async move {
        let mut client = mesh.client().await;
        client
            .send(
                "OPTIONS /a.B/Unary HTTP/1.1\r\nHost: app\r\nOrigin: https://page.example\r\n\
                 Access-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: content-type,x-grpc-web\r\n\r\n",
            )
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("access-control-allow-origin: https://page.example\r\n"), "{head}");
        assert!(
            head.contains("access-control-allow-headers: content-type,x-grpc-web\r\n"),
            "{head}"
        );
        mesh.expect_no_app().await;
    });
}
