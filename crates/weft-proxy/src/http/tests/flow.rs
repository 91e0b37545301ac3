//! HTTP/2's flow control and settings from end to end: a reader that stops stops the writer on the
//! other side of the proxy, what lies between is bounded, and nothing of it is lost.

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream, SendStream};

use super::*;

/// What is sent in all. More than every buffer of the kernel on the way, where one side is HTTP/1.
const WHOLE: usize = 24 << 20;
/// Behind an HTTP/2 reader: its window, ours, and what waits in a stream for its turn.
const HELD_H2_MAX: usize = 65_535 + 256 * 1024 + 128 * 1024;
/// Behind an HTTP/1 reader: the buffers of two sockets.
const HELD_H1_MAX: usize = 16 << 20;
/// The writer has stopped when its peer answered so many PINGs without giving it window.
const ROUNDS: usize = 20;

/// Sends what there is window for; returns when no more comes, or all is sent.
async fn fill(stream: &mut SendStream<Bytes>, ping: &mut PingPong, sent: &mut usize) {
    let mut rounds = 0;
    while rounds < ROUNDS && *sent < WHOLE {
        let room = WHOLE - *sent;
        stream.reserve_capacity(room.min(1 << 16));
        let got = std::future::poll_fn(|cx| match stream.poll_capacity(cx) {
            std::task::Poll::Ready(Some(got)) => std::task::Poll::Ready(got.unwrap()),
            _ => std::task::Poll::Ready(0),
        });
        let got = got.await.min(room);
        if got == 0 {
            ping.ping(Ping::opaque()).await.unwrap();
            rounds += 1;
            continue;
        }
        rounds = 0;
        *sent += got;
        stream.send_data(Bytes::from(vec![b'x'; got]), *sent == WHOLE).unwrap();
    }
}

/// Sends the rest as the reader takes it.
async fn finish(stream: &mut SendStream<Bytes>, sent: &mut usize) {
    while *sent < WHOLE {
        stream.reserve_capacity((WHOLE - *sent).min(1 << 16));
        let got = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        let got = got.min(WHOLE - *sent);
        *sent += got;
        stream.send_data(Bytes::from(vec![b'x'; got]), *sent == WHOLE).unwrap();
    }
}

async fn read_all(mut body: RecvStream) -> usize {
    let mut read = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read += data.len();
    }
    read
}

async fn h2_client(mesh: &Mesh) -> (h2::client::SendRequest<Bytes>, PingPong) {
    let (send, mut connection) = h2::client::handshake(mesh.client().await.stream).await.unwrap();
    let ping = connection.ping_pong().unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    (send, ping)
}

/// The application's first request over HTTP/2.
pub(super) async fn h2_app(mesh: &Mesh) -> (RecvStream, h2::server::SendResponse<Bytes>, PingPong) {
    let mut connection = h2::server::handshake(mesh.app().await.stream).await.unwrap();
    let ping = connection.ping_pong().unwrap();
    let (request, respond) = connection.accept().await.unwrap().unwrap();
    tokio::task::spawn_local(async move { while connection.accept().await.is_some() {} });
    (request.into_body(), respond, ping)
}

fn get() -> http::Request<()> {
    http::Request::get("http://app/").body(()).unwrap()
}

fn post() -> http::Request<()> {
    http::Request::post("http://app/").body(()).unwrap()
}

#[test]
fn a_client_that_stops_reading_stops_an_http2_endpoint() {
    run(Setup { cluster: h2_cluster(), ..Setup::default() }, |mesh| async move {
        let (mut send, _ping) = h2_client(&mesh).await;
        let (response, _) = send.send_request(get(), true).unwrap();
        let (_, mut respond, mut ping) = h2_app(&mesh).await;
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        let body = response.await.unwrap().into_body();
        let mut sent = 0;
        fill(&mut stream, &mut ping, &mut sent).await;
        assert!(sent <= HELD_H2_MAX, "{sent} bytes on the way");
        let ((), read) = tokio::join!(finish(&mut stream, &mut sent), read_all(body));
        assert_eq!(read, WHOLE);
    });
}

#[test]
fn an_http1_client_that_stops_reading_stops_an_http2_endpoint() {
    run(Setup { cluster: h2_cluster(), ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
        let (_, mut respond, mut ping) = h2_app(&mesh).await;
        let whole = http::Response::builder().header("content-length", WHOLE).body(()).unwrap();
        let mut stream = respond.send_response(whole, false).unwrap();
        let mut sent = 0;
        fill(&mut stream, &mut ping, &mut sent).await;
        assert!(sent <= HELD_H1_MAX, "{sent} bytes on the way");
        let read = async {
            client.head().await;
            let mut left = WHOLE;
            while left > 0 {
                left -= client.bytes(left.min(1 << 16)).await.len();
            }
        };
        tokio::join!(finish(&mut stream, &mut sent), read);
    });
}

#[test]
fn an_endpoint_that_stops_reading_stops_an_http2_client() {
    run(Setup { cluster: h2_cluster(), ..Setup::default() }, |mesh| async move {
        let (mut send, mut ping) = h2_client(&mesh).await;
        let (response, mut stream) = send.send_request(post(), false).unwrap();
        let (body, mut respond, _ping) = h2_app(&mesh).await;
        let mut sent = 0;
        fill(&mut stream, &mut ping, &mut sent).await;
        assert!(sent <= HELD_H2_MAX, "{sent} bytes on the way");
        let ((), read) = tokio::join!(finish(&mut stream, &mut sent), read_all(body));
        assert_eq!(read, WHOLE);
        respond.send_response(http::Response::new(()), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn an_http1_endpoint_that_stops_reading_stops_an_http2_client() {
    run(Setup::default(), |mesh| async move {
        let (mut send, mut ping) = h2_client(&mesh).await;
        let whole = http::Request::post("http://app/").header("content-length", WHOLE);
        let (response, mut stream) = send.send_request(whole.body(()).unwrap(), false).unwrap();
        let mut app = mesh.app().await;
        app.head().await;
        let mut sent = 0;
        fill(&mut stream, &mut ping, &mut sent).await;
        assert!(sent <= HELD_H1_MAX, "{sent} bytes on the way");
        let read = async {
            let mut left = WHOLE;
            while left > 0 {
                left -= app.bytes(left.min(1 << 16)).await.len();
            }
            app.send(OK).await;
        };
        tokio::join!(finish(&mut stream, &mut sent), read);
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn both_ends_change_their_settings_while_bodies_pass() {
    run(Setup { cluster: h2_cluster(), ..Setup::default() }, |mesh| async move {
        let stream = mesh.client().await.stream;
        let mut builder = h2::client::Builder::new();
        // No header table either way, until the proxy has read otherwise.
        builder.header_table_size(0).initial_window_size(1000);
        let (mut send, mut connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let change = Rc::new(tokio::sync::Notify::new());
        let (changed, and_changed) = (change.clone(), change.clone());
        let client = tokio::task::spawn_local(async move {
            tokio::select! {
                _ = &mut connection => panic!("it ended"),
                () = changed.notified() => connection.set_initial_window_size(100_000).unwrap(),
            }
            let _ = connection.await;
        });
        let (response, mut upload) = send.send_request(post(), false).unwrap();

        let mut builder = h2::server::Builder::new();
        builder.header_table_size(0).initial_window_size(2000);
        let app = mesh.app().await.stream;
        let mut connection = builder.handshake::<_, Bytes>(app).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let app = tokio::task::spawn_local(async move {
            tokio::select! {
                _ = connection.accept() => panic!("one request"),
                () = and_changed.notified() => connection.set_initial_window_size(50_000).unwrap(),
            }
            while connection.accept().await.is_some() {}
        });
        let mut download = respond.send_response(http::Response::new(()), false).unwrap();
        let back = response.await.unwrap().into_body();
        // The first settings have been acknowledged on both sides: a head has passed each.
        change.notify_waiters();
        let (mut up, mut down) = (WHOLE - (2 << 20), WHOLE - (2 << 20));
        let there_and_back = async {
            // The end of the response would end the request.
            let there = read_all(request.into_body()).await;
            finish(&mut download, &mut down).await;
            there
        };
        let ((), there, back) =
            tokio::join!(finish(&mut upload, &mut up), there_and_back, read_all(back));
        assert_eq!((there, back), (2 << 20, 2 << 20));
        client.abort();
        app.abort();
    });
}
