//! Buckets of latency, four to each doubling: a quantile is at most an eighth off, and a histogram
//! that names only what it met is short.

/// From below a microsecond to above an hour.
pub const LATENCY_BUCKETS: usize = 128;

/// The bucket of a latency in microseconds.
pub fn latency_bucket(us: u64) -> u8 {
    let bucket = match us {
        0..4 => us,
        _ => {
            let octave = u64::from(us.ilog2());
            (octave - 1) * 4 + ((us >> (octave - 2)) & 3)
        }
    };
    bucket.min(LATENCY_BUCKETS as u64 - 1) as u8
}

/// What every latency of the bucket is below, in microseconds.
pub fn latency_bound_us(bucket: u8) -> u64 {
    match u64::from(bucket) {
        below @ 0..4 => below + 1,
        bucket => (4 + bucket % 4 + 1) << (bucket / 4 - 1),
    }
}

/// The latency below which the share `quantile` (0 to 1) lies, in microseconds, between the bounds of
/// its bucket as if latencies lay evenly there. `None` without any.
pub fn quantile_us(buckets: impl Iterator<Item = (u8, u64)> + Clone, quantile: f64) -> Option<f64> {
    let total: u64 = buckets.clone().map(|(_, count)| count).sum();
    if total == 0 {
        return None;
    }
    let rank = quantile.clamp(0.0, 1.0) * total as f64;
    let mut before = 0.0;
    let mut found = 0.0;
    for (bucket, count) in buckets.filter(|(_, count)| *count > 0) {
        let lower = bucket.checked_sub(1).map_or(0, latency_bound_us) as f64;
        let upper = latency_bound_us(bucket) as f64;
        let share = ((rank - before) / count as f64).clamp(0.0, 1.0);
        found = lower + (upper - lower) * share;
        before += count as f64;
        if before >= rank {
            break;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_ascend_and_hold_what_they_say() {
        let mut last = 0;
        for us in (0..100_000).chain([1 << 20, 1 << 30, u64::MAX]) {
            let bucket = latency_bucket(us);
            assert!(bucket >= last, "{us}");
            last = bucket;
            if usize::from(bucket) < LATENCY_BUCKETS - 1 {
                assert!(us < latency_bound_us(bucket), "{us} in {bucket}");
                let lower = bucket.checked_sub(1).map_or(0, latency_bound_us);
                assert!(us >= lower, "{us} in {bucket} from {lower}");
            }
        }
        assert_eq!(usize::from(latency_bucket(u64::MAX)), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_near() {
        let mut counts = [0u64; LATENCY_BUCKETS];
        for us in 1..=10_000u64 {
            counts[usize::from(latency_bucket(us))] += 1;
        }
        let buckets = counts.iter().enumerate().map(|(bucket, count)| (bucket as u8, *count));
        for (quantile, expect) in [(0.5, 5_000.0), (0.9, 9_000.0), (0.99, 9_900.0)] {
            let found = quantile_us(buckets.clone(), quantile).unwrap();
            assert!((found / expect - 1.0).abs() < 0.13, "{quantile}: {found}");
        }
        assert_eq!(quantile_us(std::iter::empty(), 0.5), None);
    }
}
