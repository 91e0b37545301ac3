//! One scrape: the shards merged into plain numbers, then written family by family.

use crate::istio::{self, DURATION_US, SIZE_BYTES, SeriesLabels};
use crate::registry::lock;
use crate::shard::{Cell, MessagesCell, RequestCell, ShardCells, TcpCell};
use crate::text::{Text, header, sample, thousandths};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size at which a piece of the exposition is handed on.
const CHUNK_BYTES: usize = 64 * 1024;

/// An iterator over the exposition text in pieces of about 64 KiB. Values are those of the
/// moment the scrape was taken.
pub struct Scrape {
    generic: Option<Vec<u8>>,
    labels: Vec<SeriesLabels>,
    /// By series id.
    totals: Vec<Totals>,
    family: usize,
    series: usize,
    family_started: bool,
}

enum Totals {
    None,
    Request(Box<RequestTotals>),
    Messages { request: u64, response: u64 },
    Tcp { opened: u64, closed: u64, sent: u64, received: u64 },
}

#[derive(Default)]
struct RequestTotals {
    duration_us: Distribution<{ DURATION_US.len() + 1 }>,
    request_bytes: Distribution<{ SIZE_BYTES.len() + 1 }>,
    response_bytes: Distribution<{ SIZE_BYTES.len() + 1 }>,
}

struct Distribution<const N: usize> {
    buckets: [u64; N],
    sum: u64,
}

impl<const N: usize> Default for Distribution<N> {
    fn default() -> Self {
        Self { buckets: [0; N], sum: 0 }
    }
}

/// Istio's families in the order written.
const FAMILIES: [(&str, &str); 10] = [
    (istio::REQUESTS_TOTAL, "counter"),
    (istio::REQUEST_DURATION_MS, "histogram"),
    (istio::REQUEST_BYTES, "histogram"),
    (istio::RESPONSE_BYTES, "histogram"),
    (istio::REQUEST_MESSAGES_TOTAL, "counter"),
    (istio::RESPONSE_MESSAGES_TOTAL, "counter"),
    (istio::TCP_SENT_BYTES_TOTAL, "counter"),
    (istio::TCP_RECEIVED_BYTES_TOTAL, "counter"),
    (istio::TCP_OPENED_TOTAL, "counter"),
    (istio::TCP_CLOSED_TOTAL, "counter"),
];

impl Scrape {
    pub(crate) fn new(
        generic: Vec<u8>,
        labels: Vec<SeriesLabels>,
        shards: &[Arc<ShardCells>],
    ) -> Self {
        let mut totals: Vec<Totals> = labels.iter().map(|_| Totals::None).collect();
        for shard in shards {
            for (id, cell) in lock(&shard.list).iter() {
                // A series interned after `labels` was copied waits for the next scrape.
                if let Some(total) = totals.get_mut(*id as usize) {
                    total.add(cell);
                }
            }
        }
        Self { generic: Some(generic), labels, totals, family: 0, series: 0, family_started: false }
    }

    fn write_series(&mut self, out: &mut Vec<u8>) {
        let (name, kind) = FAMILIES[self.family];
        let total = &self.totals[self.series];
        if !total.has(name) {
            return;
        }
        if !self.family_started {
            header(out, name, "", kind);
            self.family_started = true;
        }
        let mut text = Text::default();
        self.labels[self.series].write(&mut text);
        total.write(name, &text.out, out);
    }
}

impl Iterator for Scrape {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = self.generic.take().unwrap_or_default();
        while self.family < FAMILIES.len() && out.len() < CHUNK_BYTES {
            if self.series < self.labels.len() {
                self.write_series(&mut out);
                self.series += 1;
            } else {
                self.family += 1;
                self.series = 0;
                self.family_started = false;
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

impl Totals {
    fn add(&mut self, cell: &Cell) {
        match (&mut *self, cell) {
            (Self::None, _) => {
                *self = match cell {
                    Cell::Request(_) => Self::Request(Box::default()),
                    Cell::Messages(_) => Self::Messages { request: 0, response: 0 },
                    Cell::Tcp(_) => Self::Tcp { opened: 0, closed: 0, sent: 0, received: 0 },
                };
                self.add(cell);
            }
            (Self::Request(total), Cell::Request(cell)) => total.add(cell),
            (Self::Messages { request, response }, Cell::Messages(cell)) => {
                let MessagesCell { request: more_request, response: more_response } = &**cell;
                *request += read(more_request);
                *response += read(more_response);
            }
            (Self::Tcp { opened, closed, sent, received }, Cell::Tcp(cell)) => {
                let TcpCell {
                    opened: more_opened,
                    closed: more_closed,
                    sent_bytes,
                    received_bytes,
                } = &**cell;
                *opened += read(more_opened);
                *closed += read(more_closed);
                *sent += read(sent_bytes);
                *received += read(received_bytes);
            }
            _ => debug_assert!(false, "one series id has two kinds of cells"),
        }
    }

    fn has(&self, family: &str) -> bool {
        match self {
            Self::None => false,
            Self::Request(_) => matches!(
                family,
                istio::REQUESTS_TOTAL
                    | istio::REQUEST_DURATION_MS
                    | istio::REQUEST_BYTES
                    | istio::RESPONSE_BYTES
            ),
            Self::Messages { .. } => {
                matches!(family, istio::REQUEST_MESSAGES_TOTAL | istio::RESPONSE_MESSAGES_TOTAL)
            }
            Self::Tcp { .. } => matches!(
                family,
                istio::TCP_SENT_BYTES_TOTAL
                    | istio::TCP_RECEIVED_BYTES_TOTAL
                    | istio::TCP_OPENED_TOTAL
                    | istio::TCP_CLOSED_TOTAL
            ),
        }
    }

    fn write(&self, family: &str, labels: &str, out: &mut Vec<u8>) {
        let value = match (self, family) {
            (Self::Request(total), istio::REQUEST_DURATION_MS) => {
                return total.duration_us.write(
                    family,
                    labels,
                    &DURATION_US,
                    Unit::Thousandth,
                    out,
                );
            }
            (Self::Request(total), istio::REQUEST_BYTES) => {
                return total.request_bytes.write(family, labels, &SIZE_BYTES, Unit::One, out);
            }
            (Self::Request(total), istio::RESPONSE_BYTES) => {
                return total.response_bytes.write(family, labels, &SIZE_BYTES, Unit::One, out);
            }
            // The count of requests is the count of durations: one truth, no extra cell.
            (Self::Request(total), _) => total.duration_us.buckets.iter().sum(),
            (Self::Messages { request, .. }, istio::REQUEST_MESSAGES_TOTAL) => *request,
            (Self::Messages { response, .. }, _) => *response,
            (Self::Tcp { sent, .. }, istio::TCP_SENT_BYTES_TOTAL) => *sent,
            (Self::Tcp { received, .. }, istio::TCP_RECEIVED_BYTES_TOTAL) => *received,
            (Self::Tcp { opened, .. }, istio::TCP_OPENED_TOTAL) => *opened,
            (Self::Tcp { closed, .. }, _) => *closed,
            (Self::None, _) => return,
        };
        sample(out, family, "", labels, None, itoa::Buffer::new().format(value));
    }
}

impl RequestTotals {
    fn add(&mut self, cell: &RequestCell) {
        let RequestCell {
            duration_us,
            duration_us_sum,
            request_bytes,
            request_bytes_sum,
            response_bytes,
            response_bytes_sum,
        } = cell;
        self.duration_us.add(duration_us, duration_us_sum);
        self.request_bytes.add(request_bytes, request_bytes_sum);
        self.response_bytes.add(response_bytes, response_bytes_sum);
    }
}

/// What one unit of a stored value is in the unit of the metric.
#[derive(Clone, Copy)]
enum Unit {
    One,
    Thousandth,
}

impl<const N: usize> Distribution<N> {
    fn add(&mut self, buckets: &[AtomicU64; N], sum: &AtomicU64) {
        for (total, bucket) in self.buckets.iter_mut().zip(buckets) {
            *total += read(bucket);
        }
        self.sum = self.sum.wrapping_add(read(sum));
    }

    fn write(&self, name: &str, labels: &str, bounds: &[u64], unit: Unit, out: &mut Vec<u8>) {
        let print = |value: u64| match unit {
            Unit::One => value.to_string(),
            Unit::Thousandth => thousandths(value),
        };
        let mut total = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            total += bucket;
            let bound = bounds.get(index).map_or_else(|| "+Inf".to_owned(), |bound| print(*bound));
            let mut count = itoa::Buffer::new();
            sample(out, name, "_bucket", labels, Some(("le", &bound)), count.format(total));
        }
        sample(out, name, "_sum", labels, None, &print(self.sum));
        sample(out, name, "_count", labels, None, itoa::Buffer::new().format(total));
    }
}

fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}
