//! HTTP/1 heads through two sidecars arrive as they were written: order, spelling, duplicates,
//! trailers, over an HTTP/1 hop and over an HTTP/2 one, and beside stock Envoy nothing of ours shows.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use weft_testkit::peer;

use crate::{
    harness::Flavor,
    pairs::{HTTP_PROXY_PORT, Hop, Pair},
};

const REQUEST: &str = "POST /p?q HTTP/1.1\r\nX-CustomID: 1\r\nHOST: server:8080\r\nSOAPAction: \"x\"\r\n\
                       x-customid: 2\r\nAccept: */*\r\nX-CustomID: 3\r\nTRANSFER-Encoding: chunked\r\n\
                       zuLetzt: \u{e9}\r\n\r\n2\r\nhi\r\n0\r\nX-TrailerID: 1\r\nx-trailerid: 2\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 299 So So\r\nX-Answer-ID: 1\r\nSet-Cookie: a\r\nx-answer-id: 2\r\n\
                        SET-COOKIE: b\r\nTransfer-Encoding: chunked\r\nX-Last: z\r\n\r\n\
                        2\r\nok\r\n0\r\nX-EndID: 1\r\nx-endid: 2\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn heads_arrive_as_they_were_written() {
    for policy in ["DO_NOT_UPGRADE", "UPGRADE"] {
        let mesh = Mesh::start(Flavor::Weft, Flavor::Weft, policy).await;
        let (request, response) = mesh.exchange().await;
        same_lines(policy, REQUEST, &request);
        // The reason phrase has no place in HTTP/2.
        let expect = match policy {
            "UPGRADE" => RESPONSE.replace("299 So So", "299 "),
            _ => RESPONSE.to_owned(),
        };
        same_lines(policy, &expect, &response);
        // Again on the connections that are open now.
        same_lines(policy, REQUEST, &mesh.exchange().await.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_envoy_never_shows_our_spelling_list() {
    if peer::envoy("stock_envoy_never_shows_our_spelling_list").is_none() {
        return;
    }
    for (client, server) in [(Flavor::Weft, Flavor::Envoy), (Flavor::Envoy, Flavor::Weft)] {
        let mesh = Mesh::start(client, server, "UPGRADE").await;
        let (request, response) = mesh.exchange().await;
        for text in [&request, &response] {
            assert!(!text.to_lowercase().contains("x-weft-"), "{client:?} to {server:?}: {text}");
        }
        assert!(request.to_lowercase().contains("\r\nsoapaction: \"x\"\r\n"), "{request}");
        assert!(response.to_lowercase().contains("\r\nx-answer-id: 1\r\n"), "{response}");
    }
}

/// The lines of `sent` are in `got`, as they were and in their order. Others may stand between.
fn same_lines(what: &str, sent: &str, got: &str) {
    let lines: Vec<&str> = sent.split("\r\n").collect();
    let mut rest = got.split("\r\n");
    for line in &lines {
        assert!(rest.any(|other| other == *line), "{what}: {line:?} is not in its place:\n{got}");
    }
}

/// Two sidecars and an application that is the test itself.
struct Mesh {
    pair: Pair,
    app: TcpListener,
}

impl Mesh {
    async fn start(client: Flavor, server: Flavor, policy: &str) -> Mesh {
        let app = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
        let port = app.local_addr().expect("a bound socket has an address").port();
        let policy = format!("connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}");
        let pair = Pair::between(client, server, Hop::Mtls, [port, port], Some(&policy)).await;
        Mesh { pair, app }
    }

    /// Sends the request; gives what the application and the client got.
    async fn exchange(&self) -> (String, String) {
        let to = SocketAddr::new(self.pair.client_ip, HTTP_PROXY_PORT);
        let mut client = TcpStream::connect(to).await.expect("the sidecar listens");
        client.write_all(REQUEST.as_bytes()).await.expect("written");
        let serve = async {
            let (mut stream, _) = self.app.accept().await.expect("the server's sidecar connects");
            let request = message(&mut stream).await;
            stream.write_all(RESPONSE.as_bytes()).await.expect("written");
            request
        };
        let (request, response) = tokio::join!(serve, message(&mut client));
        (request, response)
    }
}

/// One chunked message with its trailers.
async fn message(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let limit = std::time::Duration::from_secs(15);
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        let end = text.find("\r\n0\r\n").and_then(|at| text[at..].find("\r\n\r\n"));
        if end.is_some() {
            return text;
        }
        let more = tokio::time::timeout(limit, stream.read_buf(&mut read)).await;
        let more = more.unwrap_or_else(|_| panic!("nothing more came: {text}"));
        assert!(more.is_ok_and(|count| count > 0), "it ended early: {text}");
    }
}
