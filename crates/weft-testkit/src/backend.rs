//! Backends that say what they received: HTTP/1 and HTTP/2 on one port, and a TCP echo.
//!
//! Every backend answers on the address given; dropping it stops it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

/// A running backend.
pub struct Backend {
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Requests (HTTP) or connections (TCP) served so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

/// An HTTP/1 and HTTP/2 server that answers with JSON: its name, and method, path, version,
/// headers and body length of what it received. `/status/NNN` answers with that status; a gRPC
/// request gets its own messages back, then `grpc-status: 0` and `x-backend` as trailers.
pub async fn http(name: &str, address: &str) -> Backend {
    let listener = TcpListener::bind(address).await.expect("the backend's address is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let served = Arc::new(AtomicU64::new(0));
    let (name, count) = (name.to_owned(), served.clone());
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            // What is measured through a proxy must not wait for a delayed acknowledgement.
            let _ = stream.set_nodelay(true);
            let (name, count) = (name.clone(), count.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    count.fetch_add(1, Ordering::Relaxed);
                    answer(name.clone(), request)
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Backend { address, served, task }
}

async fn answer(name: String, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    if head.headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(GRPC)) {
        return Ok(echo(&name, body));
    }
    let received = body.collect().await.map(http_body_util::Collected::to_bytes);
    Ok(describe(&name, &head, received.unwrap_or_default().len()))
}

const GRPC: &[u8] = b"application/grpc";

/// Each message goes back as it comes, in every mode of call.
fn echo(name: &str, messages: Incoming) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-backend", HeaderValue::from_str(name).expect("backend names are plain"));
    // As a stream it has no known length: with one, HTTP/1 leaves no room for trailers.
    let messages = StreamBody::new(BodyStream::new(messages));
    let body = messages.with_trailers(std::future::ready(Some(Ok(trailers))));
    let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
    response.body(BoxBody::new(body)).expect("a valid response")
}

fn describe(name: &str, head: &http::request::Parts, body_bytes: usize) -> Response<Body> {
    let status = head
        .uri
        .path()
        .strip_prefix("/status/")
        .and_then(|code| code.parse().ok())
        .and_then(|code| StatusCode::from_u16(code).ok())
        .unwrap_or(StatusCode::OK);
    let bodiless = head.method == http::Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let text = match bodiless {
        true => String::new(),
        false => told(name, head, body_bytes),
    };
    let response = Response::builder().status(status).header("x-backend", name);
    let body = Full::new(text.into()).map_err(|never: Infallible| match never {});
    response.body(BoxBody::new(body)).expect("a valid response")
}

/// What arrived, as JSON.
fn told(name: &str, head: &http::request::Parts, body_bytes: usize) -> String {
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    json!({
        "name": name,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(ToString::to_string),
        "authority": head.uri.authority().map(ToString::to_string),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "bodyBytes": body_bytes,
    })
    .to_string()
}

/// A TCP server that sends `GREETING\n` and then echoes every byte.
pub async fn tcp_echo(greeting: &str, address: &str) -> Backend {
    let listener = TcpListener::bind(address).await.expect("the backend's address is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let served = Arc::new(AtomicU64::new(0));
    let (greeting, count) = (format!("{greeting}\n"), served.clone());
    let task = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            count.fetch_add(1, Ordering::Relaxed);
            let greeting = greeting.clone();
            tokio::spawn(async move {
                if stream.write_all(greeting.as_bytes()).await.is_err() {
                    return;
                }
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Backend { address, served, task }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::client::{self, Wire};

    #[tokio::test]
    async fn the_backend_speaks_both_versions() {
        let backend = http("one", "127.0.0.1:0").await;
        for (wire, version) in [(Wire::H1, "HTTP/1.1"), (Wire::H2, "HTTP/2.0")] {
            let reply = client::send(
                wire,
                backend.address,
                Method::POST,
                "/a?b=c",
                &[("x-one", "1")],
                "four".into(),
            )
            .await
            .expect("the backend answers");
            let body = reply.json();
            assert_eq!(body["version"], version);
            assert_eq!(body["bodyBytes"], 4);
        }
        assert_eq!(backend.served(), 2);
    }
}
