//! Configuration to proxies: who is connected, what changed for whom, and when to say it.
//!
//! ```text
//! world ─► debounce ─► registry ─► one task per stream: session ◄─► proxy
//!             (config: quiet time; endpoints: at once)   │
//!                              memo: translate, endpoints ┘
//! ```
//! Must not know files, Kubernetes, or what a resource means: translation is
//! `weft-translate`'s, the protocol `weft-xds`'s, keys and certificates the CA's.

mod admission;
mod assignments;
mod debounce;
mod identity;
mod metrics;
mod published;
mod registry;
mod source;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_telemetry::Registry as Metrics;
use weft_xds::session;

use crate::ca::{Authority, Verifier};
use crate::registration::Registrar;
use crate::world::World;

use admission::Admission;
use assignments::EndpointMemo;
use registry::Registry;

pub(crate) use identity::workload;
pub(crate) use metrics::PushMetrics;
pub(crate) use published::Published;
pub(crate) use registry::Proxy;
pub use stream::Ads;

/// Times and bounds of pushing.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A configuration change goes out when nothing changed for this long …
    pub quiet: Duration,
    /// … or at the latest after this.
    pub patience: Duration,
    /// Clusters that are gone are removed this long after the routes that used them.
    pub removal_delay: Duration,
    /// Streams at a time.
    pub streams_max: usize,
    /// New streams a second, and how many may come at once.
    pub streams_per_second: u32,
    /// Bounds on one stream's subscriptions.
    pub session: session::Limits,
}

impl Default for Options {
    /// Istio's debounce; a thousand proxies may connect within ten seconds.
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            patience: Duration::from_secs(10),
            removal_delay: Duration::from_secs(1),
            streams_max: 10_000,
            streams_per_second: 100,
            session: session::Limits::default(),
        }
    }
}

/// Who may be who: tokens are verified and secrets made with these.
#[derive(Clone)]
pub struct Trust {
    pub authority: Authority,
    pub verifier: Verifier,
}

/// The pushing half of the control plane. Serve it with [`Ads`].
pub struct Pusher {
    options: Options,
    trust: Trust,
    registrar: Registrar,
    registry: Registry,
    endpoints: EndpointMemo,
    admission: Admission,
    metrics: PushMetrics,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
}

impl Pusher {
    /// Starts following the world on the current runtime, until `shutdown`.
    pub(crate) fn start(
        world: World,
        trust: Trust,
        registrar: Registrar,
        options: Options,
        metrics: &Metrics,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let pusher = Arc::new(Self {
            options,
            trust,
            registrar,
            registry: Registry::default(),
            endpoints: EndpointMemo::default(),
            admission: Admission::new(options.streams_max, options.streams_per_second, metrics),
            metrics: PushMetrics::new(metrics),
            ready: watch::Sender::new(false),
            shutdown,
        });
        tokio::spawn(debounce::follow(Arc::clone(&pusher), world));
        pusher
    }

    /// Whether the world was read once and proxies are served.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Connected proxies, by time of connection.
    pub(crate) fn proxies(&self) -> Vec<Arc<Proxy>> {
        self.registry.proxies()
    }

    /// The configuration that proxies are brought to now.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.registry.published()
    }

    pub(crate) async fn wait_ready(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
}
