//! Endpoints that speak HTTP/2 and fail: what is sent again, where, and what they are told.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// An endpoint that says exactly what the test says, frame by frame.
struct Endpoint(TcpStream);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    content: Vec<u8>,
}

impl Endpoint {
    async fn accept(mesh: &Mesh) -> Endpoint {
        let mut stream = mesh.app().await.stream;
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut endpoint = Endpoint(stream);
        endpoint.send(SETTINGS, 0, 0, &[]).await;
        endpoint
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, content: &[u8]) {
        let mut frame = u32::try_from(content.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(content);
        self.0.write_all(&frame).await.unwrap();
    }

    async fn frame(&mut self) -> Frame {
        let mut head = [0; 9];
        let read = self.0.read_exact(&mut head);
        tokio::time::timeout(PATIENCE, read).await.expect("no frame came").unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut content = vec![0; length as usize];
        self.0.read_exact(&mut content).await.unwrap();
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Frame { kind: head[3], flags: head[4], stream, content }
    }

    /// The next frame that belongs to a request.
    async fn of_request(&mut self) -> Frame {
        loop {
            let frame = self.frame().await;
            if frame.stream != 0 && matches!(frame.kind, DATA | HEADERS | RST_STREAM) {
                return frame;
            }
        }
    }

    /// A whole request; its stream, and its body.
    async fn request(&mut self) -> (u32, String) {
        let mut frame = self.of_request().await;
        assert_eq!(frame.kind, HEADERS);
        let mut body = Vec::new();
        while frame.flags & END_STREAM == 0 {
            frame = self.of_request().await;
            assert_eq!(frame.kind, DATA, "the request was cut: {frame:?}");
            body.extend(&frame.content);
        }
        (frame.stream, String::from_utf8(body).unwrap())
    }

    /// 200, in a byte of HPACK.
    async fn answer(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]).await;
    }

    /// 503: `:status` by its index, the value spelt out.
    async fn busy(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, b"\x08\x03503").await;
    }

    async fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    async fn leave(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()).await;
    }
}

fn retries(retry_on: &str) -> Value {
    json!({"timeout": "0s", "retryPolicy": {"retryOn": retry_on, "numRetries": 2}})
}

fn setup(action: Value) -> Setup {
    Setup { cluster: h2_cluster(), action, ..Setup::default() }
}

async fn expect(client: &mut Raw, status: &str) {
    let head = client.head().await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "expected {status}: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    client.bytes(length.map_or(0, |length| length.parse().unwrap())).await;
}

/// A connection that has carried one request.
async fn used(mesh: &Mesh, client: &mut Raw) -> Endpoint {
    client.send(GET).await;
    let mut endpoint = Endpoint::accept(mesh).await;
    let (stream, _) = endpoint.request().await;
    endpoint.answer(stream).await;
    expect(client, "200").await;
    endpoint
}

#[test]
fn what_an_endpoint_that_goes_away_did_not_take_goes_to_another_connection() {
    run(setup(json!({"timeout": "0s"})), |mesh| async move {
        let mut client = mesh.client().await;
        let mut old = used(&mesh, &mut client).await;
        client.send(POST).await;
        assert_eq!(old.request().await, (3, "body".into()));
        // It says that it has seen the first stream only.
        old.leave(1).await;
        let mut new = Endpoint::accept(&mesh).await;
        assert_eq!(new.request().await, (1, "body".into()));
        new.answer(1).await;
        expect(&mut client, "200").await;
        // Going away from the first request on is the same.
        new.leave(1).await;
        client.send(POST).await;
        let mut newer = Endpoint::accept(&mesh).await;
        newer.request().await;
        newer.leave(0).await;
        let mut newest = Endpoint::accept(&mesh).await;
        newest.request().await;
        newest.answer(1).await;
        expect(&mut client, "200").await;
        mesh.expect_requests(&["response_code=\"200\""], 3).await;
    });
}

#[test]
fn requests_under_way_end_on_a_connection_that_goes_away() {
    run(setup(json!({"timeout": "0s"})), |mesh| async move {
        let mut client = mesh.client().await;
        let mut old = used(&mesh, &mut client).await;
        client.send(POST).await;
        old.request().await;
        old.leave(3).await;
        let mut other = mesh.client().await;
        other.send(GET).await;
        let mut new = Endpoint::accept(&mesh).await;
        new.request().await;
        new.answer(1).await;
        expect(&mut other, "200").await;
        old.answer(3).await;
        expect(&mut client, "200").await;
    });
}

#[test]
fn a_lost_connection_repeats_what_is_idempotent_only() {
    run(setup(json!({"timeout": "0s"})), |mesh| async move {
        let mut client = mesh.client().await;
        let mut old = used(&mesh, &mut client).await;
        client.send(GET).await;
        old.request().await;
        drop(old);
        let mut new = Endpoint::accept(&mesh).await;
        new.request().await;
        new.answer(1).await;
        expect(&mut client, "200").await;

        client.send(POST).await;
        new.request().await;
        drop(new);
        expect(&mut client, "503").await;
        mesh.expect_no_app().await;
        mesh.expect_requests(&["response_flags=\"UC\"", "response_code=\"503\""], 1).await;

        // Closed while nothing is under way, it is in nobody's way.
        let old = used(&mesh, &mut client).await;
        drop(old);
        client.send(POST).await;
        let mut new = Endpoint::accept(&mesh).await;
        assert_eq!(new.request().await, (1, "body".into()));
        new.answer(1).await;
        expect(&mut client, "200").await;
    });
}

#[test]
fn a_refused_stream_is_sent_again_once_and_as_the_policy_says() {
    run(setup(json!({"timeout": "0s"})), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(POST).await;
        let mut endpoint = Endpoint::accept(&mesh).await;
        for stream in [1, 3] {
            assert_eq!(endpoint.request().await, (stream, "body".into()));
            endpoint.reset(stream, REFUSED_STREAM).await;
        }
        expect(&mut client, "503").await;
        mesh.configure(|setup| setup.action = retries("refused-stream"));
        client.send(POST).await;
        for stream in [5, 7, 9] {
            assert_eq!(endpoint.request().await, (stream, "body".into()));
            endpoint.reset(stream, REFUSED_STREAM).await;
        }
        assert_eq!(endpoint.request().await, (11, "body".into()));
        endpoint.answer(11).await;
        expect(&mut client, "200").await;
    });
}

#[test]
fn retries_send_the_body_again_on_the_same_connection() {
    run(setup(retries("5xx")), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(POST).await;
        let mut endpoint = Endpoint::accept(&mesh).await;
        for stream in [1, 3] {
            assert_eq!(endpoint.request().await, (stream, "body".into()));
            endpoint.busy(stream).await;
        }
        assert_eq!(endpoint.request().await, (5, "body".into()));
        endpoint.answer(5).await;
        expect(&mut client, "200").await;
        // Too long to keep.
        let body = "x".repeat(100_000);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
        client.send(format!("{head}{body}")).await;
        let window = 100_000u32.to_be_bytes();
        endpoint.send(8, 0, 0, &window).await;
        endpoint.send(8, 0, 7, &window).await;
        assert_eq!(endpoint.request().await, (7, body));
        endpoint.busy(7).await;
        expect(&mut client, "503").await;
    });
}

#[test]
fn a_try_that_takes_too_long_is_cancelled_and_made_again() {
    let mut action = retries("5xx");
    action["timeout"] = json!("10s");
    action["retryPolicy"]["perTryTimeout"] = json!("0.05s");
    action["retryPolicy"]["numRetries"] = json!(100);
    run(setup(action), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(POST).await;
        let mut endpoint = Endpoint::accept(&mesh).await;
        assert_eq!(endpoint.request().await, (1, "body".into()));
        let cancelled = endpoint.of_request().await;
        assert_eq!((cancelled.kind, cancelled.stream), (RST_STREAM, 1));
        assert_eq!(cancelled.content, CANCEL.to_be_bytes());
        // On a busy machine a later try may be too late, too.
        let answering = async {
            loop {
                let frame = endpoint.of_request().await;
                if frame.flags & END_STREAM != 0 && frame.kind == DATA {
                    assert_eq!(frame.content, b"body");
                    endpoint.answer(frame.stream).await;
                }
            }
        };
        tokio::select! {
            () = expect(&mut client, "200") => {}
            () = answering => unreachable!("it goes on for ever"),
        }
    });
}

#[test]
fn the_route_timeout_cancels_the_stream_and_keeps_the_connection() {
    run(setup(json!({"timeout": "0.05s"})), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut endpoint = Endpoint::accept(&mesh).await;
        endpoint.request().await;
        expect(&mut client, "504").await;
        assert_eq!(endpoint.of_request().await.content, CANCEL.to_be_bytes());
        mesh.configure(|setup| setup.action = json!({"timeout": "0s"}));
        client.send(GET).await;
        let (stream, _) = endpoint.request().await;
        endpoint.answer(stream).await;
        expect(&mut client, "200").await;
    });
}

#[test]
fn a_client_that_leaves_cancels_its_request_and_no_other() {
    run(setup(json!({"timeout": "0s"})), |mesh| async move {
        let mut leaving = mesh.client().await;
        leaving.send(GET).await;
        let mut endpoint = Endpoint::accept(&mesh).await;
        endpoint.request().await;
        let mut staying = mesh.client().await;
        staying.send(GET).await;
        endpoint.request().await;
        drop(leaving);
        let cancelled = endpoint.of_request().await;
        assert_eq!((cancelled.kind, cancelled.stream), (RST_STREAM, 1));
        assert_eq!(cancelled.content, CANCEL.to_be_bytes());
        endpoint.answer(3).await;
        expect(&mut staying, "200").await;
        mesh.expect_requests(&["response_flags=\"DC\""], 1).await;
    });
}

#[test]
fn a_connection_that_may_carry_no_more_makes_room_after_its_last_answer() {
    let mut setup = setup(json!({"timeout": "0s"}));
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    merge(
        &mut setup.cluster,
        &json!({
            "circuitBreakers": {"thresholds": [{"maxConnections": 1}]},
            "typedExtensionProtocolOptions": {options: {"commonHttpProtocolOptions":
                {"maxRequestsPerConnection": 1, "idleTimeout": "7200s"}}},
        }),
    );
    run(setup, |mesh| async move {
        let mut client = mesh.client().await;
        for _ in 0..3 {
            let _open_on_their_side = used(&mesh, &mut client).await;
        }
    });
}
