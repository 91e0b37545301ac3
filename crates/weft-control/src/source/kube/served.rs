//! Which of our kinds the API server has: CRDs may be installed at any time.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng as _;
use serde_json::Value;
use tokio::sync::watch;
use weft_model::Kind;

use super::{Cluster, WATCHED, Watched};
use crate::kube::back_off;
use crate::kube::{ApiError, Client};

/// The version in which each kind is read; `None` until the server has answered once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Served {
    versions: Option<BTreeMap<Kind, &'static str>>,
}

impl Served {
    pub(super) fn is_known(&self) -> bool {
        self.versions.is_some()
    }

    /// `None` when the server does not have it, or has not said.
    pub(crate) fn version(&self, kind: Kind) -> Option<&'static str> {
        self.versions.as_ref()?.get(&kind).copied()
    }
}

/// Asks, and asks again, until the readers are gone.
pub(super) async fn follow(cluster: Arc<Cluster>, served: watch::Sender<Served>) {
    let mut failures = 0;
    loop {
        let wait = match ask(&cluster.client).await {
            Ok(found) => {
                failures = 0;
                let found = Served { versions: Some(found) };
                served.send_if_modified(|before| {
                    let differs = *before != found;
                    *before = found;
                    differs
                });
                cluster.options.probe.mul_f64(rand::rng().random_range(0.8..=1.2))
            }
            // What was there before is taken to be there still.
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, "the API server's kinds are not known");
                back_off(failures, error.retry_after())
            }
        };
        tokio::select! {
            () = cluster.events.closed() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn ask(client: &Client) -> Result<BTreeMap<Kind, &'static str>, ApiError> {
    let groups = client.get("/apis").await?;
    let mut found = BTreeMap::new();
    let mut lists: BTreeMap<String, Option<Value>> = BTreeMap::new();
    for kind in WATCHED {
        if !kind.optional {
            found.insert(kind.kind, kind.versions[0]);
            continue;
        }
        let offered = versions(&groups, kind.group);
        for version in kind.versions.iter().filter(|one| offered.contains(one)) {
            let root = kind.root(version);
            if !lists.contains_key(&root) {
                let list = match client.get(&root).await {
                    Ok(list) => Some(list),
                    // It went between the two questions.
                    Err(error) if error.status() == Some(404) => None,
                    Err(error) => return Err(error),
                };
                lists.insert(root.clone(), list);
            }
            if lists.get(&root).is_some_and(|list| list.as_ref().is_some_and(|l| has(l, kind))) {
                found.insert(kind.kind, version);
                break;
            }
        }
    }
    Ok(found)
}

/// Of a group in an `APIGroupList`.
fn versions<'a>(groups: &'a Value, group: &str) -> Vec<&'a str> {
    let all = groups["groups"].as_array().into_iter().flatten();
    let group = all.filter(|one| one["name"] == group);
    let versions = group.flat_map(|one| one["versions"].as_array().into_iter().flatten());
    versions.filter_map(|one| one["version"].as_str()).collect()
}

/// Is it in an `APIResourceList`?
fn has(list: &Value, kind: &Watched) -> bool {
    list["resources"].as_array().into_iter().flatten().any(|one| one["name"] == kind.plural)
}
