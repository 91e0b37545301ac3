//! gRPC streams under SIGTERM of a proxy on their way: who leaves says GOAWAY, takes new calls until
//! callers have heard, and stays until the streams have ended as their server ends them.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_testkit::wait;

use crate::cast::place;
use crate::grpc_core::{GATEWAY_PORT, SIDECAR_PORT, world};
use crate::harness::{self, Mesh, Proxy};

/// How long one step may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Listeners close soon, streams are given more time than the test takes.
const LEAVING: [&str; 2] = ["--drain-time=300ms", "--termination-grace=10m"];
/// After this message a feed ends with a status of its own.
const LAST: u32 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn streams_outlive_the_sigterm_of_every_proxy_on_their_way() {
    let [client_ip, server_ip, bare_ip, gateway_ip] = [(); 4].map(|()| harness::address());
    let app = App::start().await;
    let mut yaml = world(client_ip, server_ip, bare_ip, gateway_ip, app.address.port());
    yaml += PERMISSIVE;
    let mesh = Mesh::start(&yaml).await;
    let mut server = mesh.proxy_with(&place("server", server_ip), &LEAVING).await;
    let mut client = mesh.proxy_with(&place("client", client_ip), &LEAVING).await;
    let mut gateway = mesh.proxy_with(&place("gateway", gateway_ip), &LEAVING).await;
    let sidecar = (SocketAddr::new(client_ip, SIDECAR_PORT), "server:8082");
    let from_outside = (SocketAddr::new(gateway_ip, GATEWAY_PORT), "core.example");
    let direct = (SocketAddr::new(server_ip, 8082), "server:8082");
    for (to, authority) in [sidecar, from_outside, direct] {
        wait::until("a call to get through", LIMIT, || async move {
            answered(to, authority).await.then_some(())
        })
        .await;
    }
    app.outlived(&mut gateway, from_outside, &[]).await;
    // Its own clients hear of it, and those of the sidecar before it notice nothing.
    app.outlived(&mut server, direct, &[sidecar]).await;
    server = mesh.proxy_with(&place("server", server_ip), &LEAVING).await;
    wait::until("a call to get through", LIMIT, || async move {
        answered(sidecar.0, sidecar.1).await.then_some(())
    })
    .await;
    app.outlived(&mut client, sidecar, &[]).await;
    drop(server);
}

const PERMISSIVE: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: server, namespace: default}
spec: {selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}}
";

/// A gRPC server whose feeds go on when told to.
struct App {
    address: SocketAddr,
    /// The number of the last message of every feed.
    fed: watch::Sender<u32>,
    _task: JoinSet<()>,
}

impl App {
    async fn start() -> App {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
        let address = listener.local_addr().expect("bound");
        let fed = watch::Sender::new(0);
        let feeds = fed.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, feeds.clone()));
            }
        });
        App { address, fed, _task: task }
    }

    /// Streams through `proxy` go on after its SIGTERM, and it leaves when they have ended. Its
    /// clients hear GOAWAY; `unaware` are ways on which another proxy is in between.
    async fn outlived(
        &self,
        proxy: &mut Proxy,
        way: (SocketAddr, &str),
        unaware: &[(SocketAddr, &str)],
    ) {
        self.fed.send_replace(0);
        let mut calls = Vec::new();
        for (to, authority) in [&[way], unaware].concat() {
            calls.push(Calls::open(to, authority).await);
        }
        self.each_goes_on(&mut calls, 1).await;
        proxy.process().terminate();
        calls[0].hears_goaway().await;
        for number in 2..LAST {
            self.each_goes_on(&mut calls, number).await;
        }
        assert!(answered(way.0, way.1).await, "a caller that has not heard yet is turned away");
        self.each_goes_on(&mut calls, LAST).await;
        let process = proxy.process();
        assert!(process.ended().is_none(), "it left its streams: {}", process.output());
        for one in calls {
            one.end().await;
        }
        let status = process.wait(LIMIT);
        assert!(status.success(), "it ended with {status}: {}", process.output());
    }

    async fn each_goes_on(&self, calls: &mut [Calls], number: u32) {
        self.fed.send_replace(number);
        for one in calls {
            one.go_on(number).await;
        }
    }
}

async fn serve(tcp: TcpStream, fed: watch::Sender<u32>) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let head = Response::builder().header("content-type", "application/grpc");
        let head = head.body(()).expect("a head");
        let Ok(send) = respond.send_response(head, false) else { continue };
        match request.uri().path() {
            "/t.T/Feed" => _ = streams.spawn(feed(send, fed.subscribe())),
            _ => _ = streams.spawn(chat(request.into_body(), send)),
        }
    }
}

/// Server streaming: one message for each number.
async fn feed(mut send: SendStream<Bytes>, mut fed: watch::Receiver<u32>) {
    let mut sent = 0;
    while sent < LAST {
        let Ok(number) = fed.wait_for(|number| *number > sent).await.map(|number| *number) else {
            return;
        };
        sent = number;
        if send.send_data(message(number), false).is_err() {
            return;
        }
    }
    let _ = send.send_trailers(status("9", "no more of it"));
}

/// Bidirectional: what comes goes back.
async fn chat(mut receive: RecvStream, mut send: SendStream<Bytes>) {
    while let Some(Ok(data)) = receive.data().await {
        let _ = receive.flow_control().release_capacity(data.len());
        if send.send_data(data, false).is_err() {
            return;
        }
    }
    let _ = send.send_trailers(status("0", ""));
}

fn status(code: &'static str, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    trailers
}

fn message(number: u32) -> Bytes {
    Bytes::from([&[0, 0, 0, 0, 4][..], &number.to_be_bytes()].concat())
}

/// A stream of either kind on one connection of a client.
struct Calls {
    connection: SendRequest<Bytes>,
    say: SendStream<Bytes>,
    chat: RecvStream,
    feed: RecvStream,
}

impl Calls {
    async fn open(to: SocketAddr, authority: &str) -> Calls {
        let mut connection = connect(to).await.expect("the proxy listens");
        let (response, say) =
            connection.send_request(call(authority, "Chat"), false).expect("sent");
        let chat = opened(response).await;
        let (response, mut ask) =
            connection.send_request(call(authority, "Feed"), false).expect("sent");
        ask.send_data(message(0), true).expect("sent");
        let feed = opened(response).await;
        Calls { connection, say, chat, feed }
    }

    async fn go_on(&mut self, number: u32) {
        self.say.send_data(message(number), false).expect("the chat goes on");
        for stream in [&mut self.chat, &mut self.feed] {
            assert_eq!(next(stream, 9).await, message(number));
        }
    }

    async fn hears_goaway(&mut self) {
        let told = async {
            while self.connection.clone().ready().await.is_ok() {
                // The connection itself learns of it in a task of its own.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, told).await.expect("GOAWAY");
    }

    async fn end(mut self) {
        self.say.send_data(Bytes::new(), true).expect("the chat goes on");
        for (stream, expect) in
            [(&mut self.chat, ["0", ""]), (&mut self.feed, ["9", "no more of it"])]
        {
            assert!(next(stream, 1).await.is_empty(), "more came than was sent");
            let trailers = stream.trailers().await.expect("a whole stream").expect("with a status");
            let got =
                ["grpc-status", "grpc-message"].map(|name| trailers[name].to_str().expect("text"));
            assert_eq!(got, expect);
        }
    }
}

async fn connect(to: SocketAddr) -> Option<SendRequest<Bytes>> {
    let stream = TcpStream::connect(to).await.ok()?;
    let (send, connection) = h2::client::handshake(stream).await.ok()?;
    tokio::spawn(connection);
    send.ready().await.ok()
}

fn call(authority: &str, method: &str) -> Request<()> {
    let request = Request::post(format!("http://{authority}/t.T/{method}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    request.body(()).expect("a head")
}

async fn opened(response: h2::client::ResponseFuture) -> RecvStream {
    let response = tokio::time::timeout(LIMIT, response).await.expect("in time").expect("answered");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("grpc-status"), "{response:?}");
    response.into_body()
}

/// Whether a chat without messages is answered by the server.
async fn answered(to: SocketAddr, authority: &str) -> bool {
    let Some(mut send) = connect(to).await else { return false };
    let Ok((response, _)) = send.send_request(call(authority, "Chat"), true) else { return false };
    let Ok(response) = response.await else { return false };
    let Ok(Some(trailers)) = response.into_body().trailers().await else { return false };
    trailers.get("grpc-status").is_some_and(|status| status == "0")
}

/// The next `length` bytes; fewer at the end.
async fn next(stream: &mut RecvStream, length: usize) -> Bytes {
    let mut read = Vec::new();
    while read.len() < length {
        let data = tokio::time::timeout(LIMIT, stream.data()).await.expect("in time");
        let Some(data) = data else { break };
        let data = data.expect("the stream goes on");
        let _ = stream.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    read.into()
}
