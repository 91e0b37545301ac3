//! WebSocket through every pair of versions: HTTP/1's upgrade and HTTP/2's extended CONNECT
//! (RFC 8441), and what asks for a tunnel and gets none.

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use weft_testkit::peer;

use super::stock::Stock;
use super::*;
use crate::limits::H2cUpgrade;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    H1,
    H2,
}

/// A client's key, and what its server says to it (RFC 6455 §1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

fn extended_connect(path: &str, protocol: &'static str) -> http::Request<()> {
    http::Request::connect(format!("http://app{path}"))
        .extension(Protocol::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap()
}

fn setup(app: Speaks) -> Setup {
    let cluster = match app {
        Speaks::H1 => json!({}),
        Speaks::H2 => {
            let mut cluster = h2_cluster();
            let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            cluster["typedExtensionProtocolOptions"][options]["explicitHttpConfig"]["http2ProtocolOptions"] =
                json!({"allowConnect": true});
            cluster
        }
    };
    let hcm = json!({"generateRequestId": false, "http2ProtocolOptions": {"allowConnect": true}});
    Setup { hcm, cluster, ..Setup::default() }
}

/// One end of a tunnel, on either version.
enum Tunnel {
    H1(Raw),
    H2 { send: SendStream<Bytes>, recv: RecvStream, read: Vec<u8> },
}

impl Tunnel {
    async fn send(&mut self, data: &[u8]) {
        match self {
            Tunnel::H1(raw) => raw.send(data).await,
            Tunnel::H2 { send, .. } => {
                let mut data = Bytes::copy_from_slice(data);
                while !data.is_empty() {
                    send.reserve_capacity(data.len());
                    let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                    let part = data.split_to(room.unwrap().unwrap().min(data.len()));
                    send.send_data(part, false).unwrap();
                }
            }
        }
    }

    async fn bytes(&mut self, count: usize) -> String {
        match self {
            Tunnel::H1(raw) => raw.bytes(count).await,
            Tunnel::H2 { recv, read, .. } => {
                while read.len() < count {
                    let data = recv.data().await.expect("ended early").unwrap();
                    recv.flow_control().release_capacity(data.len()).unwrap();
                    read.extend_from_slice(&data);
                }
                String::from_utf8(read.drain(..count).collect()).unwrap()
            }
        }
    }

    async fn end(&mut self) {
        match self {
            Tunnel::H1(raw) => raw.stream.shutdown().await.unwrap(),
            Tunnel::H2 { send, .. } => send.send_data(Bytes::new(), true).unwrap(),
        }
    }

    async fn expect_end(&mut self) {
        match self {
            Tunnel::H1(raw) => assert_eq!(raw.rest().await, ""),
            Tunnel::H2 { recv, read, .. } => {
                assert!(read.is_empty());
                while let Some(data) = recv.data().await {
                    assert!(data.unwrap().is_empty());
                }
            }
        }
    }

    /// Breaks off: a TCP reset, or RST_STREAM with CANCEL.
    fn cut(self) {
        match self {
            Tunnel::H1(raw) => {
                raw.stream.set_zero_linger().unwrap();
            }
            Tunnel::H2 { mut send, .. } => send.send_reset(h2::Reason::CANCEL),
        }
    }

    async fn expect_cut(&mut self) {
        match self {
            Tunnel::H1(raw) => assert_eq!(raw.rest().await, ""),
            Tunnel::H2 { recv, .. } => {
                let error = recv.data().await.expect("not an orderly end").unwrap_err();
                assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
            }
        }
    }
}

/// Opens the tunnel from the client's side; `accept` is what the server said of the client's key.
async fn open(to: SocketAddr, client: Speaks) -> (Tunnel, Option<String>) {
    let stream = TcpStream::connect(to).await.unwrap();
    match client {
        Speaks::H1 => {
            let mut raw = Raw::new(stream);
            raw.send(upgrade("/chat?room=1")).await;
            let head = raw.head().await;
            let lower = head.to_lowercase();
            assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
            assert!(lower.contains("\r\nupgrade: websocket\r\n"), "{head}");
            assert!(lower.contains("\r\nconnection: upgrade\r\n"), "{head}");
            assert!(!lower.contains("content-length") && !lower.contains("transfer-enc"), "{head}");
            let accept = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("sec-websocket-accept").then(|| value.to_owned())
            });
            (Tunnel::H1(raw), accept)
        }
        Speaks::H2 => {
            let mut send = handshake(stream).await;
            let request = extended_connect("/chat?room=1", "websocket");
            let (response, send) = send.send_request(request, false).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("connection"));
            assert!(!response.headers().contains_key("upgrade"));
            let accept = response.headers().get("sec-websocket-accept");
            let accept = accept.map(|value| value.to_str().unwrap().to_owned());
            (Tunnel::H2 { send, recv: response.into_body(), read: Vec::new() }, accept)
        }
    }
}

/// A client that has seen that the proxy takes extended CONNECT.
async fn handshake(stream: TcpStream) -> h2::client::SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    while !send.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    send
}

/// Accepts the tunnel at the application; its server does not know the client's key over HTTP/2.
async fn answer(mesh: &Mesh, app: Speaks) -> Tunnel {
    let mut raw = mesh.app().await;
    match app {
        Speaks::H1 => {
            let head = raw.head().await;
            let lower = head.to_lowercase();
            assert!(head.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{head}");
            for line in ["host: app", "upgrade: websocket", "connection: upgrade"] {
                assert!(lower.contains(&format!("\r\n{line}\r\n")), "{head}");
            }
            assert!(lower.contains("\r\nsec-websocket-protocol: chat\r\n"), "{head}");
            assert!(!lower.contains("content-length") && !lower.contains("transfer-enc"), "{head}");
            assert!(!head.contains(":protocol"), "{head}");
            raw.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            ))
            .await;
            Tunnel::H1(raw)
        }
        Speaks::H2 => {
            let mut server = h2::server::Builder::new();
            server.enable_connect_protocol();
            let mut connection = server.handshake::<_, Bytes>(raw.stream).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
            assert_eq!(request.method(), http::Method::CONNECT);
            assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
            assert_eq!(request.uri().path_and_query().unwrap(), "/chat?room=1");
            assert_eq!(request.uri().authority().unwrap(), "app");
            assert_eq!(request.headers()["sec-websocket-protocol"], "chat");
            assert!(!request.headers().contains_key("content-length"));
            let send = respond.send_response(http::Response::new(()), false).unwrap();
            Tunnel::H2 { send, recv: request.into_body(), read: Vec::new() }
        }
    }
}

/// Talks through one tunnel: both ways, much at once, and ends it one half after the other.
async fn talk(to: SocketAddr, mesh: &Mesh, client_speaks: Speaks, app_speaks: Speaks) {
    let ((mut client, accept), mut app) =
        tokio::join!(open(to, client_speaks), answer(mesh, app_speaks));
    if client_speaks == Speaks::H1 && app_speaks == Speaks::H1 {
        assert_eq!(accept.as_deref(), Some(ACCEPT));
    }
    app.send(b"first").await;
    assert_eq!(client.bytes(5).await, "first");
    for size in [1, 1000, 1_000_000] {
        let data = vec![b'x'; size];
        tokio::join!(client.send(&data), async { assert_eq!(app.bytes(size).await.len(), size) });
        tokio::join!(app.send(&data), async { assert_eq!(client.bytes(size).await.len(), size) });
    }
    client.end().await;
    app.expect_end().await;
    app.send(b"last").await;
    assert_eq!(client.bytes(4).await, "last");
    app.end().await;
    client.expect_end().await;
}

fn pairs(test: impl Fn(Speaks, Speaks)) {
    for app in [Speaks::H1, Speaks::H2] {
        for client in [Speaks::H1, Speaks::H2] {
            println!("client {client:?}, application {app:?}");
            test(client, app);
        }
    }
}

#[test]
fn a_tunnel_crosses_versions() {
    pairs(|client, app| {
        run(setup(app), |mesh| async move {
            talk(mesh.address, &mesh, client, app).await;
            mesh.expect_requests(&["response_code=\"101\"", "response_flags=\"-\""], 1).await;
        });
    });
}

#[test]
fn a_tunnel_crosses_a_hop_between_us_and_envoy() {
    let Some(binary) = peer::envoy("a_tunnel_crosses_a_hop_between_us_and_envoy") else { return };
    // client → Envoy → Weft → application, and client → Weft → Envoy → application, HTTP/2 between.
    run(setup(Speaks::H1), |second| async move {
        let envoy_second = Stock::start(&binary, &second).await;
        for (next, first_is_envoy) in [(second.address, true), (envoy_second.address, false)] {
            let first = Mesh::start(setup(Speaks::H2)).await;
            *first.addresses.borrow_mut() = vec![next];
            first.configure(|_| {});
            let stock = match first_is_envoy {
                true => Some(Stock::start(&binary, &first).await),
                false => None,
            };
            let to = stock.as_ref().map_or(first.address, |stock| stock.address);
            for client in [Speaks::H1, Speaks::H2] {
                println!("{client:?}, Envoy first: {first_is_envoy}");
                halves(to, &second, client).await;
            }
        }
    });
}

/// As [`talk`], without half-closing, which Envoy does not pass on.
async fn halves(to: SocketAddr, mesh: &Mesh, speaks: Speaks) {
    let ((mut client, accept), mut app) = tokio::join!(open(to, speaks), answer(mesh, Speaks::H1));
    assert_eq!(accept.as_deref(), Some(ACCEPT));
    let data = vec![b'x'; 300_000];
    tokio::join!(client.send(&data), async { assert_eq!(app.bytes(300_000).await.len(), 300_000) });
    tokio::join!(app.send(&data), async { assert_eq!(client.bytes(300_000).await.len(), 300_000) });
}

#[test]
fn a_client_over_http_1_gets_the_answer_to_its_key_from_us_if_the_server_gave_none() {
    run(setup(Speaks::H2), |mesh| async move {
        let ((_client, accept), _app) =
            tokio::join!(open(mesh.address, Speaks::H1), answer(&mesh, Speaks::H2));
        assert_eq!(accept.as_deref(), Some(ACCEPT));
    });
}

#[test]
fn a_tunnel_that_breaks_on_one_side_breaks_on_the_other() {
    pairs(|client_speaks, app_speaks| {
        for client_breaks in [true, false] {
            run(setup(app_speaks), |mesh| async move {
                let ((mut client, _), mut app) =
                    tokio::join!(open(mesh.address, client_speaks), answer(&mesh, app_speaks));
                if client_breaks {
                    client.cut();
                    app.expect_cut().await;
                } else {
                    app.cut();
                    client.expect_cut().await;
                }
                mesh.expect_requests(&["response_code=\"101\""], 1).await;
            });
        }
    });
}

async fn refused(mesh: &Mesh, protocol: &'static str) -> (u16, Option<h2::Reason>) {
    let mut send = handshake(mesh.client().await.stream).await;
    let request = extended_connect("/chat?room=1", protocol);
    let (response, mut stream) = send.send_request(request, false).unwrap();
    // The client is early; nobody may take this for a request.
    stream
        .send_data(Bytes::from_static(b"GET /evil HTTP/1.1\r\nHost: app\r\n\r\n"), false)
        .unwrap();
    match response.await {
        Ok(response) => (response.status().as_u16(), None),
        Err(error) => (0, error.reason()),
    }
}

#[test]
fn bytes_of_a_tunnel_that_was_not_opened_reach_nobody() {
    run(setup(Speaks::H1), |mesh| async move {
        for (answer, status) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 404),
            ("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n", 426),
            // Over HTTP/2 any 2xx would be the tunnel's yes.
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 502),
        ] {
            let app = async {
                let mut app = mesh.app().await;
                app.head().await;
                app.send(answer).await;
                assert_eq!(app.rest().await, "", "{answer}");
            };
            let (got, ()) = tokio::join!(refused(&mesh, "websocket"), app);
            assert_eq!(got.0, status, "{got:?}");
        }
    });
}

#[test]
fn a_tunnel_needs_permission_and_an_endpoint_that_opens_one() {
    run(setup(Speaks::H1), |mesh| async move {
        assert_eq!(refused(&mesh, "connect-udp").await, (403, None));
        mesh.configure(|setup| setup.hcm["upgradeConfigs"] = json!([]));
        assert_eq!(refused(&mesh, "websocket").await, (403, None));
        mesh.expect_no_app().await;
    });
    // An endpoint without the setting is not asked.
    run(setup(Speaks::H2), |mesh| async move {
        let (mesh_, requests) = (mesh.clone(), Rc::new(std::cell::Cell::new(0)));
        let seen = requests.clone();
        tokio::task::spawn_local(async move {
            let mut server = h2::server::handshake(mesh_.app().await.stream).await.unwrap();
            while server.accept().await.is_some() {
                seen.set(seen.get() + 1);
            }
        });
        assert_eq!(refused(&mesh, "websocket").await, (502, None));
        let mut client = mesh.client().await;
        client.send(upgrade("/")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 502"));
        assert_eq!(requests.get(), 0);
    });
}

#[test]
fn without_allow_connect_the_setting_is_not_said() {
    run(Setup::default(), |mesh| async move {
        let (mut send, connection) =
            h2::client::handshake(mesh.client().await.stream).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        // After a whole answer the settings are known.
        let get = http::Request::get("http://app/").body(()).unwrap();
        let (response, _) = send.send_request(get, true).unwrap();
        let mut app = mesh.app().await;
        app.head().await;
        app.send(OK).await;
        response.await.unwrap();
        assert!(!send.is_extended_connect_protocol_enabled());
    });
}

#[test]
fn a_101_that_nobody_asked_for_is_no_answer() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .await;
        assert!(client.head().await.starts_with("HTTP/1.1 502"));
    });
}

/// HTTP/1's upgrade to HTTP/2, as Java's client asks for it; windows of 4 KiB.
const H2C: &str = "GET /up HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAABAA\r\n\r\n";

fn h2c_setup(direction: &'static str, h2c_upgrade: H2cUpgrade) -> Setup {
    Setup { direction, limits: Limits { h2c_upgrade, ..Limits::of(1000) }, ..Setup::default() }
}

/// Type, flags, stream and payload of the next frame.
async fn frame(raw: &mut Raw) -> (u8, u8, u8, Vec<u8>) {
    while raw.read.len() < 9 {
        assert!(raw.more().await);
    }
    let length = usize::from(raw.read[1]) << 8 | usize::from(raw.read[2]);
    while raw.read.len() < 9 + length {
        assert!(raw.more().await);
    }
    let head: Vec<u8> = raw.read.drain(..9).collect();
    (head[3], head[4], head[8], raw.read.drain(..length).collect())
}

/// The content of a stream to its end.
async fn content(raw: &mut Raw, stream: u8) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let (kind, flags, id, payload) = frame(raw).await;
        assert!(kind != 3 && kind != 7, "reset or GOAWAY");
        if (kind, id) == (0, stream) {
            content.extend_from_slice(&payload);
        }
        if kind <= 1 && id == stream && flags & 1 == 1 {
            return content;
        }
    }
}

#[test]
fn http_1_is_upgraded_to_http_2_for_the_workloads_own_client() {
    let own = h2c_setup("OUTBOUND", H2cUpgrade::default());
    let any = h2c_setup("INBOUND", H2cUpgrade::Everywhere);
    for setup in [own, any] {
        run(setup, |mesh| async move {
            let mut client = mesh.client().await;
            client.send(H2C).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
            assert!(head.contains("\r\nUpgrade: h2c\r\n"), "{head}");
            // The request is on its way before the client says more.
            let mut app = mesh.app().await;
            let head = app.head().await;
            assert!(head.starts_with("GET /up HTTP/1.1\r\n"), "{head}");
            let lower = head.to_lowercase();
            assert!(!lower.contains("upgrade") && !lower.contains("settings"), "{head}");
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
            // More than the window that came with the request: the rest waits for the client.
            app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{:5000}", "x")).await;
            // Frame sizes below 16 KiB; WINDOW_UPDATE of 4 KiB on the first stream.
            client.send(b"\0\0\x04\x08\0\0\0\0\x01\0\0\x10\0").await;
            assert_eq!(content(&mut client, 1).await.len(), 5000);
            // The next stream is an ordinary one: GET http://app/ by HPACK's static table.
            client.send(b"\0\0\x08\x01\x05\0\0\0\x03\x82\x86\x84\x41\x03app").await;
            assert!(app.head().await.starts_with("GET / HTTP/1.1\r\n"));
            app.send(OK).await;
            assert_eq!(content(&mut client, 3).await, b"ok");
            mesh.expect_requests(&["response_code=\"200\""], 2).await;
        });
    }
}

#[test]
fn an_upgrade_to_http_2_that_does_not_fit_is_an_ordinary_request() {
    let own = || h2c_setup("OUTBOUND", H2cUpgrade::default());
    let post = H2C.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nhi").replace("GET", "POST");
    let twice = H2C.replace("Upgrade: h2c", "Upgrade: h2c\r\nHTTP2-Settings: ");
    let long = format!("HTTP2-Settings: {}", "AAMAAABk".repeat(100));
    for (setup, request) in [
        (h2c_setup("INBOUND", H2cUpgrade::default()), H2C.to_owned()),
        (h2c_setup("OUTBOUND", H2cUpgrade::Never), H2C.to_owned()),
        (own(), post),
        (own(), twice),
        (own(), H2C.replace("Upgrade, HTTP2-Settings", "Upgrade")),
        (own(), H2C.replace("Upgrade, HTTP2-Settings", "HTTP2-Settings")),
        (own(), H2C.replace("AAMAAABkAAQAABAA", "no base64!")),
        (own(), H2C.replace("AAMAAABkAAQAABAA", "AAMAAABkAA")),
        // A window beyond 2^31 - 1.
        (own(), H2C.replace("AAMAAABkAAQAABAA", "AAT_____")),
        (own(), H2C.replace("HTTP2-Settings: AAMAAABkAAQAABAA", &long)),
        (own(), H2C.replace("HTTP/1.1", "HTTP/1.0")),
    ] {
        run(setup, |mesh| async move {
            let mut client = mesh.client().await;
            client.send(&request).await;
            let mut app = mesh.app().await;
            let head = app.head().await.to_lowercase();
            assert!(!head.contains("h2c"), "{request}: {head}");
            app.send(OK).await;
            let head = client.head().await;
            assert!(head.contains(" 200 OK\r\n"), "{request}: {head}");
        });
    }
}
