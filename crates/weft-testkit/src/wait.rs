//! Waiting for a condition of another process, bounded in time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How often a condition of another process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Polls `probe` until it gives a value; panics with `what` after `limit`.
///
/// Only for the state of another process, which gives no event to wait for.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}
