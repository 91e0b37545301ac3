//! How many streams may be open, and how fast new ones may come.
//!
//! A token bucket and a count. After an outage all proxies return at once; those
//! refused come back after their backoff.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tonic::Status;
use weft_telemetry::{Counter, Registry as Metrics};

pub(super) struct Admission {
    open: Arc<AtomicUsize>,
    open_max: usize,
    bucket: Mutex<Bucket>,
    per_second: f64,
    refused_new: Counter,
    refused_open: Counter,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// An open stream's place; given back when dropped.
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(super) fn new(open_max: usize, per_second: u32, metrics: &Metrics) -> Self {
        let help = "xDS streams that were told to come back later.";
        let refused =
            |why| metrics.counter("weft_xds_streams_refused_total", help, &[("reason", why)]);
        let (refused_new, refused_open) = (refused("rate"), refused("open"));
        let per_second = f64::from(per_second);
        let bucket = Mutex::new(Bucket { tokens: per_second, filled: Instant::now() });
        Self { open: Arc::default(), open_max, bucket, per_second, refused_new, refused_open }
    }

    /// Takes from the bucket of new streams.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Status> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * self.per_second).min(self.per_second);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            self.refused_new.inc();
            return Err(Status::unavailable("too many new xDS streams: come back later"));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Takes one of the places for open streams.
    pub(super) fn enter(&self) -> Result<Place, Status> {
        let place = Place(Arc::clone(&self.open));
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_max {
            self.refused_open.inc();
            return Err(Status::unavailable("too many open xDS streams: come back later"));
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::{Admission, Metrics};
    use std::time::{Duration, Instant};

    #[test]
    fn bursts_are_bounded_and_refill() {
        let admission = Admission::new(10, 2, &Metrics::new());
        let now = Instant::now();
        assert!(admission.admit(now).is_ok());
        assert!(admission.admit(now).is_ok());
        assert!(admission.admit(now).is_err());
        assert!(admission.admit(now + Duration::from_millis(500)).is_ok());
        assert!(admission.admit(now + Duration::from_millis(600)).is_err());
    }

    #[test]
    fn places_are_given_back() {
        let admission = Admission::new(1, 10, &Metrics::new());
        let place = admission.enter().unwrap();
        assert!(admission.enter().is_err());
        drop(place);
        assert!(admission.enter().is_ok());
    }
}
