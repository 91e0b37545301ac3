//! Our webhooks' configurations: the certificates with which the API server checks us, kept up to date
//! by the control plane that holds the Lease. What asks, and about what, is the operator's.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_telemetry::Counter;

use super::follow::{Objects, Query, follow};
use super::lease::Term;
use super::{ApiError, Client, Patch};
use crate::ca::Authority;

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
/// What could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Which configurations are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Name of the MutatingWebhookConfiguration that injects.
    pub mutating: String,
    /// Name of the ValidatingWebhookConfiguration.
    pub validating: String,
}

pub(crate) struct HooksKeeper {
    pub(crate) client: Client,
    pub(crate) term: watch::Receiver<Option<Term>>,
    pub(crate) authority: Authority,
    pub(crate) hooks: Hooks,
    pub(crate) writes: Counter,
}

impl HooksKeeper {
    /// Until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(mut self) {
        let Hooks { mutating, validating } = &self.hooks;
        let mut mutating = follow(self.client.clone(), Query::named(MUTATING, mutating));
        let mut validating = follow(self.client.clone(), Query::named(VALIDATING, validating));
        let mut roots = self.authority.changes();
        loop {
            // The election ends only with the control plane.
            if self.term.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let bundle = STANDARD.encode(roots.borrow_and_update().as_bytes());
            let first = mutating.borrow_and_update().clone();
            let second = validating.borrow_and_update().clone();
            let mut complete = true;
            for (collection, there) in [(MUTATING, first), (VALIDATING, second)] {
                let written = self.mend(collection, there.unwrap_or_default(), &bundle).await;
                if let Err(error) = written {
                    complete = false;
                    tracing::debug!(collection, %error, "a webhook's certificates are not written");
                }
            }
            tokio::select! {
                Ok(()) = mutating.changed() => {}
                Ok(()) = validating.changed() => {}
                Ok(()) = roots.changed() => {}
                () = tokio::time::sleep(AGAIN), if !complete => {}
                else => return,
            }
        }
    }

    async fn mend(&self, collection: &str, all: Objects, bundle: &str) -> Result<(), ApiError> {
        for ((_, name), object) in all.iter() {
            let strict = collection == VALIDATING;
            let Some(patch) = patch(object, bundle, strict) else { continue };
            if !self.term.borrow().is_some_and(|term| term.holds()) {
                return Ok(());
            }
            let path = format!("{collection}/{name}?fieldManager=weft-control");
            self.client.patch(&path, Patch::Merge, &patch).await?;
            self.writes.inc();
        }
        Ok(())
    }
}

/// What differs: the list of webhooks as it should be, on the version that was read. Validation is
/// installed so that it may fail, and must not (`strict`) once somebody answers.
fn patch(object: &Value, bundle: &str, strict: bool) -> Option<Value> {
    let mut webhooks = object["webhooks"].clone();
    for webhook in webhooks.as_array_mut()?.iter_mut() {
        webhook["clientConfig"]["caBundle"] = bundle.into();
        if strict {
            webhook["failurePolicy"] = "Fail".into();
        }
    }
    let version = &object["metadata"]["resourceVersion"];
    (webhooks != object["webhooks"])
        .then(|| json!({ "metadata": { "resourceVersion": version }, "webhooks": webhooks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_the_rest_stays() {
        let mut object = json!({
            "metadata": {"name": "x", "resourceVersion": "7"},
            "webhooks": [{"name": "a", "clientConfig": {"service": {"name": "istiod"}}, "failurePolicy": "Ignore"}],
        });
        let change = patch(&object, "AAAA", true).expect("it differs");
        assert_eq!(
            change,
            json!({"metadata": {"resourceVersion": "7"}, "webhooks": [{
                "name": "a", "failurePolicy": "Fail",
                "clientConfig": {"service": {"name": "istiod"}, "caBundle": "AAAA"},
            }]})
        );
        object["webhooks"] = change["webhooks"].clone();
        assert_eq!(patch(&object, "AAAA", true), None);
        assert_eq!(patch(&json!({}), "AAAA", true), None);
    }
}
