//! ConfigMap `istio-ca-root-cert` in every namespace of the mesh: what proxies trust before they know
//! anything. Written by the control plane that holds the Lease, and mended when somebody changes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_telemetry::Counter;

use super::follow::{Objects, Query, follow};
use super::lease::Term;
use super::limit::{Limit, Rate};
use super::{ApiError, Client, Patch};
use crate::ca::Authority;

/// What it is called: injected Pods mount it.
pub(super) const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// A new root goes to every namespace at once.
const RATE: Rate = Rate { per_second: 20.0, burst: 40 };
/// What could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Names of namespaces.
pub(crate) type Namespaces = Arc<BTreeSet<Arc<str>>>;

/// Keeps it in one cluster.
pub(crate) struct RootsKeeper {
    pub(crate) client: Client,
    pub(crate) term: watch::Receiver<Option<Term>>,
    pub(crate) authority: Authority,
    pub(crate) namespaces: watch::Receiver<Namespaces>,
    pub(crate) writes: Counter,
}

impl RootsKeeper {
    /// Until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(mut self) {
        let mut there = follow(self.client.clone(), Query::named("/api/v1/configmaps", NAME));
        let mut roots = self.authority.changes();
        let limit = Limit::new(RATE);
        loop {
            // The election ends only with the control plane.
            let Ok(number) =
                self.term.wait_for(Option::is_some).await.map(|term| term.map(|one| one.number))
            else {
                return;
            };
            let pem = roots.borrow_and_update().clone();
            let now = there.borrow_and_update().clone();
            let wanted = self.namespaces.borrow_and_update().clone();
            let mut complete = true;
            if let Some(now) = now {
                for namespace in missing(&now, &wanted, &pem) {
                    limit.wait().await;
                    if !self.term.borrow().is_some_and(|t| Some(t.number) == number && t.holds()) {
                        complete = false;
                        break;
                    }
                    match self.write(&namespace, &pem).await {
                        Ok(()) => self.writes.inc(),
                        Err(error) => {
                            complete = false;
                            tracing::debug!(%namespace, %error, "the roots could not be written");
                        }
                    }
                }
            }
            tokio::select! {
                Ok(()) = there.changed() => {}
                Ok(()) = roots.changed() => {}
                Ok(()) = self.namespaces.changed() => {}
                () = tokio::time::sleep(AGAIN), if !complete => {}
                else => return,
            }
        }
    }

    async fn write(&self, namespace: &str, pem: &str) -> Result<(), ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}");
        let path = format!("{path}?fieldManager=weft-control&force=true");
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME, "namespace": namespace, "labels": {"istio.io/config": "true"},
            },
            "data": { (KEY): pem },
        });
        self.client.patch(&path, Patch::Apply, &body).await.map(drop)
    }
}

/// Namespaces where it is not, or says something else.
fn missing(there: &Objects, wanted: &Namespaces, pem: &str) -> Vec<Arc<str>> {
    let differs = |namespace: &&Arc<str>| {
        let found = there.get(&(namespace.to_string(), NAME.to_owned()));
        found.and_then(|one| one["data"][KEY].as_str()) != Some(pem)
    };
    wanted.iter().filter(differs).cloned().collect()
}
