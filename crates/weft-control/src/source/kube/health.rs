//! How old what we know of the cluster is, and how often reading it failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use weft_telemetry::Registry as Metrics;

use super::Watched;
use crate::kube::ApiError;

/// Since when each kind is not watched; kinds that are watched are not in it.
type Broken = BTreeMap<String, Instant>;

pub(super) struct Health {
    broken: Arc<Mutex<Broken>>,
    metrics: Metrics,
    /// Another cluster than the mesh's own.
    cluster: Option<Arc<str>>,
}

impl Health {
    pub(super) fn new(metrics: &Metrics, cluster: Option<&Arc<str>>) -> Self {
        let broken = Arc::new(Mutex::new(Broken::new()));
        let seen = broken.clone();
        metrics.gauge_fn(
            "weft_kubernetes_age_seconds",
            "For how long some kind has not been watched; 0 while all are up to date.",
            &label(cluster),
            move || {
                let oldest = lock(&seen).values().min().copied();
                oldest.map_or(0.0, |since| since.elapsed().as_secs_f64())
            },
        );
        Health { broken, metrics: metrics.clone(), cluster: cluster.cloned() }
    }

    /// The kind is watched, or there is nothing to watch.
    pub(super) fn live(&self, kind: &Watched) {
        lock(&self.broken).remove(&kind.full_name());
    }

    /// The kind is not watched now.
    pub(super) fn behind(&self, kind: &Watched) {
        lock(&self.broken).entry(kind.full_name()).or_insert_with(Instant::now);
    }

    pub(super) fn failed(&self, kind: &Watched, error: &ApiError) {
        self.behind(kind);
        let reason = match error {
            ApiError::Unreachable(_) => "unreachable".to_owned(),
            ApiError::Malformed(_) => "malformed".to_owned(),
            ApiError::Refused { status, .. } => status.to_string(),
        };
        let help = "Lists and watches that failed.";
        let resource = kind.full_name();
        let mut labels = label(self.cluster.as_ref());
        labels.extend([("resource", &*resource), ("reason", &*reason)]);
        self.metrics.counter("weft_kubernetes_errors_total", help, &labels).inc();
    }

    pub(super) fn listed(&self, kind: &Watched) {
        let help = "Complete lists that were read.";
        let resource = kind.full_name();
        let mut labels = label(self.cluster.as_ref());
        labels.push(("resource", &*resource));
        self.metrics.counter("weft_kubernetes_lists_total", help, &labels).inc();
    }

    pub(super) fn holds(&self, kind: &Watched, objects: usize) {
        let help = "Resources that are known.";
        let resource = kind.full_name();
        let mut labels = label(self.cluster.as_ref());
        labels.push(("resource", &*resource));
        self.metrics.gauge("weft_kubernetes_resources", help, &labels).set(objects as i64);
    }
}

/// Other clusters are told apart by a label.
fn label(cluster: Option<&Arc<str>>) -> Vec<(&'static str, &str)> {
    cluster.map(|cluster| ("cluster", &**cluster)).into_iter().collect()
}

/// Nothing under this lock can leave data half-written.
fn lock(broken: &Mutex<Broken>) -> MutexGuard<'_, Broken> {
    broken.lock().unwrap_or_else(PoisonError::into_inner)
}
