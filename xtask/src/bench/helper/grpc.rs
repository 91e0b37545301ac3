//! A gRPC echo server and a closed-loop gRPC client, both on the `h2` crate: what wrk and h2load
//! cannot do is bodies in both directions and messages on open streams.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};

/// Windows large enough that flow control is the proxy's, not ours.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Paths below this answer with so many bytes as one message after the other; all others echo.
const DOWNLOAD: &str = "/bench.Bench/Download/";
const ECHO: &str = "/bench.Bench/Echo";
const PART: usize = 16 * 1024;

/// How a client loads.
#[derive(Clone, Copy)]
pub struct Load {
    pub connections: u32,
    pub streams: u32,
    /// Of a message, without its five bytes of prefix.
    pub bytes: usize,
    pub seconds: u32,
}

pub async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let mut connection = h2::server::Builder::new()
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(1000)
                .handshake::<_, Bytes>(stream)
                .await?;
            while let Some(call) = connection.accept().await {
                let (request, mut reply) = call?;
                let head = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .expect("a response of constants");
                let send = reply.send_response(head, false)?;
                tokio::task::spawn_local(async move {
                    let path = request.uri().path().strip_prefix(DOWNLOAD);
                    match path.and_then(|size| size.parse().ok()) {
                        Some(size) => download(size, send).await,
                        None => echo(request.into_body(), send).await,
                    }
                });
            }
            anyhow::Ok(())
        });
    }
}

/// Every byte back, as it comes.
async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) -> anyhow::Result<()> {
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        // The clients wait for what they sent: what is queued here is bounded by that.
        send.send_data(part, false)?;
    }
    finish(send)
}

async fn download(size: usize, mut send: SendStream<Bytes>) -> anyhow::Result<()> {
    let mut part = BytesMut::new();
    put_message(&mut part, PART - 5);
    let part = part.freeze();
    for _ in 0..size.div_ceil(PART) {
        let mut left = part.clone();
        while !left.is_empty() {
            send.reserve_capacity(left.len());
            let capacity = std::future::poll_fn(|context| send.poll_capacity(context)).await;
            let room = capacity.context("the stream is closed")??;
            send.send_data(left.split_to(room.min(left.len())), false)?;
        }
    }
    finish(send)
}

fn finish(mut send: SendStream<Bytes>) -> anyhow::Result<()> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    Ok(send.send_trailers(trailers)?)
}

fn put_message(buf: &mut BytesMut, bytes: usize) {
    buf.put_u8(0);
    buf.put_u32(bytes as u32);
    buf.put_bytes(b'x', bytes);
}

/// A connection to `port`, driven by a task of its own.
pub async fn connect(port: u16) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, Bytes>(stream)
        .await?;
    tokio::task::spawn_local(async move {
        // What is wrong with the connection shows on its streams.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Opens a call; its answer's head must be well.
pub struct Call {
    pub send: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

impl Call {
    pub async fn open(sender: &SendRequest<Bytes>, host: &str, path: &str) -> anyhow::Result<Call> {
        let mut sender = sender.clone().ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, send) = sender.send_request(request, false)?;
        Ok(Call { send, response })
    }

    pub fn download_path(bytes: usize) -> String {
        format!("{DOWNLOAD}{bytes}")
    }

    /// The answer's body and the way to send more.
    pub async fn answered(self) -> anyhow::Result<(SendStream<Bytes>, RecvStream)> {
        let response = self.response.await?;
        ensure!(response.status() == StatusCode::OK, "answered with {}", response.status());
        let status = response.headers().get("grpc-status");
        ensure!(status.is_none_or(|status| status == "0"), "grpc-status {status:?}");
        Ok((self.send, response.into_body()))
    }
}

/// Reads `bytes` of a body.
pub async fn read(body: &mut RecvStream, bytes: usize) -> anyhow::Result<()> {
    let mut got = 0;
    while got < bytes {
        let part = body.data().await.context("the stream ended early")??;
        got += part.len();
        body.flow_control().release_capacity(part.len())?;
    }
    Ok(())
}

/// One unary call to its end.
pub async fn unary(sender: &SendRequest<Bytes>, host: &str, message: &Bytes) -> anyhow::Result<()> {
    let mut call = Call::open(sender, host, ECHO).await?;
    call.send.send_data(message.clone(), true)?;
    let (_, mut body) = call.answered().await?;
    read(&mut body, message.len()).await?;
    let trailers = body.trailers().await?.context("no trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "not grpc-status 0");
    Ok(())
}

/// A message of so many bytes with its prefix.
pub fn message(bytes: usize) -> Bytes {
    let mut message = BytesMut::new();
    put_message(&mut message, bytes);
    message.freeze()
}

pub async fn measure(port: u16, host: &str, load: Load) -> anyhow::Result<()> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    let message = message(load.bytes);
    let end = Instant::now() + Duration::from_secs(load.seconds.into());
    let mut tasks = Vec::new();
    for _ in 0..load.connections {
        let sender = connect(port).await?;
        for _ in 0..load.streams {
            let (sender, host, message) = (sender.clone(), host.to_owned(), message.clone());
            let latencies = Rc::clone(&latencies);
            tasks.push(tokio::task::spawn_local(async move {
                stream_messages(&sender, &host, &message, end, &latencies).await
            }));
        }
    }
    for task in tasks {
        task.await??;
    }
    super::print_latencies(latencies.take())
}

/// One message goes out when the one before has come back.
async fn stream_messages(
    sender: &SendRequest<Bytes>,
    host: &str,
    message: &Bytes,
    end: Instant,
    latencies: &RefCell<Vec<Duration>>,
) -> anyhow::Result<()> {
    let mut call = Call::open(sender, host, ECHO).await?;
    // Some proxies pass the head on only with the first message.
    call.send.send_data(message.clone(), false)?;
    let (mut send, mut body) = call.answered().await?;
    read(&mut body, message.len()).await?;
    while Instant::now() < end {
        let begun = Instant::now();
        send.send_data(message.clone(), false)?;
        read(&mut body, message.len()).await?;
        latencies.borrow_mut().push(begun.elapsed());
    }
    send.send_data(Bytes::new(), true)?;
    Ok(())
}
