//! `/debug/why`: where a request would go in the mesh as it runs. Who walks the way is given from
//! outside, since that takes the proxy's own tables; here is what only the running control plane
//! knows: the published world, the proxies that are connected, what they acknowledged.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_model::Snapshot;
use weft_translate::ProxyView;

use super::{Pages, ProxyStatus};

/// The request that is asked about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    pub method: String,
    pub url: String,
    /// `NAMESPACE/NAME` of a workload; without it the request comes from outside.
    #[serde(default)]
    pub from: Option<String>,
    /// `NAME: VALUE`
    #[serde(default)]
    pub headers: Vec<String>,
}

/// Walks the way of a request through a world with these proxies. The answer is an object, whose
/// `proxy` is the namespace and name of the proxy that takes the request first.
pub type Explain = fn(&Snapshot, &[ProxyView], &Question) -> Result<Value, String>;

#[derive(Deserialize)]
pub(super) struct WhyQuery {
    /// A [`Question`] as JSON.
    q: String,
}

pub(super) async fn why(State(pages): State<Pages>, Query(query): Query<WhyQuery>) -> Response {
    let question: Question = match serde_json::from_str(&query.q) {
        Ok(question) => question,
        Err(error) => return refuse(format!("q: {error}")),
    };
    let Some(explain) = pages.explain else {
        return refuse("this control plane has no tables to look in".to_owned());
    };
    let proxies = pages.pusher.proxies();
    let published = pages.pusher.published();
    let views: Vec<ProxyView> = proxies.iter().map(|proxy| proxy.view.clone()).collect();
    let state = Arc::clone(&published.state);
    // It translates a whole proxy.
    let walked = tokio::task::spawn_blocking(move || explain(&state.snapshot, &views, &question));
    let mut answer = match walked.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return refuse(error),
        Err(error) => {
            tracing::error!(%error, "looking for the way of a request failed");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let named = answer["proxy"].as_str().unwrap_or_default().to_owned();
    let first = proxies.iter().find(|proxy| {
        let ProxyView { namespace, name, .. } = &proxy.view;
        named.split_once('/') == Some((namespace, name))
    });
    answer["live"] = json!({
        "version": published.state.version,
        "newest": pages.world.current().version,
        "proxy": first.map(|proxy| ProxyStatus::of(proxy)),
    });
    axum::Json(answer).into_response()
}

fn refuse(reason: String) -> Response {
    (StatusCode::BAD_REQUEST, reason + "\n").into_response()
}
