//! The admin server: readiness, metrics and what this proxy runs, with Envoy's paths. Loopback by
//! default. Reads state others own; changes nothing but the log level and the drain state.

mod certs;
mod clusters;
mod config_dump;
mod listeners;
mod page;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use weft_telemetry::Exposition as Form;

pub(crate) use self::page::Page;
use crate::drain::DrainState;
use crate::runtime::Shared;

/// Admin clients that may be connected at once: a scraper, a probe and a few people.
const CONNECTIONS_MAX: usize = 64;

/// Serves until the runtime ends.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    // Until then an older proxy answers here, and a newer one some day.
    shared.handover.admin_begins().await;
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.handover.admin_ends() => return,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (shared, at_hand) = (shared.clone(), shared.clone());
        tokio::spawn(async move {
            let answered = tokio::sync::Notify::new();
            let service = service_fn(|request| {
                let response = answer(&request, &shared);
                answered.notify_one();
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(tcp), service);
            let mut connection = std::pin::pin!(connection);
            // A client that goes away is its own affair.
            tokio::select! {
                _ = &mut connection => {}
                // Whoever came a moment before the hand-over gets one answer still.
                () = async { at_hand.handover.admin_ends().await; answered.notified().await } => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(slot);
        });
    }
}

type Reply = Response<Page>;

fn answer(request: &Request<Incoming>, shared: &Shared) -> Reply {
    let query = Query(request.uri().query().unwrap_or_default());
    let path = request.uri().path();
    let post = request.method() == Method::POST;
    match (path, post) {
        ("/ready" | "/healthz/ready", _) => ready(shared),
        ("/stats/prometheus" | "/metrics", _) => {
            exposition(shared, crate::status::wanted(request.headers()), None)
        }
        ("/stats", _) if query.get("format") == Some("prometheus") => {
            exposition(shared, Form::Text, None)
        }
        ("/stats", _) => stats(shared, query.get("filter")),
        ("/config_dump", _) => json(&config_dump::dump(shared, query.has("include_eds"))),
        ("/clusters", _) if query.get("format") == Some("json") => json(&clusters::json(shared)),
        ("/clusters", _) => text(StatusCode::OK, clusters::text(shared)),
        ("/listeners", _) if query.get("format") == Some("json") => json(&listeners::json(shared)),
        ("/listeners", _) => text(StatusCode::OK, listeners::text(shared)),
        ("/certs", _) => json(&certs::json(shared)),
        ("/server_info", _) => json(&server_info(shared)),
        ("/logging", true) => logging(shared, &query),
        ("/drain_listeners", true) => {
            shared.drain.advance(DrainState::Draining);
            text(StatusCode::OK, "OK\n".into())
        }
        ("/quitquitquit", true) => {
            shared.drain.advance(DrainState::Closing);
            text(StatusCode::OK, "OK\n".into())
        }
        ("/logging" | "/drain_listeners" | "/quitquitquit", false) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed: use POST\n".into())
        }
        ("/" | "/help", _) => text(StatusCode::OK, HELP.into()),
        _ => text(StatusCode::NOT_FOUND, format!("no such page\n{HELP}")),
    }
}

const HELP: &str = "admin pages:
  /ready, /healthz/ready        200 when serving, 503 before and while draining
  /stats/prometheus             metrics in Prometheus text format
  /stats[?filter=TEXT]          the same, one value a line
  /config_dump[?include_eds]    received configuration, without private keys
  /clusters[?format=json]       clusters, endpoints and their counters
  /listeners[?format=json]      bound addresses
  /certs                        certificates and trust roots
  /server_info                  version, state, node
  /logging?level=LEVEL          (POST) change the log level
  /drain_listeners              (POST) announce that this proxy is leaving
  /quitquitquit                 (POST) exit at once
";

/// 200 when serving, 503 before and while draining.
pub(crate) fn readiness(shared: &Shared) -> Response<Page> {
    ready(shared)
}

fn ready(shared: &Shared) -> Reply {
    match shared.state() {
        "LIVE" => text(StatusCode::OK, "LIVE\n".into()),
        state => text(StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n")),
    }
}

/// All metrics, in this form if we have it; `more` of the same form follows.
pub(crate) fn exposition(shared: &Shared, form: Form, more: Option<Bytes>) -> Reply {
    let form = if shared.tells(form) { form } else { Form::Text };
    let end = match (form, more) {
        (_, Some(more)) => more,
        (Form::OpenMetrics, None) => Bytes::from_static(b"# EOF\n"),
        (Form::Text, None) => Bytes::new(),
    };
    let kind = match form {
        Form::Text => "text/plain; version=0.0.4; charset=utf-8",
        Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
    };
    let page = Page::Metrics { pieces: shared.exposition(form), as_stats: None, end };
    reply(StatusCode::OK, kind, page)
}

fn stats(shared: &Shared, filter: Option<&str>) -> Reply {
    let as_stats = Some(filter.unwrap_or_default().to_owned());
    let pieces = shared.exposition(Form::Text);
    let page = Page::Metrics { pieces, as_stats, end: Bytes::new() };
    reply(StatusCode::OK, "text/plain; charset=utf-8", page)
}

fn server_info(shared: &Shared) -> serde_json::Value {
    serde_json::json!({
        "version": format!("weft/{}", env!("CARGO_PKG_VERSION")),
        "state": shared.state(),
        "uptime_current_epoch": format!("{}s", shared.started.elapsed().as_secs()),
        "node": { "id": shared.node.id, "trust_domain": shared.node.trust_domain },
        "concurrency": shared.workers,
        "pid": std::process::id(),
        "restart_epoch": shared.handover.epoch(),
        "open_connections": shared.drain.open_connections(),
        "command_line_options": shared.options,
    })
}

fn logging(shared: &Shared, query: &Query<'_>) -> Reply {
    let Some(level) = query.get("level") else {
        return text(StatusCode::BAD_REQUEST, "usage: POST /logging?level=LEVEL\n".into());
    };
    match &shared.log_level {
        None => text(StatusCode::NOT_IMPLEMENTED, "logging belongs to the host process\n".into()),
        Some(set) => match set.set(level) {
            Ok(()) => text(StatusCode::OK, format!("level: {level}\n")),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        },
    }
}

fn json(value: &serde_json::Value) -> Reply {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => reply(StatusCode::OK, "application/json", Page::whole(body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Reply {
    reply(status, "text/plain; charset=utf-8", Page::whole(body.into_bytes()))
}

fn reply(status: StatusCode, content_type: &'static str, page: Page) -> Reply {
    let mut reply = Response::new(page);
    *reply.status_mut() = status;
    let value = http::HeaderValue::from_static(content_type);
    reply.headers_mut().insert(http::header::CONTENT_TYPE, value);
    reply
}

/// `a=b&c`; values are plain names here, so nothing is decoded.
struct Query<'q>(&'q str);

impl<'q> Query<'q> {
    fn pairs(&self) -> impl Iterator<Item = (&'q str, &'q str)> {
        self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    fn get(&self, name: &str) -> Option<&'q str> {
        self.pairs().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}
