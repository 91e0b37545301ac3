//! The authority of a cluster, as Istio keeps it: what operators plugged in (Secret `cacerts`), else
//! a root of our own that all control planes share (Secret `istio-ca-secret`).

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weft_telemetry::Registry as Metrics;

use super::follow::{Query, follow};
use super::{ApiError, Client};
use crate::ca::{Authority, Next, PluggedIn};

const PLUGGED: &str = "cacerts";
const SHARED: &str = "istio-ca-secret";

/// What operators plugged in; `None` when there is nothing.
///
/// # Errors
/// When that cannot be known: an authority of our own in its place would be a second root.
pub(crate) async fn plugged_in(
    client: &Client,
    namespace: &str,
) -> Result<Option<PluggedIn>, ApiError> {
    read(client, namespace, PLUGGED).await
}

/// The shared root; this one when there is none yet.
///
/// # Errors
/// When it can neither be read nor kept.
pub(crate) async fn shared_root(
    client: &Client,
    namespace: &str,
    own: PluggedIn,
) -> Result<PluggedIn, ApiError> {
    if let Some(shared) = read(client, namespace, SHARED).await? {
        return Ok(shared);
    }
    let data = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": SHARED, "namespace": namespace },
        "type": "istio.io/ca-root",
        "data": {
            "ca-cert.pem": data(&own.certificate),
            "ca-key.pem": data(&own.key),
            "root-cert.pem": data(&own.roots),
        },
    });
    match client.create(&secrets(namespace), &secret).await {
        Ok(_) => Ok(own),
        // Of several that start together one is first.
        Err(error) if error.status() == Some(409) => {
            read(client, namespace, SHARED).await?.ok_or(error)
        }
        Err(error) => Err(error),
    }
}

fn secrets(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets")
}

async fn read(client: &Client, namespace: &str, name: &str) -> Result<Option<PluggedIn>, ApiError> {
    let secret = match client.get(&format!("{}/{name}", secrets(namespace))).await {
        Ok(secret) => secret,
        Err(error) if error.status() == Some(404) => return Ok(None),
        Err(error) => return Err(error),
    };
    parts(&secret, name).map(Some)
}

fn parts(secret: &Value, name: &str) -> Result<PluggedIn, ApiError> {
    let text = |key: &str| text(&secret["data"][key]);
    let (Some(certificate), Some(key)) = (text("ca-cert.pem"), text("ca-key.pem")) else {
        let why = format!("Secret {name} needs ca-cert.pem, ca-key.pem and root-cert.pem");
        return Err(ApiError::Malformed(why));
    };
    // Istio's own root is its certificate alone.
    let roots = text("root-cert.pem").unwrap_or_else(|| certificate.clone());
    let chain = text("cert-chain.pem").unwrap_or_default();
    Ok(PluggedIn { certificate, key, chain, roots })
}

/// Follows Secret `cacerts`: what operators put there is trusted at once, and signs a grace later,
/// when everybody has heard of it.
pub(crate) struct Rotation {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) authority: Authority,
    /// What signs now.
    pub(crate) current: Option<PluggedIn>,
    pub(crate) grace: Duration,
    pub(crate) metrics: Metrics,
}

impl Rotation {
    /// Until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.rotate() => {}
        }
    }

    async fn rotate(mut self) {
        let mut secret =
            follow(self.client.clone(), Query::named(&secrets(&self.namespace), PLUGGED));
        let mut next: Option<(Next, tokio::time::Instant)> = None;
        loop {
            let over = self.authority.tidy(SystemTime::now());
            let over = over.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            let due = next.as_ref().map(|(_, at)| *at);
            tokio::select! {
                changed = secret.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let found = secret.borrow_and_update().clone().unwrap_or_default();
                    if let Some(secret) = found.values().next() {
                        self.changed(secret, &mut next);
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)),
                    if due.is_some() =>
                {
                    if let Some((next, _)) = next.take() {
                        self.authority.adopt(next, SystemTime::now());
                        self.count("signs");
                        tracing::info!("certificates are signed by the new authority from now on");
                    }
                }
                () = tokio::time::sleep(over.unwrap_or_default()), if over.is_some() => {}
            }
        }
    }

    fn changed(&mut self, secret: &Value, next: &mut Option<(Next, tokio::time::Instant)>) {
        let found = match parts(secret, PLUGGED) {
            Ok(found) if self.current.as_ref() == Some(&found) => return,
            Ok(found) => found,
            Err(error) => return self.refused(&error),
        };
        match self.authority.trust(&found, SystemTime::now()) {
            Ok(trusted) => {
                *next = Some((trusted, tokio::time::Instant::now() + self.grace));
                self.current = Some(found);
                self.count("trusted");
                tracing::info!(grace = ?self.grace, "Secret cacerts has another authority; it is trusted");
            }
            Err(error) => self.refused(&error),
        }
    }

    fn refused(&self, error: &dyn std::fmt::Display) {
        self.count("refused");
        tracing::error!(%error, "Secret cacerts cannot be used; the authority of before stays");
    }

    fn count(&self, step: &str) {
        let help = "Changes of Secret cacerts, by what came of them.";
        self.metrics.counter("weft_ca_rotations_total", help, &[("step", step)]).inc();
    }
}

fn text(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}
