//! Generic metric families: counters, gauges and histograms with free labels.
//!
//! A series is a list of cells whose sum is the value, so that a worker can own a cell of its
//! own beside the shared one.

use crate::text::{Exposition, header, number, sample};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A monotonic count, shared by threads. Clone it freely; look it up once.
#[derive(Debug, Clone, Default)]
pub struct Counter(pub(crate) Arc<AtomicU64>);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A whole number that goes up and down, shared by threads.
#[derive(Debug, Clone, Default)]
pub struct Gauge(pub(crate) Arc<AtomicI64>);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution over fixed bounds, shared by threads.
#[derive(Debug, Clone)]
pub struct Histogram(pub(crate) Arc<HistogramCells>);

#[derive(Debug)]
pub(crate) struct HistogramCells {
    bounds: Box<[f64]>,
    /// One more than `bounds`: the last is +Inf.
    buckets: Box<[AtomicU64]>,
    /// Bits of an f64.
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: &[f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(HistogramCells { bounds: bounds.into(), buckets, sum: AtomicU64::new(0) }))
    }

    /// Counts one value, in the unit of the bounds. NaN is ignored.
    pub fn observe(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let HistogramCells { bounds, buckets, sum } = &*self.0;
        buckets[bounds.partition_point(|bound| *bound < value)].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The update closure never declines.
        let _ = sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

/// Computes a gauge when it is scraped.
pub(crate) type GaugeFn = Arc<dyn Fn() -> f64 + Send + Sync>;

pub(crate) enum Series {
    Counter(Vec<Arc<AtomicU64>>),
    Gauge(Vec<Arc<AtomicI64>>),
    Computed(GaugeFn),
    Histogram(Histogram),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(crate) struct Family {
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    /// Keyed by label text.
    pub(crate) series: BTreeMap<String, Series>,
}

impl Family {
    pub(crate) fn render(&self, name: &str, form: Exposition, out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        header(out, form, name, self.help, kind);
        for (labels, series) in &self.series {
            match series {
                Series::Counter(cells) => {
                    let total: u64 = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum();
                    sample(out, name, "", labels, None, itoa::Buffer::new().format(total));
                }
                Series::Gauge(cells) => {
                    let total: i64 = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum();
                    sample(out, name, "", labels, None, itoa::Buffer::new().format(total));
                }
                Series::Computed(compute) => {
                    sample(out, name, "", labels, None, &number(compute()));
                }
                Series::Histogram(histogram) => histogram.render(name, labels, out),
            }
        }
    }
}

impl Histogram {
    fn render(&self, name: &str, labels: &str, out: &mut Vec<u8>) {
        let HistogramCells { bounds, buckets, sum } = &*self.0;
        let mut total = 0;
        for (index, bucket) in buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = bounds.get(index).copied().unwrap_or(f64::INFINITY);
            let count = total.to_string();
            sample(out, name, "_bucket", labels, Some(("le", &number(bound))), &count);
        }
        let sum = f64::from_bits(sum.load(Ordering::Relaxed));
        sample(out, name, "_sum", labels, None, &number(sum));
        sample(out, name, "_count", labels, None, &total.to_string());
    }
}
