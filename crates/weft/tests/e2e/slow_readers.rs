//! A reader that takes nothing holds its writer back, in bounded memory, on every pair of protocols:
//! {HTTP/1, HTTP/2} from the client x {HTTP/1, HTTP/2} to the application, downloads and uploads,
//! over mTLS between Weft and Weft, and with stock Envoy on either side.
//!
//! A writer counts as held back once none of its bytes moved while requests made the round through
//! the same proxies, each of which has one worker: whoever wanted to read on had its turn.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};
use weft_testkit::{
    client::{self, Wire},
    peer,
};

use crate::{
    harness::{Flavor, Proxy},
    pairs::{HTTP_PROXY_PORT, Hop, Pair},
};

/// What is there to be sent: far more than all buffers of the kernel on the way hold. Bytes.
const WHOLE: u64 = 160 << 20;
/// What one of our proxies may grow by: eight streams' buffers and windows, what TLS sets aside, and
/// what the allocator keeps. Bytes.
const GROWTH_MAX: u64 = 16 << 20;
/// Round trips without a byte after which a writer has stopped.
const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(30);
/// What is read of a download in the end.
const MORE: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn hold_writers_back_between_weft_and_weft() {
    held_back(Flavor::Weft, Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_writers_back_between_weft_and_envoy() {
    if peer::envoy("hold_writers_back_between_weft_and_envoy").is_some() {
        held_back(Flavor::Weft, Flavor::Envoy).await;
        held_back(Flavor::Envoy, Flavor::Weft).await;
    }
}

async fn held_back(near: Flavor, far: Flavor) {
    let downloads = Writers::default();
    let app = app(downloads.clone()).await;
    let pair = Pair::between(near, far, Hop::Mtls, [app, app], None).await;
    let to = SocketAddr::new(pair.client_ip, HTTP_PROXY_PORT);
    let ways: Vec<Way> = [Wire::H1, Wire::H2]
        .into_iter()
        .flat_map(|wire| ["server:8080", "server:8081"].map(|host| Way { to, wire, host }))
        .collect();
    for way in &ways {
        way.round_trip().await;
    }
    let base = [resident(&pair.client), resident(&pair.server)];

    let (mut readers, mut uploads) = (Vec::new(), Vec::new());
    for (index, way) in ways.iter().enumerate() {
        readers.push(way.download(index).await);
        uploads.push(way.upload().await);
    }
    let sent = || -> Vec<u64> {
        let all = downloads.sent.iter().chain(uploads.iter().map(|upload: &Upload| &upload.sent));
        all.map(|sent| sent.load(Ordering::SeqCst)).collect()
    };
    let mut before = Vec::new();
    while before != sent() {
        before = sent();
        for _ in 0..ROUNDS {
            for way in &ways {
                way.round_trip().await;
            }
        }
    }
    let now = [resident(&pair.client), resident(&pair.server)];
    let grown = [0, 1].map(|side| now[side].saturating_sub(base[side]));
    println!(
        "{near:?} to {far:?}: KiB sent {:?}",
        before.iter().map(|sent| sent >> 10).collect::<Vec<_>>()
    );
    println!("{near:?} to {far:?}: grown by {:?} KiB", grown.map(|grown| grown >> 10));
    for (sent, way) in before.iter().zip(ways.iter().chain(&ways)) {
        assert!(*sent > 0 && *sent < WHOLE, "{way:?}: {sent} bytes were taken");
    }
    for (flavor, grown) in [near, far].into_iter().zip(grown) {
        assert!(flavor == Flavor::Envoy || grown < GROWTH_MAX, "{grown} bytes more");
    }
    // Whoever reads again gets on.
    for mut reader in readers {
        let mut read = 0;
        while read < MORE {
            let frame = tokio::time::timeout(LIMIT, reader.body.frame()).await.expect("in time");
            let frame = frame.expect("there is more").expect("nobody gave up");
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
    }
}

fn resident(proxy: &Proxy) -> u64 {
    match proxy {
        Proxy::Weft { process, .. } => process.resident_bytes(),
        Proxy::Envoy(envoy) => envoy.process.resident_bytes(),
    }
}

/// A client's protocol, and the host whose application speaks HTTP/1 (8080) or HTTP/2 (8081).
#[derive(Debug, Clone, Copy)]
struct Way {
    to: SocketAddr,
    wire: Wire,
    host: &'static str,
}

/// A response of which nothing is read, with the connection it comes on.
struct Reader {
    body: Incoming,
    _sender: Sender,
}

struct Upload {
    sent: Arc<AtomicU64>,
    _sender: Sender,
}

type Out = Either<Full<Bytes>, Counted>;

enum Sender {
    H1(hyper::client::conn::http1::SendRequest<Out>),
    H2(hyper::client::conn::http2::SendRequest<Out>),
}

impl Way {
    async fn round_trip(&self) {
        let headers = [("host", self.host)];
        let reply = client::send(self.wire, self.to, Method::GET, "/ok", &headers, Bytes::new());
        let reply = reply.await.unwrap_or_else(|error| panic!("{self:?}: {error:#}"));
        assert_eq!(reply.status, 200, "{self:?}: {}", reply.text());
    }

    async fn download(&self, index: usize) -> Reader {
        let mut sender = self.connect().await;
        let request =
            self.request(Method::GET, &format!("/flood/{index}"), Either::Left(Full::default()));
        let response = sender.send(request);
        let response = tokio::time::timeout(LIMIT, response).await.expect("in time");
        Reader { body: response.expect("answered").into_body(), _sender: sender }
    }

    async fn upload(&self) -> Upload {
        let mut sender = self.connect().await;
        let sent = Arc::new(AtomicU64::new(0));
        let body = Counted { sent: sent.clone(), left: WHOLE };
        let response = sender.send(self.request(Method::PUT, "/stall", Either::Right(body)));
        // Never answered; the connection's own task sends.
        tokio::spawn(response);
        Upload { sent, _sender: sender }
    }

    fn request(&self, method: Method, path: &str, body: Out) -> Request<Out> {
        let request = Request::builder().method(method);
        let request = match self.wire {
            Wire::H1 => request.uri(path).header("host", self.host),
            Wire::H2 => request.uri(format!("http://{}{path}", self.host)),
        };
        request.body(body).expect("a sound request")
    }

    async fn connect(&self) -> Sender {
        let stream = TokioIo::new(TcpStream::connect(self.to).await.expect("the sidecar listens"));
        match self.wire {
            Wire::H1 => {
                let (sender, connection) =
                    hyper::client::conn::http1::handshake(stream).await.expect("a connection");
                tokio::spawn(connection);
                Sender::H1(sender)
            }
            Wire::H2 => {
                let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
                let (sender, connection) = made.await.expect("a connection");
                tokio::spawn(connection);
                Sender::H2(sender)
            }
        }
    }
}

impl Sender {
    fn send(
        &mut self,
        request: Request<Out>,
    ) -> Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>> {
        match self {
            Self::H1(sender) => Box::pin(sender.send_request(request)),
            Self::H2(sender) => Box::pin(sender.send_request(request)),
        }
    }
}

/// What each download has sent.
#[derive(Clone, Default)]
struct Writers {
    sent: [Arc<AtomicU64>; 4],
}

/// An application of both versions: `/flood/N` sends all there is, `/stall` reads nothing.
async fn app(writers: Writers) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let writers = writers.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, writers.clone()));
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

async fn answer(request: Request<Incoming>, writers: Writers) -> Result<Response<Out>, Infallible> {
    let path = request.uri().path();
    if path == "/stall" {
        // The request is kept, and with it its body, unread.
        std::future::pending::<()>().await;
    }
    let flood = path.strip_prefix("/flood/").and_then(|index| index.parse::<usize>().ok());
    Ok(Response::new(match flood {
        Some(index) => Either::Right(Counted { sent: writers.sent[index].clone(), left: WHOLE }),
        None => Either::Left(Full::default()),
    }))
}

/// Content that is made as it is taken.
struct Counted {
    sent: Arc<AtomicU64>,
    left: u64,
}

const PIECE: &[u8] = &[b'x'; 16 * 1024];

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= PIECE.len() as u64;
        self.sent.fetch_add(PIECE.len() as u64, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PIECE)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
