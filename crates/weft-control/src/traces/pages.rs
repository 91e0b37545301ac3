//! Zipkin's v2 API.

use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Traces;
use super::links::links;
use super::query::{LOOKBACK_MS, Query};
use super::span::{Span, trace_id};
use super::store::Trace;

/// Largest report. Zipkin's own senders stop at 5 MB.
const REPORT_BYTES_MAX: usize = 5 << 20;
/// Spans of one report.
const REPORT_SPANS_MAX: usize = 50_000;

/// The API, to be mounted.
pub(crate) fn router(traces: Traces) -> Router {
    Router::new()
        .route("/api/v2/spans", post(report).get(span_names))
        .route("/api/v2/services", get(services))
        .route("/api/v2/remoteServices", get(remote_services))
        .route("/api/v2/traces", get(search))
        .route("/api/v2/trace/{id}", get(trace))
        .route("/api/v2/traceMany", get(trace_many))
        .route("/api/v2/dependencies", get(dependencies))
        .route("/api/v2/autocompleteKeys", get(async || Json(json!([]))))
        .route("/api/v2/autocompleteValues", get(async || Json(json!([]))))
        .route("/health", get(async || Json(json!({"status": "UP"}))))
        .layer(DefaultBodyLimit::max(REPORT_BYTES_MAX))
        .with_state(traces)
}

async fn report(State(traces): State<Traces>, body: Bytes) -> Response {
    let spans: Vec<Span> = match serde_json::from_slice(&body) {
        Ok(spans) => spans,
        Err(error) => {
            traces.0.refused.inc();
            return refuse(format!("no list of Zipkin v2 spans: {error}"));
        }
    };
    let count = spans.len() as u64;
    let sound: Vec<Span> =
        spans.into_iter().take(REPORT_SPANS_MAX).filter_map(Span::sound).collect();
    let mut store = traces.store();
    let taken = sound.into_iter().filter_map(|span| store.add(span).then_some(())).count() as u64;
    drop(store);
    traces.0.taken.add(taken);
    traces.0.refused.add(count - taken);
    StatusCode::ACCEPTED.into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfService {
    service_name: Option<String>,
}

async fn services(State(traces): State<Traces>) -> Json<Value> {
    Json(json!(traces.store().names(Span::service)))
}

async fn remote_services(
    State(traces): State<Traces>,
    Parameters(of): Parameters<OfService>,
) -> Response {
    names(&traces, of, Span::remote_service)
}

async fn span_names(
    State(traces): State<Traces>,
    Parameters(of): Parameters<OfService>,
) -> Response {
    names(&traces, of, |span| span.name.as_deref())
}

fn names(traces: &Traces, of: OfService, name: impl Fn(&Span) -> Option<&str>) -> Response {
    let Some(service) = of.service_name.map(|service| service.to_lowercase()) else {
        return refuse("serviceName is missing".to_owned());
    };
    let store = traces.store();
    let found = store.names(|span| name(span).filter(|_| span.service() == Some(&service)));
    Json(json!(found)).into_response()
}

async fn search(State(traces): State<Traces>, Parameters(query): Parameters<Query>) -> Json<Value> {
    let store = traces.store();
    Json(query.find(&store, now_ms()).into_iter().map(spans).collect())
}

async fn trace(State(traces): State<Traces>, Path(id): Path<String>) -> Response {
    let Some(id) = trace_id(&id) else {
        return refuse(format!("{id} is not a trace id: 16 or 32 hexadecimal digits"));
    };
    match traces.store().trace(&id) {
        Some(trace) => Json(spans(trace)).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no trace {id}\n")).into_response(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Many {
    trace_ids: String,
}

async fn trace_many(
    State(traces): State<Traces>,
    Parameters(many): Parameters<Many>,
) -> Json<Value> {
    let store = traces.store();
    let ids = many.trace_ids.split(',').filter_map(|id| trace_id(id.trim()));
    Json(ids.filter_map(|id| store.trace(&id).map(spans)).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct During {
    end_ts: u64,
    lookback: Option<u64>,
}

async fn dependencies(
    State(traces): State<Traces>,
    Parameters(during): Parameters<During>,
) -> Json<Value> {
    let end = during.end_ts.saturating_mul(1000);
    let lookback = during.lookback.unwrap_or(LOOKBACK_MS).saturating_mul(1000);
    let during = end.saturating_sub(lookback)..=end;
    let store = traces.store();
    Json(json!(links(store.newest().filter(|trace| during.contains(&trace.start())))))
}

/// A trace's spans, the earliest first.
fn spans(trace: &Trace) -> Value {
    let mut spans: Vec<&Span> = trace.spans.iter().collect();
    spans.sort_by_key(|span| span.timestamp);
    json!(spans)
}

fn refuse(why: String) -> Response {
    (StatusCode::BAD_REQUEST, why + "\n").into_response()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
