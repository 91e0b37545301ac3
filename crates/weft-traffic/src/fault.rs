//! Fault injection: delays and aborts drawn per request, as Envoy's fault filter does.

use std::time::Duration;

use weft_http::RequestHead;

use crate::matcher::{Fraction, HeaderMatch};

/// `HTTPFault`.
#[derive(Debug, Clone, Default)]
pub struct FaultPolicy {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
    /// All must match for the fault to apply.
    pub headers: Vec<HeaderMatch>,
    /// Only towards this cluster.
    pub upstream_cluster: Option<Box<str>>,
}

#[derive(Debug, Clone)]
pub struct FaultDelay {
    pub fraction: Fraction,
    pub duration: Duration,
}

#[derive(Debug, Clone)]
pub struct FaultAbort {
    pub fraction: Fraction,
    pub kind: AbortKind,
    /// Text of the answer; empty: Envoy's `fault filter abort`.
    pub body: Box<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortKind {
    Http(u16),
    Grpc(u32),
}

/// What to do to one request: first wait, then perhaps abort.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultDecision {
    pub delay: Option<Duration>,
    pub abort: Option<AbortKind>,
}

impl FaultPolicy {
    /// Draws the fault for a request going to `cluster`. Delay and abort take separate draws.
    pub fn decide(
        &self,
        head: &RequestHead,
        cluster: &str,
        rng: &mut impl FnMut() -> u64,
    ) -> FaultDecision {
        let wrong_cluster = self.upstream_cluster.as_deref().is_some_and(|only| only != cluster);
        if wrong_cluster || !self.headers.iter().all(|matcher| matcher.is_match(head)) {
            return FaultDecision::default();
        }
        let delay = match &self.delay {
            Some(delay) if delay.fraction.hit(rng()) => Some(delay.duration),
            _ => None,
        };
        let abort = match &self.abort {
            Some(abort) if abort.fraction.hit(rng()) => Some(abort.kind),
            _ => None,
        };
        FaultDecision { delay, abort }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_hold_and_draws_are_separate() {
        let policy = FaultPolicy {
            delay: Some(FaultDelay {
                fraction: Fraction { numerator: 10, denominator: 100 },
                duration: Duration::from_secs(5),
            }),
            abort: Some(FaultAbort {
                fraction: Fraction { numerator: 100_000, denominator: 1_000_000 },
                kind: AbortKind::Http(418),
                body: "".into(),
            }),
            ..Default::default()
        };
        let head = crate::route::test_head("GET", "a", "/", &[]);
        let mut rng = crate::lb::test_rng(7);
        let (mut delays, mut aborts, mut both) = (0, 0, 0);
        for _ in 0..100_000 {
            let decision = policy.decide(&head, "c", &mut rng);
            delays += u32::from(decision.delay.is_some());
            aborts += u32::from(decision.abort.is_some());
            both += u32::from(decision.delay.is_some() && decision.abort.is_some());
        }
        assert!((9_700..10_300).contains(&delays), "{delays}");
        assert!((9_700..10_300).contains(&aborts), "{aborts}");
        assert!((850..1_150).contains(&both), "{both}");
    }
}
