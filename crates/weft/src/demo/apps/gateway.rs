//! gateway: the HTTP front of the article. Calls servicea over HTTP and serviceb over gRPC through
//! its sidecar, handing the trace headers on.
//!
//! `/` both · `/stream?n=N` serviceb streams · `/tcp` tcp-echo · `/plain` the server outside the
//! mesh · any other path goes to servicea

use super::echo::{EchoClient, EchoReply, EchoRequest};
use super::web::{self, HttpClient, Reply};
use super::{App, trace};
use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const SERVICEA: &str = "servicea:8080";
const SERVICEB: &str = "serviceb:10088";
const PLAIN_SERVER: &str = "plain-server:8080";
/// Longest stream one may ask for.
const STREAM_MESSAGES_MAX: u32 = 1000;

#[derive(Clone)]
struct Gateway {
    app: App,
    http: HttpClient,
    serviceb: EchoClient,
}

pub(super) async fn serve(listener: TcpListener, app: App) {
    let serviceb = match EchoClient::new(app.outbound_http, SERVICEB) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "gateway cannot start");
            return;
        }
    };
    let gateway = Gateway { app, http: HttpClient::new(), serviceb };
    web::serve(listener, move |request| answer(gateway.clone(), request)).await;
}

async fn answer(gateway: Gateway, request: Request<Incoming>) -> Reply {
    let context = trace::context(request.headers());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let answered = match request.uri().path() {
        "/" => gateway.front(context).await,
        "/stream" => {
            let n = web::query(&request, "n").and_then(|n| n.parse().ok()).unwrap_or(3);
            gateway.stream(context, n).await
        }
        "/tcp" => gateway.tcp().await,
        "/plain" => gateway.http(PLAIN_SERVER, "plain-server", "/", context).await,
        _ => gateway.http(SERVICEA, "servicea", path, context).await,
    };
    answered.unwrap_or_else(|error| {
        let body = json!({"service": "gateway", "error": format!("{error:#}")});
        web::json_reply(StatusCode::BAD_GATEWAY, &body)
    })
}

impl Gateway {
    /// servicea and serviceb at once. Any failure of either fails the reply.
    async fn front(&self, context: HeaderMap) -> anyhow::Result<Reply> {
        let through = self.app.outbound_http;
        let a = self.http.get(through, SERVICEA, "/", context.clone());
        let b = self.serviceb.unary(request(1), &context);
        let (a, b) = tokio::join!(a, b);
        let (status, a) = a.context("calling servicea")?;
        let b = b.context("calling serviceb")?;
        let body = json!({"service": self.app.service, "servicea": a, "serviceb": shown(&b)});
        Ok(with_version(web::json_reply(status, &body), &a))
    }

    async fn http(
        &self,
        host: &str,
        name: &str,
        path: &str,
        context: HeaderMap,
    ) -> anyhow::Result<Reply> {
        let reply = self.http.get(self.app.outbound_http, host, path, context).await;
        let (status, body) = reply.with_context(|| format!("calling {name}"))?;
        let reply = web::json_reply(status, &json!({"service": self.app.service, name: body}));
        Ok(with_version(reply, &body))
    }

    /// One call of each streaming kind.
    async fn stream(&self, context: HeaderMap, n: u32) -> anyhow::Result<Reply> {
        let n = n.min(STREAM_MESSAGES_MAX);
        let server = self.serviceb.server_stream(request(n), &context).await?;
        let client = self.serviceb.client_stream(vec![request(1); n as usize], &context).await?;
        let both = self.serviceb.both_stream(vec![request(1); n as usize], &context).await?;
        let body = json!({
            "service": self.app.service,
            "server_stream": server.iter().map(shown).collect::<Vec<_>>(),
            "client_stream": shown(&client),
            "both_stream": both.iter().map(shown).collect::<Vec<_>>(),
        });
        Ok(web::json_reply(StatusCode::OK, &body))
    }

    async fn tcp(&self) -> anyhow::Result<Reply> {
        const TEXT: &[u8] = b"hello over tcp";
        let mut stream =
            TcpStream::connect(self.app.outbound_tcp).await.context("calling tcp-echo")?;
        stream.write_all(TEXT).await?;
        stream.shutdown().await?;
        let mut back = Vec::new();
        stream.take(1024).read_to_end(&mut back).await?;
        let status = if back == TEXT { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
        let body = json!({"service": "gateway", "tcp-echo": String::from_utf8_lossy(&back)});
        Ok(web::json_reply(status, &body))
    }
}

fn request(count: u32) -> EchoRequest {
    EchoRequest { message: "hello".into(), count }
}

fn shown(reply: &EchoReply) -> Value {
    json!({
        "service": reply.service,
        "version": reply.version,
        "instance": reply.instance,
        "message": reply.message,
        "headers": reply.headers,
    })
}

fn with_version(mut reply: Reply, servicea: &Value) -> Reply {
    let version = servicea.get("version").and_then(Value::as_str);
    if let Some(version) = version.and_then(|v| HeaderValue::from_str(v).ok()) {
        reply.headers_mut().insert("x-servicea-version", version);
    }
    reply
}
