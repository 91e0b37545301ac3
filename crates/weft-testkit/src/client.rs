//! Plain clients: HTTP/1.1 over one connection each, HTTP/2 with prior knowledge.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// No test request may take longer.
const LIMIT: Duration = Duration::from_secs(15);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The header as text, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON, null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Which protocol a request is sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    H1,
    H2,
}

/// GET over HTTP/1.1 on a fresh connection. A `host` header among `headers` is the authority.
pub async fn get(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Reply> {
    send(Wire::H1, to, Method::GET, path, headers, Bytes::new()).await
}

/// One request on a fresh connection.
pub async fn send(
    wire: Wire,
    to: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<Reply> {
    let request = request(wire, to, method, path, headers, body)?;
    tokio::time::timeout(LIMIT, exchange(wire, to, request)).await.context("request timed out")?
}

fn request(
    wire: Wire,
    to: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let authority = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"))
        .map_or_else(|| to.to_string(), |(_, value)| (*value).to_owned());
    let mut builder = Request::builder().method(method);
    builder = match wire {
        Wire::H1 => builder.uri(path).header("host", &authority),
        Wire::H2 => builder.uri(format!("http://{authority}{path}")),
    };
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        builder = builder.header(*name, *value);
    }
    Ok(builder.body(Full::new(body))?)
}

async fn exchange(
    wire: Wire,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Reply> {
    Connection::open(wire, TcpStream::connect(to).await?).await?.exchange(request).await
}

/// One connection, kept and used for many requests.
pub struct Connection {
    sender: Sender,
    address: SocketAddr,
}

enum Sender {
    H1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    H2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Connects in plaintext.
    pub async fn connect(wire: Wire, to: SocketAddr) -> anyhow::Result<Self> {
        let mut connection = Self::open(wire, TcpStream::connect(to).await?).await?;
        connection.address = to;
        Ok(connection)
    }

    /// Speaks over a stream that is already connected (TLS, say).
    pub async fn open<S>(wire: Wire, stream: S) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let sender = match wire {
            Wire::H1 => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection);
                Sender::H1(sender)
            }
            Wire::H2 => {
                let executor = TokioExecutor::new();
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(executor, io).await?;
                tokio::spawn(connection);
                Sender::H2(sender)
            }
        };
        Ok(Self { sender, address: SocketAddr::from(([127, 0, 0, 1], 80)) })
    }

    /// Whether the connection takes another request: false when the server said it ends.
    pub async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// GET on this connection; an error means that the connection is gone.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, headers, Bytes::new()).await
    }

    /// One request on this connection; an error means that the connection is gone.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Reply> {
        let wire = match self.sender {
            Sender::H1(_) => Wire::H1,
            Sender::H2(_) => Wire::H2,
        };
        let request = request(wire, self.address, method, path, headers, body)?;
        tokio::time::timeout(LIMIT, self.exchange(request)).await.context("request timed out")?
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Reply> {
        let response = match &mut self.sender {
            Sender::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::H2(sender) => sender.send_request(request).await?,
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        })
    }
}
