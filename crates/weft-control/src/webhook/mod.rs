//! What the Kubernetes API server asks before it stores something: `/inject` puts a proxy into a pod,
//! `/validate` refuses configuration that `weft analyze` calls an error.
//!
//! HTTPS with a certificate of the mesh's own root that renews itself. Every answer is a function of
//! the request, the settings and the snapshot; nothing is stored, so any replica may answer.

mod review;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use weft_capture::inject::MeshSettings;
use weft_telemetry::{Counter, Registry as Metrics};

use crate::listen::{self, Io};
use crate::world::World;
use review::{Answer, Review};

/// Largest AdmissionReview: two versions of an object, of which etcd takes 1.5 MiB each.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Validations at a time: each looks at the whole configuration once.
const VALIDATIONS_MAX: usize = 2;

/// How to run the webhook.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where it listens; Istio's port is 15017.
    pub address: SocketAddr,
    /// What injection follows.
    pub settings: MeshSettings,
}

#[derive(Clone)]
struct Shared {
    settings: Arc<MeshSettings>,
    world: World,
    validations: Arc<Semaphore>,
    counters: Counters,
}

/// Istio's names.
#[derive(Clone)]
struct Counters {
    requests: Counter,
    injected: Counter,
    skipped: Counter,
    failed: Counter,
    passed: Counter,
    refused: Counter,
}

impl Counters {
    fn new(metrics: &Metrics) -> Counters {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Counters {
            requests: counter("sidecar_injection_requests_total", "Pods asked about."),
            injected: counter("sidecar_injection_success_total", "Pods injected."),
            skipped: counter("sidecar_injection_skip_total", "Pods left alone."),
            failed: counter("sidecar_injection_failure_total", "Pods refused."),
            passed: counter("galley_validation_passed", "Resources accepted."),
            refused: counter("galley_validation_failed", "Resources refused."),
        }
    }
}

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: (TcpListener, SocketAddr),
    tls: Arc<rustls::ServerConfig>,
    settings: MeshSettings,
    world: World,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let shared = Shared {
        settings: Arc::new(settings),
        world,
        validations: Arc::new(Semaphore::new(VALIDATIONS_MAX)),
        counters: Counters::new(&metrics),
    };
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (listener, address) = listener;
    let accepted = Accepted { incoming: listen::incoming(listener, Some(Arc::new(tls))), address };
    let stop = shutdown.cancelled_owned();
    let served = axum::serve(accepted, router(shared)).with_graceful_shutdown(stop).await;
    if let Err(error) = served {
        tracing::error!(%error, "the webhook ended");
    }
}

fn router(shared: Shared) -> Router {
    // What stands behind /inject (`/cluster/c1/net/n1`) is about other clusters; the pod says all.
    Router::new()
        .route("/inject", post(inject))
        .route("/inject/{*rest}", post(inject))
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(shared)
}

async fn inject(State(shared): State<Shared>, body: Bytes) -> Response {
    shared.counters.requests.inc();
    let review = match Review::parse(&body) {
        Ok(review) => review,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let answer = review.inject(&shared.settings);
    match &answer {
        Answer::Patch(_) => shared.counters.injected.inc(),
        Answer::Allowed(_) => shared.counters.skipped.inc(),
        Answer::Denied(why) => {
            shared.counters.failed.inc();
            tracing::warn!(pod = review.name(), why, "a pod is refused");
        }
    }
    json(&review.answer(answer))
}

async fn validate(State(shared): State<Shared>, body: Bytes) -> Response {
    let review = match Review::parse(&body) {
        Ok(review) => review,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let Ok(place) = shared.validations.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let snapshot = shared.world.snapshot();
    let checked = tokio::task::spawn_blocking(move || {
        let answer = review.validate(&snapshot);
        drop(place);
        (review, answer)
    });
    let Ok((review, answer)) = checked.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    match &answer {
        Answer::Denied(_) => shared.counters.refused.inc(),
        Answer::Allowed(_) | Answer::Patch(_) => shared.counters.passed.inc(),
    }
    json(&review.answer(answer))
}

fn json(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Connections after their TLS handshake.
struct Accepted {
    incoming: ReceiverStream<io::Result<Io>>,
    address: SocketAddr,
}

impl axum::serve::Listener for Accepted {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        loop {
            match self.incoming.next().await {
                Some(Ok(io)) => return (io, self.address),
                Some(Err(error)) => tracing::warn!(%error, "the webhook's socket"),
                // The socket lives as long as we do; without it there is nothing to serve.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
