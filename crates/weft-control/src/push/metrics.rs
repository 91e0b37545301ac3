//! Istio's `pilot_*` metrics of pushing.

use std::time::Duration;

use weft_telemetry::{Counter, Gauge, Histogram, Registry};
use weft_xds::ResourceType;

/// Seconds, Istio's bounds for push and convergence times.
const SECONDS: [f64; 11] = [0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0];
const BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 4e6, 1e7, 4e7];

pub(crate) struct PushMetrics {
    types: [TypeMetrics; ResourceType::COUNT],
    pub(super) convergence: Histogram,
    pub(super) queue: Histogram,
    pub(super) debounce: Histogram,
    pub(super) context_init: Histogram,
    pub(super) trigger_endpoint: Counter,
    pub(super) trigger_config: Counter,
    pub(super) trigger_proxy: Counter,
    pub(super) rejected_configs: Counter,
    pub(super) services: Gauge,
    pub(super) connected: Gauge,
}

pub(super) struct TypeMetrics {
    pub(super) pushes: Counter,
    pub(super) time: Histogram,
    pub(super) bytes: Histogram,
    pub(super) rejects: Counter,
    pub(super) expired_nonces: Counter,
}

impl PushMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds = |name, help| registry.histogram(name, help, &SECONDS, &[]);
        let trigger = |kind| {
            registry.counter(
                "pilot_push_triggers",
                "Pushes by what caused them.",
                &[("type", kind)],
            )
        };
        Self {
            types: ResourceType::PUSH_ORDER.map(|ty| TypeMetrics::new(registry, ty)),
            convergence: seconds(
                "pilot_proxy_convergence_time",
                "Seconds from a change to a proxy having been sent all of it.",
            ),
            queue: seconds(
                "pilot_proxy_queue_time",
                "Seconds a proxy's push waits before it is begun.",
            ),
            debounce: seconds("pilot_debounce_time", "Seconds a change waits for others."),
            context_init: seconds(
                "pilot_pushcontext_init_seconds",
                "Seconds to take on a new state of the world.",
            ),
            trigger_endpoint: trigger("endpoint"),
            trigger_config: trigger("config"),
            trigger_proxy: trigger("proxy"),
            rejected_configs: registry.counter(
                "pilot_total_rejected_configs",
                "Resources not used because of an error in them.",
                &[],
            ),
            services: registry.gauge("pilot_services", "Services known.", &[]),
            connected: registry.gauge("pilot_xds", "Proxies connected.", &[]),
        }
    }

    pub(super) fn of(&self, ty: ResourceType) -> &TypeMetrics {
        &self.types[ty.index()]
    }

    pub(super) fn sent(&self, ty: ResourceType, bytes: usize, time: Duration) {
        let TypeMetrics { pushes, time: times, bytes: sizes, .. } = self.of(ty);
        pushes.inc();
        times.observe(time.as_secs_f64());
        sizes.observe(bytes as f64);
    }
}

impl TypeMetrics {
    fn new(registry: &Registry, ty: ResourceType) -> Self {
        let labels = &[("type", ty.short())][..];
        Self {
            pushes: registry.counter("pilot_xds_pushes", "Responses sent.", labels),
            time: registry.histogram(
                "pilot_xds_push_time",
                "Seconds to make a response.",
                &SECONDS,
                labels,
            ),
            bytes: registry.histogram(
                "pilot_xds_config_size_bytes",
                "Size of responses.",
                &BYTES,
                labels,
            ),
            rejects: registry.counter(
                "pilot_total_xds_rejects",
                "Responses that proxies rejected.",
                labels,
            ),
            expired_nonces: registry.counter(
                "pilot_xds_expired_nonce",
                "Requests with an outdated nonce.",
                labels,
            ),
        }
    }
}
