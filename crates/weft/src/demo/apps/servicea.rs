//! servicea: HTTP. Says which version answered, and can be slow or fail on request.
//!
//! `/` · `/delay?ms=N` · `/status/CODE`

use super::App;
use super::web::{self, Reply};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use std::time::Duration;
use tokio::net::TcpListener;

/// Longest delay one may ask for.
const DELAY_MS_MAX: u64 = 60_000;

pub(super) async fn serve(listener: TcpListener, app: App) {
    web::serve(listener, move |request| answer(app.clone(), request)).await;
}

async fn answer(app: App, request: Request<Incoming>) -> Reply {
    if let Some(ms) = web::query(&request, "ms").and_then(|ms| ms.parse::<u64>().ok()) {
        tokio::time::sleep(Duration::from_millis(ms.min(DELAY_MS_MAX))).await;
    }
    let status = match request.uri().path().strip_prefix("/status/") {
        Some(code) => StatusCode::from_bytes(code.as_bytes()).unwrap_or(StatusCode::BAD_REQUEST),
        None => StatusCode::OK,
    };
    let body = json!({
        "service": app.service,
        "version": app.version,
        "instance": app.instance,
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "headers": web::interesting(request.headers()),
    });
    let mut reply = web::json_reply(status, &body);
    reply.headers_mut().insert("x-servicea-version", HeaderValue::from_static(app.version));
    reply
}
