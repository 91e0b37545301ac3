//! Which service calls which, as Zipkin derives it from traces (`/api/v2/dependencies`).

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::span::{Kind, Span};
use super::store::Trace;

/// One link.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Link {
    parent: String,
    child: String,
    call_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    error_count: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The links of all traces.
pub(super) fn links<'t>(traces: impl Iterator<Item = &'t Trace>) -> Vec<Link> {
    let mut counts: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for trace in traces {
        for (parent, child, failed) in of_trace(&trace.spans) {
            let (calls, errors) =
                counts.entry((parent.to_owned(), child.to_owned())).or_insert((0, 0));
            *calls += 1;
            *errors += u64::from(failed);
        }
    }
    let link = |((parent, child), (call_count, error_count))| Link {
        parent,
        child,
        call_count,
        error_count,
    };
    counts.into_iter().map(link).collect()
}

/// Parent, child, and whether the call failed.
fn of_trace(spans: &[Span]) -> Vec<(&str, &str, bool)> {
    let mut clients: HashMap<&str, &Span> = HashMap::new();
    let mut all: HashMap<&str, &Span> = HashMap::new();
    for span in spans {
        match span.kind {
            Some(Kind::Client | Kind::Producer) => _ = clients.insert(&span.id, span),
            _ => _ = all.insert(&span.id, span),
        }
    }
    let mut links = Vec::new();
    // Calls whose other side told of them itself.
    let mut told: Vec<&str> = Vec::new();
    for span in spans {
        let Some(Kind::Server | Kind::Consumer) = span.kind else { continue };
        let Some(child) = span.service() else { continue };
        // The client's half has the same id where they share the span, else it is the parent.
        let half = clients.get(span.id.as_str()).copied();
        let parent = span.parent_id.as_deref();
        let caller = half.or_else(|| {
            let parent = parent?;
            clients.get(parent).or_else(|| all.get(parent)).copied()
        });
        let named = caller.and_then(Span::service).or_else(|| span.remote_service());
        if let Some(caller) = caller {
            told.push(&caller.id);
        }
        if let Some(parent) = named {
            links.push((parent, child, is_error(span)));
        }
    }
    for span in clients.values().filter(|span| !told.contains(&span.id.as_str())) {
        if let (Some(parent), Some(child)) = (span.service(), span.remote_service()) {
            links.push((parent, child, is_error(span)));
        }
    }
    links
}

fn is_error(span: &Span) -> bool {
    span.tags.contains_key("error")
}
