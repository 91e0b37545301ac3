//! The pages of port 15014 about the recent past, as JSON (`/telemetry/…`).

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use super::window::KEPT;
use super::{FailureRow, Filter, InterfaceRow, ReporterRow, RequestRow, Telemetry, dot};

/// Window where none is asked for. Seconds.
const WINDOW: u64 = 60;

/// The pages, to be mounted.
pub(crate) fn router(telemetry: Telemetry) -> Router {
    Router::new()
        .route("/telemetry/graph", get(graph))
        .route("/telemetry/interfaces", get(interfaces))
        .route("/telemetry/failures", get(failures))
        .route("/telemetry/requests", get(requests))
        .route("/telemetry/reporters", get(reporters))
        .with_state(telemetry)
}

#[derive(Deserialize)]
struct Asked {
    /// Seconds.
    window: Option<u64>,
    namespace: Option<String>,
    service: Option<String>,
    /// `json` or `dot`.
    output: Option<String>,
}

impl Asked {
    fn window(&self) -> u64 {
        self.window.unwrap_or(WINDOW).clamp(1, KEPT)
    }
}

async fn graph(State(telemetry): State<Telemetry>, Query(asked): Query<Asked>) -> Response {
    let graph =
        telemetry.store().graph(telemetry.now(), asked.window(), asked.namespace.as_deref());
    match asked.output.as_deref() {
        None | Some("json") => Json(graph).into_response(),
        Some("dot") => {
            ([(header::CONTENT_TYPE, "text/vnd.graphviz; charset=utf-8")], dot::render(&graph))
                .into_response()
        }
        Some(_) => (StatusCode::BAD_REQUEST, "output is json or dot\n").into_response(),
    }
}

async fn interfaces(
    State(telemetry): State<Telemetry>,
    Query(asked): Query<Asked>,
) -> Json<Vec<InterfaceRow>> {
    let (now, window) = (telemetry.now(), asked.window());
    Json(telemetry.store().interfaces(now, window, asked.service.as_deref()))
}

async fn failures(
    State(telemetry): State<Telemetry>,
    Query(asked): Query<Asked>,
) -> Json<Vec<FailureRow>> {
    let (now, window) = (telemetry.now(), asked.window());
    Json(telemetry.store().failures(now, window, asked.service.as_deref()))
}

async fn requests(
    State(telemetry): State<Telemetry>,
    Query(filter): Query<Filter>,
) -> Json<Vec<RequestRow>> {
    Json(telemetry.records().find(&filter, Telemetry::now_us()))
}

async fn reporters(State(telemetry): State<Telemetry>) -> Json<Vec<ReporterRow>> {
    Json(telemetry.store().reporters(telemetry.now()))
}
