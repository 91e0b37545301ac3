//! Upper bounds of Istio's histograms: its own, or what `sidecar.istio.io/statsHistogramBuckets` says.

use crate::view::Metric;

/// Upper bounds of one process's histograms. Fixed for its life: cells are as long as their bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    pub(crate) duration_us: Box<[u64]>,
    pub(crate) request_bytes: Box<[u64]>,
    pub(crate) response_bytes: Box<[u64]>,
}

/// Why bounds are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{prefix:?}: {reason}")]
pub struct BucketError {
    pub prefix: String,
    pub reason: &'static str,
}

/// Upper bounds of a histogram. Every one is a series more per label set.
const BOUNDS_MAX: usize = 64;
/// What Istio's metrics are called in Envoy, before their own names.
const NAMESPACE: &str = "istiocustom.";

/// Istio's 0.5 ms to 1 h, in microseconds.
const DURATION_US: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
const SIZE_BYTES: [u64; 9] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

impl Default for Buckets {
    fn default() -> Self {
        Self {
            duration_us: DURATION_US.into(),
            request_bytes: SIZE_BYTES.into(),
            response_bytes: SIZE_BYTES.into(),
        }
    }
}

impl Buckets {
    /// Takes bounds for the histograms whose Envoy name (`istiocustom.istio_request_bytes`) begins
    /// with a prefix, in the unit of the metric. Of several that fit, the first in the order of their
    /// prefixes counts, as in Envoy. A prefix that fits no histogram here is somebody else's.
    ///
    /// # Errors
    /// No bounds, too many, or not ascending positive numbers.
    pub fn of_prefixes(mut settings: Vec<(String, Vec<f64>)>) -> Result<Self, BucketError> {
        settings.sort_by(|one, other| one.0.cmp(&other.0));
        for (prefix, bounds) in &settings {
            let bad = |reason| Err(BucketError { prefix: prefix.clone(), reason });
            let ascend = bounds.windows(2).all(|pair| pair[0] < pair[1]);
            match bounds.first() {
                None => return bad("bounds are needed"),
                Some(first)
                    if !(*first > 0.0 && ascend && bounds.iter().all(|b| b.is_finite())) =>
                {
                    return bad("bounds are positive numbers that ascend");
                }
                Some(_) if bounds.len() > BOUNDS_MAX => return bad("at most 64 bounds are kept"),
                Some(_) => {}
            }
        }
        let of = |metric: Metric, scale: f64| -> Option<Box<[u64]>> {
            let name = format!("{NAMESPACE}{}", metric.name());
            let (_, bounds) = settings.iter().find(|(prefix, _)| name.starts_with(prefix))?;
            Some(bounds.iter().map(|bound| (bound * scale).round() as u64).collect())
        };
        let standard = Self::default();
        Ok(Self {
            duration_us: of(Metric::Duration, 1000.0).unwrap_or(standard.duration_us),
            request_bytes: of(Metric::RequestBytes, 1.0).unwrap_or(standard.request_bytes),
            response_bytes: of(Metric::ResponseBytes, 1.0).unwrap_or(standard.response_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_taken_by_prefix_in_the_metrics_unit() {
        let settings = vec![
            ("istiocustom.istio_request_b".to_owned(), vec![64.0]),
            ("listener".to_owned(), vec![1.0]),
            ("istiocustom.istio_request_d".to_owned(), vec![0.25, 2.0]),
        ];
        let buckets = Buckets::of_prefixes(settings).unwrap();
        assert_eq!(*buckets.duration_us, [250, 2000]);
        assert_eq!(*buckets.request_bytes, [64]);
        assert_eq!(*buckets.response_bytes, SIZE_BYTES);
    }

    #[test]
    fn bounds_that_are_none_are_refused() {
        for bounds in [vec![], vec![2.0, 1.0], vec![0.0], vec![f64::NAN], vec![1.0; 65]] {
            assert!(Buckets::of_prefixes(vec![("istiocustom".to_owned(), bounds)]).is_err());
        }
    }
}
