//! A few objects, kept whole and up to date: Secrets and configurations that the control plane itself
//! acts on. What the mesh is made of is read by [`crate::source::kube`].
//!
//! Lists and watches like any reader; a failure takes nothing away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ApiError, Client, back_off};

/// Objects of a page.
const PAGE: usize = 500;
/// How long a watch is asked to last, in seconds.
const WATCH_SECONDS: std::ops::Range<u64> = 290..590;
/// A watch that says nothing this long after its time is dead.
const OVERTIME: Duration = Duration::from_secs(30);

/// Namespace (empty for what has none) and name.
pub(crate) type Name = (String, String);
/// As they are now.
pub(crate) type Objects = Arc<BTreeMap<Name, Value>>;

/// Which objects.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// `/api/v1/namespaces/NAMESPACE/secrets`
    pub(crate) collection: String,
    /// `fieldSelector=metadata.name%3Dcacerts`, escaped; empty for all.
    pub(crate) select: String,
}

impl Query {
    /// The one of this name (in every namespace, when the collection is of all).
    pub(crate) fn named(collection: &str, name: &str) -> Self {
        let select = format!("fieldSelector=metadata.name%3D{name}");
        Query { collection: collection.to_owned(), select }
    }
}

/// Follows them until nobody listens. `None` until they were listed once.
pub(crate) fn follow(client: Client, query: Query) -> watch::Receiver<Option<Objects>> {
    let (sender, objects) = watch::channel(None);
    tokio::spawn(async move {
        let mut failures = 0;
        loop {
            let ended = tokio::select! {
                () = sender.closed() => return,
                ended = turn(&client, &query, &sender, &mut failures) => ended,
            };
            let wait = match ended {
                // What is forgotten is listed again, and so is what ended at its time.
                Ok(()) => Duration::ZERO,
                Err(error) if error.status() == Some(410) => Duration::ZERO,
                Err(error) => {
                    failures += 1;
                    tracing::debug!(what = query.collection, %error, "reading the cluster");
                    back_off(failures, error.retry_after())
                }
            };
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
    objects
}

/// One list, and the watch after it, to its end.
async fn turn(
    client: &Client,
    query: &Query,
    sender: &watch::Sender<Option<Objects>>,
    failures: &mut u32,
) -> Result<(), ApiError> {
    let (mut known, from) = list(client, query).await?;
    publish(sender, &known);
    let seconds = rand::rng().random_range(WATCH_SECONDS);
    let path = format!(
        "{}?{}&watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={from}",
        query.collection, query.select
    );
    let mut lines = client.watch(&path).await?;
    let dead = Instant::now() + Duration::from_secs(seconds) + OVERTIME;
    let silent = || ApiError::Unreachable("a watch outlived its time".to_owned());
    while let Some(line) =
        tokio::time::timeout_at(dead, lines.next()).await.map_err(|_| silent())??
    {
        let malformed = |why: &str| ApiError::Malformed(format!("an event {why}"));
        let mut event: Value =
            serde_json::from_slice(&line).map_err(|_| malformed("is no JSON"))?;
        let object = event["object"].take();
        match event["type"].as_str().unwrap_or_default() {
            "BOOKMARK" => {}
            "ADDED" | "MODIFIED" => {
                let (name, object) = kept(object).ok_or_else(|| malformed("has no name"))?;
                known.insert(name, object);
            }
            "DELETED" => {
                let (name, _) = kept(object).ok_or_else(|| malformed("has no name"))?;
                known.remove(&name);
            }
            _ => return Err(ApiError::told(&object)),
        }
        *failures = 0;
        publish(sender, &known);
    }
    Ok(())
}

async fn list(client: &Client, query: &Query) -> Result<(BTreeMap<Name, Value>, String), ApiError> {
    let Query { collection, select } = query;
    let mut known = BTreeMap::new();
    let mut next = String::new();
    loop {
        let page = match next.as_str() {
            "" => format!("{collection}?{select}&limit={PAGE}"),
            token => {
                let token = crate::source::kube::escaped(token);
                format!("{collection}?{select}&limit={PAGE}&continue={token}")
            }
        };
        let mut page = client.get(&page).await?;
        let Value::Array(items) = page["items"].take() else {
            return Err(ApiError::Malformed("the answer is no list".to_owned()));
        };
        known.extend(items.into_iter().filter_map(kept));
        let text = |field: &str| page["metadata"][field].as_str().unwrap_or_default().to_owned();
        next = text("continue");
        if next.is_empty() {
            return Ok((known, text("resourceVersion")));
        }
    }
}

/// With its name, and without what others do to it.
fn kept(mut object: Value) -> Option<(Name, Value)> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    metadata.shift_remove("managedFields");
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = (text("namespace").to_owned(), text("name").to_owned());
    (!name.1.is_empty()).then_some((name, object))
}

fn publish(sender: &watch::Sender<Option<Objects>>, known: &BTreeMap<Name, Value>) {
    sender.send_if_modified(|before| {
        let differs = before.as_deref() != Some(known);
        if differs {
            *before = Some(Arc::new(known.clone()));
        }
        differs
    });
}
