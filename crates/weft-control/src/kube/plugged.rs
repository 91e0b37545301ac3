//! The authority of a cluster, as Istio keeps it: what operators plugged in (Secret `cacerts`), else
//! a root of our own that all control planes share (Secret `istio-ca-secret`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{ApiError, Client};
use crate::ca::PluggedIn;

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
    let text = |key: &str| text(&secret["data"][key]);
    let (Some(certificate), Some(key)) = (text("ca-cert.pem"), text("ca-key.pem")) else {
        let why = format!("Secret {name} needs ca-cert.pem, ca-key.pem and root-cert.pem");
        return Err(ApiError::Malformed(why));
    };
    // Istio's own root is its certificate alone.
    let roots = text("root-cert.pem").unwrap_or_else(|| certificate.clone());
    let chain = text("cert-chain.pem").unwrap_or_default();
    Ok(Some(PluggedIn { certificate, key, chain, roots }))
}

fn text(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}
