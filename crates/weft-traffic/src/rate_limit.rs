//! Local rate limits, as Envoy's `local_ratelimit` filter has them: token buckets that all workers
//! share, one for all requests and others for those with certain descriptors.
//!
//! A bucket is one number: when it would have been empty, had nobody taken anything since. It fills
//! steadily, as Envoy's does.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use weft_http::RequestHead;

use crate::headers::HeaderEdits;
use crate::matcher::{Fraction, HeaderMatch, QueryMatch};

/// `LocalRateLimit`.
#[derive(Debug)]
pub struct LocalRateLimit {
    pub stat_prefix: Arc<str>,
    /// Of the answer to a request that is one too many.
    pub status: u16,
    /// Which requests are looked at, and of those which are refused when there are too many.
    pub enabled: Fraction,
    pub enforced: Fraction,
    /// None: only requests with one of the descriptors are limited.
    pub bucket: Option<Bucket>,
    /// The slowest to fill first.
    pub descriptors: Vec<DescriptorLimit>,
    /// Requests with a descriptor count in `bucket` too.
    pub always_default: bool,
    /// Responses say what is left (`x-ratelimit-*`).
    pub tells: bool,
    /// gRPC callers hear RESOURCE_EXHAUSTED, not UNAVAILABLE.
    pub exhausted: bool,
    /// Of the answer to a request that is one too many.
    pub response_edits: HeaderEdits,
    /// Of a request that is one too many and let through.
    pub request_edits: HeaderEdits,
    pub stage: u32,
    /// What makes descriptors, instead of the route's.
    pub rules: Vec<RateLimitRule>,
}

/// Requests with exactly these entries have a bucket of their own.
#[derive(Debug)]
pub struct DescriptorLimit {
    pub entries: Vec<(Box<str>, Box<str>)>,
    pub bucket: Bucket,
}

/// A route's `RateLimit`: makes one descriptor of a request.
#[derive(Debug, Clone)]
pub struct RateLimitRule {
    pub stage: u32,
    /// One entry each; where one has none there is no descriptor.
    pub actions: Vec<LimitAction>,
}

/// Where a descriptor's entry comes from.
#[derive(Debug, Clone)]
pub enum LimitAction {
    RemoteAddress,
    DestinationCluster,
    /// Always this key and value.
    Fixed {
        key: Box<str>,
        value: Box<str>,
    },
    /// A header's value.
    Header {
        name: Box<str>,
        key: Box<str>,
        /// Without the header the entry is left out, not the descriptor.
        optional: bool,
    },
    /// Key and value when the headers match, or do not.
    HeaderMatch {
        key: Box<str>,
        value: Box<str>,
        expect: bool,
        headers: Vec<HeaderMatch>,
    },
    QueryMatch {
        key: Box<str>,
        value: Box<str>,
        expect: bool,
        query: Vec<QueryMatch>,
    },
}

/// What is left in the bucket that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// Until there is a token again; zero while there is one.
    pub reset: Duration,
}

/// What a limit says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// None: no bucket was asked.
    pub left: Option<Left>,
}

impl LocalRateLimit {
    /// Takes a token of each bucket that the request is in. `rules` are the route's, `cluster` where
    /// the request goes.
    pub fn decide<'r>(
        &self,
        rules: impl Iterator<Item = &'r RateLimitRule>,
        head: &RequestHead,
        client: IpAddr,
        cluster: &str,
        now: Instant,
    ) -> Verdict {
        let descriptors: Vec<Descriptor> = if self.descriptors.is_empty() {
            Vec::new()
        } else if self.rules.is_empty() {
            let of_stage = rules.filter(|rule| rule.stage == self.stage);
            of_stage.filter_map(|rule| rule.descriptor(head, client, cluster)).collect()
        } else {
            self.rules.iter().filter_map(|rule| rule.descriptor(head, client, cluster)).collect()
        };
        let mut left = None;
        let mut matched = false;
        for limit in self.descriptors.iter().filter(|limit| limit.is_of(&descriptors)) {
            matched = true;
            let taken = limit.bucket.take(now);
            left = Some(least(left, limit.bucket.left(now)));
            if !taken {
                return Verdict { allowed: false, left };
            }
        }
        match &self.bucket {
            Some(bucket) if self.always_default || !matched => {
                let allowed = bucket.take(now);
                let own = bucket.left(now);
                let left = if allowed { least(left, own) } else { own };
                Verdict { allowed, left: Some(left) }
            }
            _ => Verdict { allowed: true, left },
        }
    }
}

fn least(known: Option<Left>, other: Left) -> Left {
    match known {
        Some(known) if known.remaining <= other.remaining => known,
        _ => other,
    }
}

type Descriptor = Vec<(Box<str>, Box<str>)>;

impl DescriptorLimit {
    fn is_of(&self, descriptors: &[Descriptor]) -> bool {
        descriptors.contains(&self.entries)
    }
}

impl RateLimitRule {
    fn descriptor(&self, head: &RequestHead, client: IpAddr, cluster: &str) -> Option<Descriptor> {
        let mut entries = Descriptor::new();
        for action in &self.actions {
            let entry = match action {
                LimitAction::RemoteAddress => ("remote_address".into(), client.to_string().into()),
                LimitAction::DestinationCluster => ("destination_cluster".into(), cluster.into()),
                LimitAction::Fixed { key, value } => (key.clone(), value.clone()),
                LimitAction::Header { name, key, optional } => match head.headers.get(&**name) {
                    Some(value) => (key.clone(), String::from_utf8_lossy(value).into()),
                    None if *optional => continue,
                    None => return None,
                },
                LimitAction::HeaderMatch { key, value, expect, headers } => {
                    let matches = headers.iter().all(|matcher| matcher.is_match(head));
                    (matches == *expect).then(|| (key.clone(), value.clone()))?
                }
                LimitAction::QueryMatch { key, value, expect, query } => {
                    let matches = query.iter().all(|matcher| matcher.is_match(head.query()));
                    (matches == *expect).then(|| (key.clone(), value.clone()))?
                }
            };
            entries.push(entry);
        }
        (!entries.is_empty()).then_some(entries)
    }
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    tokens_max: u32,
    /// Nanoseconds that one token takes to come.
    per_token: u64,
    /// When it was first asked; it was full then.
    since: OnceLock<Instant>,
    /// When it would have been empty, in nanoseconds after `since` and the time to fill it.
    empty_at: AtomicU64,
}

impl Bucket {
    /// A full one of at least one token, to which `fill` tokens come in `interval`.
    pub fn new(tokens_max: u32, fill: u32, interval: Duration) -> Bucket {
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Bucket {
            tokens_max: tokens_max.max(1),
            per_token: (nanos / u64::from(fill.max(1))).max(1),
            since: OnceLock::new(),
            empty_at: AtomicU64::new(0),
        }
    }

    /// How long one token takes to come.
    pub fn per_token(&self) -> Duration {
        Duration::from_nanos(self.per_token)
    }

    fn full(&self) -> u64 {
        u64::from(self.tokens_max).saturating_mul(self.per_token)
    }

    fn clock(&self, now: Instant) -> u64 {
        let since = self.since.get_or_init(|| now);
        let passed = now.saturating_duration_since(*since).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(self.full())
    }

    /// Takes a token if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let clock = self.clock(now);
        let next = |empty_at: u64| {
            let there = clock.saturating_sub(empty_at).min(self.full());
            (there >= self.per_token).then(|| clock - there + self.per_token)
        };
        self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// What is in it.
    pub fn left(&self, now: Instant) -> Left {
        let there = self.clock(now).saturating_sub(self.empty_at.load(Ordering::Relaxed));
        let there = there.min(self.full());
        Left {
            limit: self.tokens_max,
            remaining: u32::try_from(there / self.per_token).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(self.per_token.saturating_sub(there)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::test_head;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_bucket_empties_and_fills_steadily() {
        let start = Instant::now();
        let bucket = Bucket::new(3, 2, S(10));
        let taken = |after| (0..5).filter(|_| bucket.take(start + after)).count();
        assert_eq!(taken(S(0)), 3);
        assert_eq!(bucket.left(start), Left { limit: 3, remaining: 0, reset: S(5) });
        assert_eq!(taken(S(4)), 0);
        assert_eq!(taken(S(5)), 1);
        assert_eq!(taken(S(1000)), 3, "never more than it holds");
    }

    fn limit(descriptors: Vec<DescriptorLimit>, bucket: Option<Bucket>) -> LocalRateLimit {
        LocalRateLimit {
            stat_prefix: "".into(),
            status: 429,
            enabled: Fraction::ALWAYS,
            enforced: Fraction::ALWAYS,
            bucket,
            descriptors,
            always_default: true,
            tells: false,
            exhausted: false,
            response_edits: HeaderEdits::default(),
            request_edits: HeaderEdits::default(),
            stage: 0,
            rules: Vec::new(),
        }
    }

    #[test]
    fn descriptors_have_buckets_of_their_own() {
        let own = DescriptorLimit {
            entries: vec![("who".into(), "jason".into())],
            bucket: Bucket::new(1, 1, S(60)),
        };
        let limit = limit(vec![own], Some(Bucket::new(3, 1, S(60))));
        let rule = RateLimitRule {
            stage: 0,
            actions: vec![LimitAction::Header {
                name: "user".into(),
                key: "who".into(),
                optional: false,
            }],
        };
        let now = Instant::now();
        let ask = |user: &str| {
            let head = test_head("GET", "a", "/", &[("user", user)]);
            let verdict =
                limit.decide([&rule].into_iter(), &head, IpAddr::from([1, 2, 3, 4]), "c", now);
            (verdict.allowed, verdict.left.map(|left| left.remaining))
        };
        assert_eq!(ask("jason"), (true, Some(0)));
        assert_eq!(ask("jason"), (false, Some(0)), "its own is empty");
        assert_eq!(ask("other"), (true, Some(1)), "what was refused took nothing of all");
        assert_eq!(ask("other"), (true, Some(0)));
        assert_eq!(ask("other"), (false, Some(0)));
    }

    #[test]
    fn a_descriptor_needs_all_its_entries() {
        let head = test_head("GET", "a", "/x", &[]);
        let client = IpAddr::from([1, 2, 3, 4]);
        let make = |actions: Vec<LimitAction>| {
            RateLimitRule { stage: 0, actions }.descriptor(&head, client, "c")
        };
        let header = |optional| LimitAction::Header { name: "u".into(), key: "k".into(), optional };
        assert_eq!(make(vec![LimitAction::RemoteAddress, header(false)]), None);
        let entries = make(vec![LimitAction::RemoteAddress, header(true)]);
        assert_eq!(entries, Some(vec![("remote_address".into(), "1.2.3.4".into())]));
        let unless = LimitAction::HeaderMatch {
            key: "k".into(),
            value: "v".into(),
            expect: false,
            headers: Vec::new(),
        };
        assert_eq!(make(vec![unless]), None);
    }
}
