//! Spans by trace, the oldest trace first to go.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::span::Span;

/// Memory for spans. Bytes, as [`Span::bytes`] counts.
const BYTES_MAX: usize = 64 << 20;
/// Spans of one trace; a loop must not push all others out.
const SPANS_PER_TRACE_MAX: usize = 2_000;

#[derive(Default)]
pub(super) struct Store {
    traces: HashMap<String, Trace>,
    /// In the order they were first heard of.
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Trace {
    pub(super) spans: Vec<Span>,
    bytes: usize,
}

impl Trace {
    /// Start of the earliest span, microseconds since 1970.
    pub(super) fn start(&self) -> u64 {
        self.spans.iter().filter_map(|span| span.timestamp).min().unwrap_or(0)
    }
}

impl Store {
    /// Keeps a span; false when its trace is full.
    pub(super) fn add(&mut self, span: Span) -> bool {
        let bytes = span.bytes();
        if !self.traces.contains_key(&span.trace_id) {
            self.order.push_back(span.trace_id.clone());
        }
        let trace = self.traces.entry(span.trace_id.clone()).or_default();
        if trace.spans.len() >= SPANS_PER_TRACE_MAX {
            return false;
        }
        trace.spans.push(span);
        trace.bytes += bytes;
        self.bytes += bytes;
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.traces.remove(&oldest).map_or(0, |trace| trace.bytes);
        }
        true
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn trace(&self, id: &str) -> Option<&Trace> {
        self.traces.get(id)
    }

    /// The newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Trace> {
        self.order.iter().rev().filter_map(|id| self.traces.get(id))
    }

    /// Names that spans give, in order.
    pub(super) fn names<'s>(
        &'s self,
        of: impl Fn(&'s Span) -> Option<&'s str>,
    ) -> BTreeSet<&'s str> {
        self.traces.values().flat_map(|trace| &trace.spans).filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(trace: u64, id: u64) -> Span {
        let text = format!(
            r#"{{"traceId":"{trace:x}","id":"{id:x}","timestamp":{id},"tags":{{"t":"{}"}}}}"#,
            "x".repeat(4000)
        );
        serde_json::from_str::<Span>(&text).unwrap().sound().unwrap()
    }

    #[test]
    fn the_oldest_traces_go_and_none_grows_without_end() {
        let mut store = Store::default();
        for trace in 1..=20_000 {
            assert!(store.add(span(trace, 1)));
        }
        assert!(store.bytes() <= BYTES_MAX && store.traces.len() == store.order.len());
        assert!(store.trace("0000000000000001").is_none());
        assert_eq!(store.newest().next().unwrap().spans[0].trace_id, format!("{:016x}", 20_000));
        let taken = (1..=3_000).filter(|id| store.add(span(7, *id))).count();
        assert_eq!(taken, SPANS_PER_TRACE_MAX);
    }
}
