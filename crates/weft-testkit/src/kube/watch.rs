//! Watches: lines of JSON that go on until the client, the time limit, or a fault ends them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::rest::{Body, Call};
use super::select::Selectors;
use super::{Refusal, Shared, Target};

/// Lines that wait for a slow client.
const LINES_MAX: usize = 64;
/// How long a watch lasts when the client names no time, as an API server decides.
const TIME_DEFAULT: Duration = Duration::from_secs(1800);

type Lines = mpsc::Sender<io::Result<Frame<Bytes>>>;

struct Watch {
    target: Target,
    selectors: Selectors,
    /// Events after this version come next.
    version: u64,
    /// Everything there is comes first, then a bookmark when it was asked for by name.
    initial: bool,
    initial_end: bool,
    bookmarks: bool,
    /// The next line is told by half.
    cut: bool,
}

pub(super) fn start(
    shared: &Arc<Shared>,
    call: &Call,
    cut: bool,
) -> Result<Response<Body>, Refusal> {
    let mut target = call.target.clone();
    target.name = String::new();
    let named_initial = call.parameter("sendInitialEvents") == "true";
    let version = match call.parameter("resourceVersion") {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| Refusal::new(400, "BadRequest", "resourceVersion: not a number"))?,
    };
    let watch = Watch {
        target,
        selectors: call.selectors()?,
        version,
        initial: named_initial || version == 0,
        initial_end: named_initial,
        bookmarks: call.parameter("allowWatchBookmarks") == "true",
        cut,
    };
    let time = call.parameter("timeoutSeconds").parse().map_or(TIME_DEFAULT, Duration::from_secs);
    let (lines, received) = mpsc::channel(LINES_MAX);
    let shared = shared.clone();
    tokio::spawn(async move {
        // At its end the body ends as it should: the client goes on from its last version.
        let _ = tokio::time::timeout(time, watch.run(&shared, &lines)).await;
    });
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(body(received)).expect("a valid response"))
}

fn body(mut lines: mpsc::Receiver<io::Result<Frame<Bytes>>>) -> Body {
    let lines = futures_util::stream::poll_fn(move |cx| lines.poll_recv(cx));
    StreamBody::new(lines).boxed()
}

/// A body that ends in the middle of what it says.
pub(super) fn broken(text: String) -> Body {
    let parts = [Ok(Frame::data(text.into())), Err(io::ErrorKind::ConnectionReset.into())];
    StreamBody::new(futures_util::stream::iter(parts)).boxed()
}

impl Watch {
    async fn run(mut self, shared: &Shared, lines: &Lines) -> Option<()> {
        let mut changed = shared.changed.subscribe();
        let mut bookmarks = changed.borrow_and_update().1;
        if self.initial {
            let (all, version, end) = {
                let state = shared.state();
                let store = &state.store;
                let end = store.bookmark(&self.target, true);
                (store.all(&self.target, &self.selectors), store.version, end)
            };
            for object in all {
                self.tell(lines, "ADDED", &object).await?;
            }
            if self.initial_end {
                self.tell(lines, "BOOKMARK", &end).await?;
            }
            self.version = version;
        }
        loop {
            let (events, version) = {
                let store = &shared.state().store;
                (store.since(&self.target, &self.selectors, self.version), store.version)
            };
            match events {
                Err(refusal) => return self.tell(lines, "ERROR", &refusal.json()).await,
                Ok(events) => {
                    for (event, object) in events {
                        self.tell(lines, event, &object).await?;
                    }
                }
            }
            self.version = version;
            tokio::select! {
                waited = changed.changed() => waited.ok()?,
                () = lines.closed() => return None,
            }
            let asked = changed.borrow_and_update().1;
            if asked != bookmarks && self.bookmarks {
                bookmarks = asked;
                let bookmark = shared.state().store.bookmark(&self.target, false);
                self.tell(lines, "BOOKMARK", &bookmark).await?;
            }
        }
    }

    async fn tell(&self, lines: &Lines, event: &str, object: &Value) -> Option<()> {
        let line = format!("{}\n", json!({ "type": event, "object": object }));
        if self.cut {
            let half = line[..line.len() / 2].to_owned();
            lines.send(Ok(Frame::data(half.into()))).await.ok()?;
            let _ = lines.send(Err(io::ErrorKind::ConnectionReset.into())).await;
            return None;
        }
        lines.send(Ok(Frame::data(line.into()))).await.ok()
    }
}
