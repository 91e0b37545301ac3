//! `weft graph`, `weft top`, `weft logs`: what the mesh does now, as the control plane has been told.
//! Must not know how it was told.

mod graph;
mod logs;
mod table;
mod top;

pub(crate) use graph::run as graph;
pub(crate) use logs::run as logs;
pub(crate) use top::run as top;

use serde::de::DeserializeOwned;
use weft_control::status::client;

/// Asks the control plane at `api` for a page.
fn fetch<T: DeserializeOwned>(
    api: &str,
    page: &str,
    query: &[(&str, String)],
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let address = crate::proxy_status::address(api);
    Ok(runtime.block_on(client::telemetry(address, page, query))?)
}

/// Only what is given.
fn given<'n>(query: &[(&'n str, Option<String>)]) -> Vec<(&'n str, String)> {
    query.iter().filter_map(|(name, value)| Some((*name, value.clone()?))).collect()
}
