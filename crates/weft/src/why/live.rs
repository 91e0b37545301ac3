//! `weft why` of a running mesh: the control plane walks the way through the configuration that it
//! brought its proxies to, with the proxies that are connected, and tells what they acknowledged.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use weft_control::status::{ProxyStatus, Question, client as status};
use weft_model::Snapshot;
use weft_translate::ProxyView;

use super::request::Request;
use super::walk::Walk;
use crate::cli::WhyArgs;

/// What the control plane says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    #[serde(flatten)]
    pub(super) walk: Walk,
    pub(super) live: Live,
}

/// How far the mesh has come with that configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Live {
    /// The world that was published to the proxies.
    version: u64,
    /// The newest one that was read.
    newest: u64,
    /// The proxy that takes the request first, if it is connected.
    proxy: Option<ProxyStatus>,
}

/// The control plane's half.
///
/// # Errors
/// The question makes no sense in this world.
pub(crate) fn explain(
    snapshot: &Snapshot,
    connected: &[ProxyView],
    question: &Question,
) -> Result<serde_json::Value, String> {
    let walked = || {
        let request = Request::parse(&question.method, &question.url, &question.headers)?;
        let walk = super::walk_from(snapshot, connected, question.from.as_deref(), &request)?;
        anyhow::Ok(serde_json::to_value(&walk)?)
    };
    walked().map_err(|error| format!("{error:#}"))
}

/// Asks the control plane.
pub(super) fn ask(args: &WhyArgs) -> anyhow::Result<Answer> {
    let question = Question {
        method: args.method.clone(),
        url: args.url.clone(),
        from: args.from.clone(),
        headers: args.headers.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let page = runtime.block_on(status::why(crate::proxy_status::address(&args.api), &question))?;
    serde_json::from_slice(&page).context("the control plane's answer is not understood")
}

/// For people: after the walk, who has that configuration.
pub(super) fn render(live: &Live) -> String {
    let mut out = String::new();
    let _ = match live.newest > live.version {
        true => writeln!(out, "{:<10} {} (of {} read)", "version", live.version, live.newest),
        false => writeln!(out, "{:<10} {}", "version", live.version),
    };
    let Some(proxy) = &live.proxy else {
        let _ = writeln!(out, "{:<10} that proxy is not connected", "live");
        return out;
    };
    for (ty, sync) in &proxy.types {
        let version = match sync.acked_version.as_str() {
            "" => "nothing",
            version => version,
        };
        let _ = writeln!(out, "{:<10} {ty} {}, acknowledged {version}", "live", sync.status.text());
        if let Some(error) = &sync.error {
            let _ = writeln!(out, "{:<10} {error}", "");
        }
    }
    out
}
