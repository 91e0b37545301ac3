//! HTTP for the sample applications: a server loop, JSON replies, and a client.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Bodies of the samples are small.
const BODY_BYTES_MAX: usize = 1024 * 1024;

pub(super) type Reply = Response<Full<Bytes>>;

/// Serves HTTP/1.1 and HTTP/2 until the runtime ends.
pub(super) async fn serve<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let handler = Arc::new(handler);
    loop {
        // A failed accept (out of descriptors) passes; the samples have nothing better to do.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let reply = handler(request);
                async move { Ok::<_, Infallible>(reply.await) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is the other side's business.
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

/// The health port: `/health` is 200 as long as the application runs.
pub(super) async fn health(listener: TcpListener) {
    serve(listener, |request| async move {
        match request.uri().path() {
            "/health" => json_reply(StatusCode::OK, &json!({"status": "ok"})),
            _ => not_found(),
        }
    })
    .await;
}

pub(super) fn json_reply(status: StatusCode, body: &Value) -> Reply {
    let mut reply = Response::new(Full::from(format!("{body}\n")));
    *reply.status_mut() = status;
    reply.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    reply
}

pub(super) fn not_found() -> Reply {
    json_reply(StatusCode::NOT_FOUND, &json!({"error": "no such page"}))
}

/// The value of a query parameter.
pub(super) fn query<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v)
}

/// Headers worth showing in a reply: what the mesh added or kept.
pub(super) fn interesting(headers: &HeaderMap) -> Value {
    let mut shown = serde_json::Map::new();
    for (name, value) in headers {
        let name = name.as_str();
        let ours = name.starts_with("x-") || super::trace::HEADERS.contains(&name);
        if ours && !name.starts_with("x-envoy-peer-metadata") || name == "host" {
            shown.insert(name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into());
        }
    }
    Value::Object(shown)
}

/// An HTTP/1.1 client with kept connections.
#[derive(Clone)]
pub(in crate::demo) struct HttpClient(Client<HttpConnector, Full<Bytes>>);

impl HttpClient {
    pub(in crate::demo) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// GET `path` of `host`, sent to `through`. Returns status and JSON body.
    pub(in crate::demo) async fn get(
        &self,
        through: SocketAddr,
        host: &str,
        path: &str,
        headers: HeaderMap,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = Request::get(format!("http://{through}{path}")).body(Full::default())?;
        *request.headers_mut() = headers;
        request.headers_mut().insert("host", host.parse()?);
        let response = self.0.request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the reply: {error}"))?.to_bytes();
        let value = match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(_) => Value::String(String::from_utf8_lossy(&body).trim().to_owned()),
        };
        Ok((status, value))
    }
}
