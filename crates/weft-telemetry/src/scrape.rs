//! One scrape: the shards merged into plain numbers, then written family by family.

use crate::buckets::Buckets;
use crate::cell::{self, Cell, MessagesCell, TcpCell, read};
use crate::istio::{Exemplar, SeriesLabels};
use crate::registry::lock;
use crate::text::{Exposition, Text, header, sample, thousandths};
use crate::view::{Metric, View};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Size at which a piece of the exposition is handed on.
const CHUNK_BYTES: usize = 64 * 1024;

/// An iterator over the exposition text in pieces of about 64 KiB. Values are those of the
/// moment the scrape was taken.
pub struct Scrape {
    generic: Option<Vec<u8>>,
    form: Exposition,
    buckets: Arc<Buckets>,
    labels: Vec<Option<SeriesLabels>>,
    /// By series id.
    totals: Vec<Totals>,
    /// Series of different views, or of one that hides more in one family than in another, may look
    /// the same: then by family the series that do, else `None`.
    same: Option<Vec<Vec<usize>>>,
    family: usize,
    at: usize,
    family_started: bool,
}

#[derive(Clone)]
enum Totals {
    None,
    Request(Box<RequestTotals>),
    Messages { request: u64, response: u64 },
    Tcp { opened: u64, closed: u64, sent: u64, received: u64 },
}

#[derive(Clone, Default)]
struct RequestTotals {
    duration_us: Distribution,
    request_bytes: Distribution,
    response_bytes: Distribution,
    exemplars: Vec<(Exemplar, u64)>,
}

#[derive(Clone, Default)]
struct Distribution {
    counts: Vec<u64>,
    sum: u64,
}

impl Scrape {
    pub(crate) fn new(
        generic: Vec<u8>,
        labels: Vec<Option<SeriesLabels>>,
        buckets: Arc<Buckets>,
        form: Exposition,
    ) -> Self {
        let totals = vec![Totals::None; labels.len()];
        let mut scrape = Self {
            generic: Some(generic),
            form,
            buckets,
            labels,
            totals,
            same: None,
            family: 0,
            at: 0,
            family_started: false,
        };
        scrape.same = scrape.may_look_the_same().then(Vec::new);
        scrape
    }

    /// Adds a cell. A series that came up after the labels were copied waits for the next scrape.
    pub(crate) fn add(&mut self, id: u32, cell: &Cell) {
        if let Some(total) = self.totals.get_mut(id as usize) {
            total.add(cell);
        }
    }

    fn may_look_the_same(&self) -> bool {
        let flows = self.labels.iter().flatten().filter_map(SeriesLabels::flow);
        let mut views = flows.map(|flow| flow.view.as_deref());
        let Some(first) = views.next() else { return false };
        !first.is_none_or(View::is_uniform) || views.any(|view| view != first)
    }

    fn has(&self, series: usize, metric: Metric) -> bool {
        let Some(labels) = &self.labels[series] else { return false };
        let view = labels.flow().and_then(|flow| flow.view.as_deref());
        self.totals[series].has(metric) && !view.is_some_and(|view| view.drops(metric))
    }

    fn text(&self, series: usize, metric: Metric) -> String {
        let mut text = Text::default();
        if let Some(labels) = &self.labels[series] {
            labels.write(metric, &mut text);
        }
        text.out
    }

    /// The series of a family, those that look the same together.
    fn group(&self, metric: Metric) -> Vec<Vec<usize>> {
        let hasher = RandomState::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<u64, usize> = HashMap::new();
        for series in (0..self.labels.len()).filter(|series| self.has(*series, metric)) {
            // 64 random bits tell a budget's worth of texts apart.
            let at =
                *known.entry(hasher.hash_one(self.text(series, metric))).or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                });
            groups[at].push(series);
        }
        groups
    }

    fn write_one(&mut self, series: usize, metric: Metric, out: &mut Vec<u8>) {
        if self.has(series, metric) {
            self.start(metric, out);
            let text = self.text(series, metric);
            self.totals[series].write(metric, &text, &self.buckets, self.form, out);
        }
    }

    fn write_group(&mut self, group: &[usize], metric: Metric, out: &mut Vec<u8>) {
        let [first, rest @ ..] = group else { return };
        self.start(metric, out);
        let mut total = self.totals[*first].clone();
        rest.iter().for_each(|series| total.merge(&self.totals[*series]));
        let text = self.text(*first, metric);
        total.write(metric, &text, &self.buckets, self.form, out);
    }

    fn start(&mut self, metric: Metric, out: &mut Vec<u8>) {
        if !self.family_started {
            header(out, self.form, metric.name(), "", metric.kind());
            self.family_started = true;
        }
    }

    /// Writes the next series of the family; false: there is none.
    fn write_next(&mut self, metric: Metric, out: &mut Vec<u8>) -> bool {
        if let (0, Some(_)) = (self.at, &self.same) {
            self.same = Some(self.group(metric));
        }
        match &mut self.same {
            None if self.at < self.labels.len() => self.write_one(self.at, metric, out),
            Some(groups) if self.at < groups.len() => {
                let group = std::mem::take(&mut groups[self.at]);
                self.write_group(&group, metric, out);
            }
            _ => return false,
        }
        self.at += 1;
        true
    }
}

impl Iterator for Scrape {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = self.generic.take().unwrap_or_default();
        while let Some(metric) = Metric::ALL.get(self.family)
            && out.len() < CHUNK_BYTES
        {
            if !self.write_next(*metric, &mut out) {
                self.family += 1;
                self.at = 0;
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
            (Self::Request(total), Cell::Request(cell)) => {
                total.duration_us.add(&cell.duration_us);
                total.request_bytes.add(&cell.request_bytes);
                total.response_bytes.add(&cell.response_bytes);
                total.exemplars.extend(*lock(&cell.exemplar));
            }
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

    /// Adds the totals of a series that looks the same.
    fn merge(&mut self, other: &Totals) {
        match (&mut *self, other) {
            (Self::Request(own), Self::Request(other)) => {
                own.duration_us.merge(&other.duration_us);
                own.request_bytes.merge(&other.request_bytes);
                own.response_bytes.merge(&other.response_bytes);
                own.exemplars.extend(&other.exemplars);
            }
            (
                Self::Messages { request, response },
                Self::Messages { request: more_request, response: more_response },
            ) => {
                *request += more_request;
                *response += more_response;
            }
            (
                Self::Tcp { opened, closed, sent, received },
                Self::Tcp {
                    opened: more_opened,
                    closed: more_closed,
                    sent: more_sent,
                    received: more_received,
                },
            ) => {
                *opened += more_opened;
                *closed += more_closed;
                *sent += more_sent;
                *received += more_received;
            }
            _ => {}
        }
    }

    fn has(&self, metric: Metric) -> bool {
        match self {
            Self::None => false,
            Self::Request(_) => matches!(
                metric,
                Metric::Requests | Metric::Duration | Metric::RequestBytes | Metric::ResponseBytes
            ),
            Self::Messages { .. } => {
                matches!(metric, Metric::RequestMessages | Metric::ResponseMessages)
            }
            Self::Tcp { .. } => matches!(
                metric,
                Metric::TcpSent | Metric::TcpReceived | Metric::TcpOpened | Metric::TcpClosed
            ),
        }
    }

    fn write(
        &self,
        metric: Metric,
        labels: &str,
        buckets: &Buckets,
        form: Exposition,
        out: &mut Vec<u8>,
    ) {
        let value = match (self, metric) {
            (Self::Request(total), Metric::Duration) => {
                let exemplars = match form {
                    Exposition::Text => &[],
                    Exposition::OpenMetrics => &total.exemplars[..],
                };
                let written = Bounded { bounds: &buckets.duration_us, unit: Unit::Thousandth };
                return total.duration_us.write(metric, labels, written, exemplars, out);
            }
            (Self::Request(total), Metric::RequestBytes) => {
                let written = Bounded { bounds: &buckets.request_bytes, unit: Unit::One };
                return total.request_bytes.write(metric, labels, written, &[], out);
            }
            (Self::Request(total), Metric::ResponseBytes) => {
                let written = Bounded { bounds: &buckets.response_bytes, unit: Unit::One };
                return total.response_bytes.write(metric, labels, written, &[], out);
            }
            // The count of requests is the count of durations: one truth, no extra cell.
            (Self::Request(total), _) => total.duration_us.counts.iter().sum(),
            (Self::Messages { request, .. }, Metric::RequestMessages) => *request,
            (Self::Messages { response, .. }, _) => *response,
            (Self::Tcp { sent, .. }, Metric::TcpSent) => *sent,
            (Self::Tcp { received, .. }, Metric::TcpReceived) => *received,
            (Self::Tcp { opened, .. }, Metric::TcpOpened) => *opened,
            (Self::Tcp { closed, .. }, _) => *closed,
            (Self::None, _) => return,
        };
        sample(out, metric.name(), "", labels, None, itoa::Buffer::new().format(value));
    }
}

/// What one unit of a stored value is in the unit of the metric.
#[derive(Clone, Copy)]
enum Unit {
    One,
    Thousandth,
}

#[derive(Clone, Copy)]
struct Bounded<'b> {
    bounds: &'b [u64],
    unit: Unit,
}

impl Bounded<'_> {
    fn print(self, value: u64) -> String {
        match self.unit {
            Unit::One => value.to_string(),
            Unit::Thousandth => thousandths(value),
        }
    }
}

impl Distribution {
    fn add(&mut self, cell: &cell::Distribution) {
        self.counts.resize(cell.counts.len(), 0);
        for (total, count) in self.counts.iter_mut().zip(&cell.counts) {
            *total += read(count);
        }
        self.sum = self.sum.wrapping_add(read(&cell.sum));
    }

    fn merge(&mut self, other: &Distribution) {
        for (total, count) in self.counts.iter_mut().zip(&other.counts) {
            *total += count;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    fn write(
        &self,
        metric: Metric,
        labels: &str,
        values: Bounded<'_>,
        exemplars: &[(Exemplar, u64)],
        out: &mut Vec<u8>,
    ) {
        let name = metric.name();
        let mut total = 0;
        let mut above = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count;
            let bound = values.bounds.get(index).copied();
            let le = bound.map_or_else(|| "+Inf".to_owned(), |bound| values.print(bound));
            sample(
                out,
                name,
                "_bucket",
                labels,
                Some(("le", &le)),
                itoa::Buffer::new().format(total),
            );
            let upto = bound.unwrap_or(u64::MAX);
            let inside =
                |(_, value): &&(Exemplar, u64)| (*value > above || above == 0) && *value <= upto;
            let latest = exemplars.iter().filter(inside).max_by_key(|(one, _)| one.at_ms);
            if let Some((exemplar, value)) = latest {
                exemplar.write(&values.print(*value), out);
            }
            above = upto;
        }
        sample(out, name, "_sum", labels, None, &values.print(self.sum));
        sample(out, name, "_count", labels, None, itoa::Buffer::new().format(total));
    }
}

impl Exemplar {
    /// At the end of the line before.
    fn write(&self, value: &str, out: &mut Vec<u8>) {
        out.pop();
        let time = thousandths(self.at_ms);
        out.extend_from_slice(
            format!(" # {{trace_id=\"{}\"}} {value} {time}\n", self.trace).as_bytes(),
        );
    }
}
