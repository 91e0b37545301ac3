//! How often the API server is asked: a token bucket over all requests, and the wait after one
//! that failed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

/// Requests a second, and how many may be sent at once after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst: u32,
}

impl Default for Rate {
    /// As Istio's control plane.
    fn default() -> Self {
        Rate { per_second: 80.0, burst: 160 }
    }
}

pub(super) struct Limit {
    rate: Rate,
    /// When the bucket would be full again; it is as far from full as that lies ahead.
    full_at: Mutex<Instant>,
}

impl Limit {
    pub(super) fn new(rate: Rate) -> Self {
        Limit { rate, full_at: Mutex::new(Instant::now()) }
    }

    /// Waits until one more request may be sent.
    pub(super) async fn wait(&self) {
        let until = {
            let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
            take(&mut full_at, self.rate, Instant::now())
        };
        tokio::time::sleep_until(until).await;
    }
}

/// Takes one token; when it may be used.
fn take(full_at: &mut Instant, rate: Rate, now: Instant) -> Instant {
    let each = Duration::from_secs_f64(1.0 / rate.per_second.max(0.001));
    *full_at = (*full_at).max(now) + each;
    let room = each * rate.burst.max(1);
    // With the bucket empty, the token is there when all but `burst` of the debt is paid.
    full_at.checked_sub(room).map_or(now, |at| at.max(now))
}

/// The wait after the `failures`-th failure in a row: doubled each time, at most 30 s, anywhere
/// in its upper half, and never less than the server asks for.
pub(crate) fn back_off(failures: u32, asked: Option<Duration>) -> Duration {
    const FIRST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(30);
    let whole = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MOST);
    let jitter = rand::rng().random_range(0.5..=1.0);
    let own = whole.mul_f64(jitter);
    // All that were told the same time must not come back at the same moment.
    asked.map_or(own, |asked| own.max(asked + whole.mul_f64(jitter - 0.5)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let rate = Rate { per_second: 10.0, burst: 3 };
        let now = Instant::now();
        let mut full_at = now;
        let waits: Vec<Duration> = (0..6).map(|_| take(&mut full_at, rate, now) - now).collect();
        let ms = |n| Duration::from_millis(n);
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(100), ms(200), ms(300)]);
        let later = now + ms(10_000);
        assert_eq!(take(&mut full_at, rate, later), later);
    }

    #[test]
    fn waits_grow_to_a_limit_and_honour_the_server() {
        for failures in 1..50 {
            let wait = back_off(failures, None);
            assert!(wait >= Duration::from_millis(250) && wait <= Duration::from_secs(30));
        }
        assert!(back_off(1, Some(Duration::from_secs(7))) >= Duration::from_secs(7));
    }
}
