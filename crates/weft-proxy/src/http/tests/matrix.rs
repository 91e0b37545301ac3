//! Every feature of a call in every pair of versions: {HTTP/1, HTTP/2} × {HTTP/1, HTTP/2}.

use bytes::{Bytes, BytesMut};
use weft_http::h1::{BodyDecoder, Decoded, Limits as H1Limits, Parsed, parse_response};
use weft_http::{Frame, Method};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    H1,
    H2,
}

/// What a client got.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    body: Vec<u8>,
    trailer: Option<String>,
}

fn matrix<F: Future<Output = ()>>(test: impl Fn(Rc<Mesh>, Speaks) -> F) {
    for app in [Speaks::H1, Speaks::H2] {
        for client in [Speaks::H1, Speaks::H2] {
            println!("client {client:?}, application {app:?}");
            let cluster = if app == Speaks::H2 { h2_cluster() } else { json!({}) };
            run(Setup { cluster, ..Setup::default() }, |mesh| async {
                tokio::task::spawn_local(echo(mesh.clone(), app));
                test(mesh, client).await;
            });
        }
    }
}

#[test]
fn bodies_and_trailers_come_back() {
    matrix(|mesh, client| async move {
        for size in [0, 1, 1000, 70_000, 3_000_000] {
            let body = vec![b'x'; size];
            let got = call(&mesh, client, "/echo", &body).await;
            assert_eq!(got.status, 200);
            assert!(got.body == body, "{} of {size} bytes came back", got.body.len());
            assert_eq!(got.trailer.as_deref(), Some("sent"), "{size}");
        }
        mesh.expect_requests(&["response_code=\"200\""], 5).await;
    });
}

#[test]
fn calls_run_side_by_side() {
    matrix(|mesh, client| async move {
        let calls = (0..20).map(|_| {
            let mesh = mesh.clone();
            tokio::task::spawn_local(async move { call(&mesh, client, "/echo", b"hello").await })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap().body, b"hello");
        }
        mesh.expect_requests(&["response_code=\"200\""], 20).await;
    });
}

#[test]
fn a_response_cut_short_is_noticed() {
    matrix(|mesh, client| async move {
        let got = call_result(&mesh, client, "/cut", b"").await;
        assert!(got.is_err(), "{got:?}");
        mesh.expect_requests(&["response_code=\"200\""], 1).await;
        mesh.expect_requests(&["response_flags=\"-\""], 0).await;
    });
}

async fn call(mesh: &Mesh, client: Speaks, path: &str, body: &[u8]) -> Got {
    call_result(mesh, client, path, body).await.unwrap()
}

async fn call_result(mesh: &Mesh, client: Speaks, path: &str, body: &[u8]) -> Result<Got, String> {
    match client {
        Speaks::H1 => call_h1(mesh, path, body).await,
        Speaks::H2 => call_h2(mesh, path, body).await,
    }
}

async fn call_h1(mesh: &Mesh, path: &str, body: &[u8]) -> Result<Got, String> {
    let mut client = mesh.client().await;
    let (read, mut write) = client.stream.split();
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for chunk in body.chunks(10_000) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\nx-end: sent\r\n\r\n");
    let send = async {
        // The proxy may have answered and closed already.
        let _ = write.write_all(&request).await;
    };
    tokio::join!(send, read_h1(read, mesh)).1
}

async fn read_h1(mut read: tokio::net::tcp::ReadHalf<'_>, mesh: &Mesh) -> Result<Got, String> {
    let mut buf = BytesMut::new();
    let (head, length, _) = loop {
        match parse_response(&mut buf, &H1Limits::DEFAULT, &Method::Post).unwrap() {
            Parsed::Complete(parsed) => break parsed,
            Parsed::Partial => assert!(read.read_buf(&mut buf).await.unwrap() > 0),
        }
    };
    let mut decoder = BodyDecoder::new(length);
    let mut got = Got { status: head.status, body: Vec::new(), trailer: None };
    loop {
        match decoder.decode(&mut buf).unwrap() {
            Decoded::Frame(Frame::Data(data)) => {
                got.body.extend_from_slice(&data);
                mesh.note_half(&got.body);
            }
            Decoded::Frame(Frame::Trailers(trailers)) => {
                got.trailer = trailers.get("x-end").map(|v| String::from_utf8(v.to_vec()).unwrap());
            }
            Decoded::End => return Ok(got),
            Decoded::NeedMore => match read.read_buf(&mut buf).await {
                Ok(count) if count > 0 => {}
                _ => return Err("cut".into()),
            },
        }
    }
}

async fn call_h2(mesh: &Mesh, path: &str, body: &[u8]) -> Result<Got, String> {
    let stream = mesh.client().await.stream;
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let request = http::Request::post(format!("http://app{path}")).body(()).unwrap();
    let (response, mut stream) = send.ready().await.unwrap().send_request(request, false).unwrap();
    let body = Bytes::copy_from_slice(body);
    let send = async move {
        send_h2(&mut stream, body).await;
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-end", "sent".parse().unwrap());
        let _ = stream.send_trailers(trailers);
    };
    let read = async {
        let response = response.await.map_err(|error| error.to_string())?;
        let mut got = Got { status: response.status().as_u16(), body: Vec::new(), trailer: None };
        let mut stream = response.into_body();
        while let Some(data) = stream.data().await {
            let data = data.map_err(|error| error.to_string())?;
            stream.flow_control().release_capacity(data.len()).unwrap();
            got.body.extend_from_slice(&data);
            mesh.note_half(&got.body);
        }
        let trailers = stream.trailers().await.map_err(|error| error.to_string())?;
        got.trailer =
            trailers.and_then(|map| map.get("x-end").map(|v| v.to_str().unwrap().to_owned()));
        Ok(got)
    };
    let result = tokio::join!(send, read).1;
    driver.abort();
    result
}

async fn send_h2(stream: &mut h2::SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return;
        };
        let part = data.split_to(room.min(data.len()));
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
}

/// An application that sends back what it gets, trailers too; `/cut` breaks off in the middle.
async fn echo(mesh: Rc<Mesh>, app: Speaks) {
    loop {
        let (stream, _) = mesh.apps[0].accept().await.unwrap();
        match app {
            Speaks::H1 => tokio::task::spawn_local(echo_h1(Raw::new(stream))),
            Speaks::H2 => tokio::task::spawn_local(echo_h2(stream, mesh.clone())),
        };
    }
}

async fn echo_h1(mut app: Raw) {
    loop {
        while !app.read.windows(4).any(|window| window == b"\r\n\r\n") {
            if !app.more().await {
                return;
            }
        }
        let head = app.head().await;
        assert!(head.to_lowercase().contains("transfer-encoding: chunked"), "{head}");
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        if head.starts_with("POST /cut") {
            app.send("4\r\nhalf\r\n").await;
            return;
        }
        // Chunks go back as they came; the content has no digits, so the end is unmistakable.
        let end = "0\r\nx-end: sent\r\n\r\n";
        loop {
            while app.read.is_empty() {
                assert!(app.more().await, "the request was cut");
            }
            let ended = app.read.ends_with(end.as_bytes());
            if ended || app.read.len() > end.len() {
                let keep = if ended { 0 } else { end.len() };
                let part = app.take(app.read.len() - keep);
                app.send(part).await;
            } else {
                assert!(app.more().await, "the request was cut");
            }
            if ended {
                break;
            }
            if app.read.len() <= end.len() && !app.read.ends_with(end.as_bytes()) {
                assert!(app.more().await, "the request was cut");
            }
        }
    }
}

async fn echo_h2(stream: TcpStream, mesh: Rc<Mesh>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mesh = mesh.clone();
        tokio::task::spawn_local(async move {
            let cut = request.uri().path() == "/cut";
            let mut body = request.into_body();
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            if cut {
                stream.send_data(Bytes::from_static(b"half"), false).unwrap();
                // The half must leave before the reset: the client says when it has it.
                mesh.half_arrived.notified().await;
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return;
            }
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                send_h2(&mut stream, data).await;
            }
            match body.trailers().await.unwrap() {
                Some(trailers) => stream.send_trailers(trailers).unwrap(),
                None => stream.send_data(Bytes::new(), true).unwrap(),
            }
        });
    }
}
