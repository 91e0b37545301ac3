//! The HTTP pages themselves.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use weft_telemetry::Registry as Metrics;
use weft_xds::{ResourceType, json as xds_json};

use super::why::why;
use super::{Explain, ProxyStatus};
use crate::push::{Proxy, Pusher};
use crate::world::World;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    pub(super) pusher: Arc<Pusher>,
    pub(super) world: World,
    metrics: Metrics,
    pub(super) explain: Option<Explain>,
}

impl Pages {
    /// Pages over a running pusher.
    pub fn new(
        pusher: Arc<Pusher>,
        world: World,
        metrics: Metrics,
        explain: Option<Explain>,
    ) -> Self {
        Self { pusher, world, metrics, explain }
    }

    /// The routes, to be served or mounted.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(index))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/debug/syncz", get(syncz))
            .route("/debug/registryz", get(registryz))
            .route("/debug/configz", get(configz))
            .route("/debug/gateway_api", get(gateway_api))
            .route("/debug/config_dump", get(config_dump))
            .route("/debug/analyzez", get(analyzez))
            .route("/debug/why", get(why))
            .with_state(self)
    }
}

pub(crate) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let stop = shutdown.cancelled_owned();
    let served = axum::serve(listener, router).with_graceful_shutdown(stop).await;
    if let Err(error) = served {
        tracing::error!(%error, "the status server ended");
    }
}

/// What a person sees at the status address: the proxies, and where the other pages are.
async fn index(State(pages): State<Pages>) -> Html<String> {
    let snapshot = pages.world.snapshot();
    let proxies: Vec<ProxyStatus> =
        pages.pusher.proxies().iter().map(|proxy| ProxyStatus::of(proxy)).collect();
    // Names come from proxies: the table is text, not markup.
    let table = super::table(&proxies).replace('&', "&amp;").replace('<', "&lt;");
    let (services, workloads) = (snapshot.services().count(), snapshot.workloads().count());
    Html(format!(
        "<!doctype html><meta charset=utf-8><title>Weft control plane</title>\
         <h1>Weft control plane</h1>\
         <p>{services} services, {workloads} workloads, {} proxies connected.\
         <pre>{table}</pre>\
         <p><a href=/debug/syncz>/debug/syncz</a> · <a href=/debug/registryz>/debug/registryz</a> · \
         <a href=/debug/configz>/debug/configz</a> · \
         <a href=/debug/gateway_api>/debug/gateway_api</a> · \
         <a href=/telemetry/graph>/telemetry/graph</a> · \
         <a href=/telemetry/interfaces>/telemetry/interfaces</a> · \
         <a href=/telemetry/failures>/telemetry/failures</a> · \
         <a href=/telemetry/requests>/telemetry/requests</a> · <a href=/metrics>/metrics</a> · \
         <a href=/ready>/ready</a>\n",
        proxies.len()
    ))
}

async fn ready(State(pages): State<Pages>) -> Response {
    match pages.pusher.is_ready() {
        true => (StatusCode::OK, "ready\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the configuration is still being read\n")
            .into_response(),
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut text = Vec::new();
    pages.metrics.render_prometheus(&mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn syncz(State(pages): State<Pages>) -> axum::Json<Vec<ProxyStatus>> {
    let proxies = pages.pusher.proxies();
    axum::Json(proxies.iter().map(|proxy| ProxyStatus::of(proxy)).collect())
}

/// Services and how many endpoints each has.
async fn registryz(State(pages): State<Pages>) -> axum::Json<Value> {
    let snapshot = pages.world.snapshot();
    let service = |service: &Arc<weft_model::MeshService>| {
        json!({
            "host": service.host,
            "namespace": service.namespace,
            "addresses": service.addresses.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>(),
            "allocated": snapshot.allocated_addresses(service),
            "ports": service.ports.iter().map(|port| json!({
                "number": port.number,
                "name": port.name,
                "protocol": format!("{:?}", port.protocol),
            })).collect::<Vec<_>>(),
            "resolution": format!("{:?}", service.resolution),
            "endpoints": service.endpoints.len(),
            "healthy": service.endpoints.iter().filter(|endpoint| endpoint.healthy).count(),
        })
    };
    axum::Json(snapshot.services().map(service).collect())
}

#[derive(Deserialize)]
struct Findings {
    /// `json`, `yaml` or `text`.
    output: Option<String>,
}

/// What is wrong with the configuration in force; `weft analyze --live`.
async fn analyzez(State(pages): State<Pages>, Query(wanted): Query<Findings>) -> Response {
    let state = pages.world.current();
    let mut found: Vec<weft_model::Diagnostic> = state.all_diagnostics().cloned().collect();
    found.extend(weft_translate::check(&state.snapshot));
    found.retain(|one| !state.snapshot.suppresses(one));
    let of_type = |content_type: &'static str, text: String| {
        ([(header::CONTENT_TYPE, content_type)], text).into_response()
    };
    match wanted.output.as_deref() {
        Some("text") => of_type("text/plain; charset=utf-8", weft_model::render_human(&found)),
        Some("yaml") => of_type("application/yaml", weft_model::render_yaml(&found)),
        _ => {
            let json = format!("{:#}\n", weft_model::render_json(&found));
            of_type("application/json", json)
        }
    }
}

/// The version of the world, what is wrong with it, and what could not be translated.
async fn configz(State(pages): State<Pages>) -> axum::Json<Value> {
    let state = pages.world.current();
    let published = pages.pusher.published();
    let of_patches = weft_translate::check(&state.snapshot);
    let texts = |found: Vec<String>| Value::from(found);
    let translation: Vec<Value> = pages
        .pusher
        .proxies()
        .iter()
        .map(|proxy| {
            let translated = published.translated(&proxy.view);
            let found = translated.diagnostics().map(ToString::to_string);
            json!({ "proxy": full_name(proxy), "diagnostics": found.collect::<Vec<_>>() })
        })
        .collect();
    axum::Json(json!({
        "version": state.version,
        "published_version": published.state.version,
        "services": state.snapshot.services().count(),
        "workloads": state.snapshot.workloads().count(),
        "diagnostics": texts(state.all_diagnostics().chain(&of_patches).map(ToString::to_string).collect()),
        "translation": translation,
    }))
}

/// Status of every Gateway API resource that is ours, as the API would have it.
async fn gateway_api(State(pages): State<Pages>) -> axum::Json<Value> {
    let all = pages.world.snapshot().gateway_api_status();
    axum::Json(all.iter().map(weft_model::gateway_api::Status::to_json).collect())
}

#[derive(Deserialize)]
struct DumpQuery {
    /// `NAME.NAMESPACE`
    proxy: String,
}

/// What one proxy should run, as JSON; never secrets.
async fn config_dump(State(pages): State<Pages>, Query(query): Query<DumpQuery>) -> Response {
    let proxies = pages.pusher.proxies();
    let Some(proxy) = proxies.iter().find(|proxy| full_name(proxy) == query.proxy) else {
        let text = format!("no proxy `{}` is connected; /debug/syncz lists them\n", query.proxy);
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let translated = pages.pusher.published().translated(&proxy.view);
    let list = |ty: ResourceType| -> Value {
        let set = translated.set(ty).unwrap_or_default();
        set.iter().map(|resource| xds_json::body_to_json(ty.url(), &resource.body)).collect()
    };
    axum::Json(json!({
        "clusters": list(ResourceType::Cluster),
        "listeners": list(ResourceType::Listener),
        "routes": list(ResourceType::Route),
    }))
    .into_response()
}

fn full_name(proxy: &Proxy) -> String {
    format!("{}.{}", proxy.view.name, proxy.view.namespace)
}
