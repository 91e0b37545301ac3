//! Numbers of the last minutes: sums by five seconds of the last minute and a half, by half minutes
//! before that, and the total since the series began.

use std::collections::VecDeque;
use std::sync::Arc;

/// Width of a recent slot, seconds.
const FINE: u64 = 5;
/// Slots older than this are put together; a window of a minute then needs none of those.
const FINE_FOR: u64 = 60 + COARSE;
/// Width of an older slot.
const COARSE: u64 = 30;
/// What is older is in the total only.
pub(super) const KEPT: u64 = 15 * 60;
/// Ways to end that one sum tells apart.
const ENDS_MAX: usize = 32;

/// A sum of requests, or of TCP connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) requests: u64,
    /// Over mutual TLS.
    pub(super) mtls: u64,
    pub(super) ends: Vec<(End, u64)>,
    /// Bucket of `weft_telemetry::load` and count, ascending.
    pub(super) latency: Vec<(u8, u64)>,
    pub(super) duration_us: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) opened: u64,
    pub(super) closed: u64,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) code: u16,
    /// Envoy's short names; empty for none.
    pub(super) flags: Arc<str>,
    pub(super) grpc: Option<u8>,
}

impl End {
    /// Status 400 and above, a gRPC status other than OK, or no answer at all. Flags alone are no
    /// failure: a fault may only have delayed it.
    pub(super) fn is_error(&self) -> bool {
        self.code >= 400 || self.code == 0 || self.grpc.is_some_and(|status| status != 0)
    }

    /// The server's or the mesh's fault, in Istio's sense of the success rate.
    pub(super) fn is_server_error(&self) -> bool {
        // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
        let grpc = matches!(self.grpc, Some(2 | 4 | 12 | 13 | 14 | 15));
        self.code >= 500 || self.code == 0 || grpc
    }

    /// Nobody may ever have served such a path.
    pub(super) fn is_unheard(&self) -> bool {
        matches!(self.code, 0 | 400 | 404 | 405) || self.grpc == Some(12) || self.is_no_route()
    }

    /// The mesh found no route: the application never heard of the request.
    pub(super) fn is_no_route(&self) -> bool {
        self.flags.split(',').any(|flag| flag == "NR")
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        let Tally {
            requests,
            mtls,
            ends,
            latency,
            duration_us,
            request_bytes,
            response_bytes,
            opened,
            closed,
        } = other;
        for (sum, more) in [
            (&mut self.requests, requests),
            (&mut self.mtls, mtls),
            (&mut self.duration_us, duration_us),
            (&mut self.request_bytes, request_bytes),
            (&mut self.response_bytes, response_bytes),
            (&mut self.opened, opened),
            (&mut self.closed, closed),
        ] {
            *sum = sum.saturating_add(*more);
        }
        for (end, count) in ends {
            self.ended(end, *count);
        }
        for (bucket, count) in latency {
            match self.latency.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
                Ok(at) => self.latency[at].1 += count,
                Err(at) => self.latency.insert(at, (*bucket, *count)),
            }
        }
    }

    pub(super) fn ended(&mut self, end: &End, count: u64) {
        let room = self.ends.len();
        if self.has_ended(end, count) {
            return;
        }
        if room < ENDS_MAX {
            return self.ends.push((end.clone(), count));
        }
        // Its class is worth more than its number.
        let class = End { code: end.code / 100 * 100, flags: Arc::from("other"), grpc: None };
        if !self.has_ended(&class, count) && room < 2 * ENDS_MAX {
            self.ends.push((class, count));
        }
    }

    fn has_ended(&mut self, end: &End, count: u64) -> bool {
        match self.ends.iter_mut().find(|(known, _)| known == end) {
            Some((_, known)) => *known = known.saturating_add(count),
            None => return false,
        }
        true
    }

    /// Requests that ended so.
    pub(super) fn count(&self, which: impl Fn(&End) -> bool) -> u64 {
        self.ends
            .iter()
            .filter(|(end, _)| which(end))
            .fold(0, |sum: u64, (_, count)| sum.saturating_add(*count))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0 && self.opened == 0 && self.closed == 0 && self.bytes() == 0
    }

    fn bytes(&self) -> u64 {
        self.request_bytes + self.response_bytes
    }
}

/// One series. Times are seconds of any clock that does not go back.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    pub(super) total: Tally,
    /// By start, oldest first.
    older: VecDeque<(u64, Tally)>,
    recent: VecDeque<(u64, Tally)>,
    pub(super) last: u64,
}

impl Window {
    pub(super) fn add(&mut self, now: u64, tally: &Tally) {
        self.last = now;
        self.total.add(tally);
        into_slot(&mut self.recent, now - now % FINE, tally);
        while let Some((start, _)) = self.recent.front()
            && start + FINE_FOR < now
        {
            let Some((start, tally)) = self.recent.pop_front() else { break };
            into_slot(&mut self.older, start - start % COARSE, &tally);
        }
        while let Some((start, _)) = self.older.front()
            && start + KEPT < now
        {
            self.older.pop_front();
        }
    }

    /// What came in the last `seconds`, to the slot.
    pub(super) fn over(&self, now: u64, seconds: u64) -> Tally {
        let from = now.saturating_sub(seconds);
        let mut sum = Tally::default();
        for (_, tally) in self.older.iter().filter(|(start, _)| start + COARSE > from) {
            sum.add(tally);
        }
        for (_, tally) in self.recent.iter().filter(|(start, _)| start + FINE > from) {
            sum.add(tally);
        }
        sum
    }

    /// Takes over another series, such as one that turned out to be of the same interface.
    pub(super) fn merge(&mut self, other: &Window) {
        self.total.add(&other.total);
        for (slots, theirs) in [(&mut self.older, &other.older), (&mut self.recent, &other.recent)]
        {
            for (start, tally) in theirs {
                match slots.binary_search_by_key(start, |(start, _)| *start) {
                    Ok(at) => slots[at].1.add(tally),
                    Err(at) => slots.insert(at, (*start, tally.clone())),
                }
            }
        }
        self.last = self.last.max(other.last);
    }
}

fn into_slot(slots: &mut VecDeque<(u64, Tally)>, start: u64, tally: &Tally) {
    match slots.back_mut() {
        Some((last, sum)) if *last == start => sum.add(tally),
        _ => slots.push_back((start, tally.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(requests: u64) -> Tally {
        Tally { requests, latency: vec![(7, requests)], ..Tally::default() }
    }

    #[test]
    fn slots_are_put_together_and_go() {
        let mut window = Window::default();
        for second in 0..3600 {
            window.add(second, &requests(2));
        }
        assert_eq!(window.total.requests, 7200);
        assert_eq!(window.total.latency, [(7, 7200)]);
        let minute = window.over(3599, 60).requests;
        assert!((120..=130).contains(&minute), "{minute}");
        let five = window.over(3599, 300).requests;
        assert!((600..=670).contains(&five), "{five}");
        assert!(window.recent.len() <= 20 && window.older.len() <= 32);
        assert_eq!(window.over(100_000, 60).requests, 0);
    }

    #[test]
    fn endings_are_bounded_and_none_is_forgotten() {
        let mut tally = Tally::default();
        for code in 400..600 {
            tally.ended(&End { code, flags: "".into(), grpc: None }, 1);
        }
        assert!(tally.ends.len() <= 2 * ENDS_MAX);
        assert_eq!(tally.count(|end| end.code / 100 == 5), 100);
        assert_eq!(tally.count(|_| true), 200);
    }

    #[test]
    fn merged_series_are_one() {
        let (mut one, mut other) = (Window::default(), Window::default());
        for second in 0..200 {
            one.add(second, &requests(1));
            other.add(second + 50, &requests(10));
        }
        one.merge(&other);
        assert_eq!(one.total.requests, 2200);
        assert_eq!(one.over(249, KEPT).requests, 2200);
    }
}
