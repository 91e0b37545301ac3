//! Zipkin's search: which traces `/api/v2/traces` lists.

use serde::Deserialize;

use super::span::Span;
use super::store::{Store, Trace};

/// Traces listed where nothing else is asked.
const LIMIT: usize = 10;
const LIMIT_MAX: usize = 1000;
/// How far back, in milliseconds, where nothing else is asked: Zipkin's `QUERY_LOOKBACK`.
pub(super) const LOOKBACK_MS: u64 = 86_400_000;

/// The parameters, with Zipkin's names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Query {
    service_name: Option<String>,
    remote_service_name: Option<String>,
    span_name: Option<String>,
    /// `error and http.method=GET`
    annotation_query: Option<String>,
    /// Microseconds.
    min_duration: Option<u64>,
    max_duration: Option<u64>,
    /// Milliseconds since 1970.
    end_ts: Option<u64>,
    /// Milliseconds.
    lookback: Option<u64>,
    limit: Option<usize>,
}

impl Query {
    /// The newest traces that fit.
    pub(super) fn find<'s>(&self, store: &'s Store, now_ms: u64) -> Vec<&'s Trace> {
        let end = self.end_ts.unwrap_or(now_ms).saturating_mul(1000);
        let lookback = self.lookback.unwrap_or(LOOKBACK_MS).saturating_mul(1000);
        let during = end.saturating_sub(lookback)..=end;
        let limit = self.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
        let fits = |trace: &&Trace| during.contains(&trace.start()) && self.fits(trace);
        let mut found: Vec<&Trace> = store.newest().filter(fits).take(limit).collect();
        found.sort_by_key(|trace| std::cmp::Reverse(trace.start()));
        found
    }

    /// As Zipkin: each condition holds for some span of the service, not all for the same one.
    fn fits(&self, trace: &Trace) -> bool {
        let Self { service_name, remote_service_name, span_name, annotation_query, .. } = self;
        let service = given(service_name);
        let own = || {
            trace.spans.iter().filter(|span| match &service {
                Some(service) => span.service() == Some(service),
                None => true,
            })
        };
        let some = |test: &dyn Fn(&Span) -> bool| own().any(test);
        let named = |wanted: &Option<String>, of: &dyn Fn(&Span) -> Option<String>| {
            given(wanted).is_none_or(|wanted| some(&|span| of(span).as_ref() == Some(&wanted)))
        };
        let conditions = annotation_query.as_deref().unwrap_or_default().split(" and ");
        let duration = |span: &Span| {
            span.duration.is_some_and(|duration| {
                self.min_duration.is_none_or(|min| duration >= min)
                    && self.max_duration.is_none_or(|max| duration <= max)
            })
        };
        own().next().is_some()
            && named(remote_service_name, &|span| span.remote_service().map(str::to_owned))
            && named(span_name, &|span| span.name.clone())
            && conditions
                .map(str::trim)
                .filter(|condition| !condition.is_empty())
                .all(|condition| some(&|span| holds(span, condition)))
            && (self.min_duration.is_none() && self.max_duration.is_none() || some(&duration))
    }
}

/// In lower case, as names are kept; `all` is how Zipkin's own pages say none.
fn given(text: &Option<String>) -> Option<String> {
    let text = text.as_ref()?.to_lowercase();
    (!text.is_empty() && text != "all").then_some(text)
}

/// `key=value` is a tag, `key` a tag or an annotation.
fn holds(span: &Span, condition: &str) -> bool {
    match condition.split_once('=') {
        Some((key, value)) => span.tags.get(key).is_some_and(|known| known == value),
        None => {
            span.tags.contains_key(condition)
                || span.annotations.iter().any(|annotation| annotation.value == condition)
        }
    }
}
