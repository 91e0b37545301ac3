//! A worker's part of the metrics: cells that only this worker writes.
//!
//! The request path costs one small hash lookup ([`Shard::flow`]), or none when the caller keeps
//! the [`Flow`], then a scan of the few outcomes seen on that flow and plain adds.

use crate::istio::{
    Amounts, CodeClass, DURATION_US, FlowLabels, Outcome, Protocol, Reporter, RequestLabels,
    SIZE_BYTES, SecurityPolicy, SeriesLabels, TcpLabels,
};
use crate::registry::{Ownership, Registry, lock};
use foldhash::HashMap;
use std::cell::{OnceCell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Entries of the pointer-keyed lookup; cleared when full, since it only saves time.
const RECENT_MAX: usize = 1024;
/// Outcomes one flow keeps apart; a scan of more would cost too much.
const OUTCOMES_MAX: usize = 64;

/// One worker's metrics. Cheap to clone; stays on its thread.
#[derive(Clone)]
pub struct Shard {
    home: Rc<Home>,
    /// By pointers of the label parts: equal pointers are equal labels while the parts live,
    /// which the entry sees to.
    recent: Rc<RefCell<HashMap<RecentKey, (FlowLabels, Flow)>>>,
    flows: Rc<RefCell<HashMap<Arc<FlowLabels>, Flow>>>,
}

struct Home {
    registry: Registry,
    cells: Arc<ShardCells>,
    /// Cells looked up by label set: TCP, and the overflow of the budget.
    kept: RefCell<HashMap<SeriesLabels, Cell>>,
}

/// What a scrape reads of a shard: cells by series id.
#[derive(Default)]
pub(crate) struct ShardCells {
    pub(crate) list: Mutex<Vec<(u32, Cell)>>,
}

#[derive(Clone)]
pub(crate) enum Cell {
    Request(Arc<RequestCell>),
    Messages(Arc<MessagesCell>),
    Tcp(Arc<TcpCell>),
}

#[derive(Default)]
pub(crate) struct RequestCell {
    pub(crate) duration_us: [AtomicU64; DURATION_US.len() + 1],
    pub(crate) duration_us_sum: AtomicU64,
    pub(crate) request_bytes: [AtomicU64; SIZE_BYTES.len() + 1],
    pub(crate) request_bytes_sum: AtomicU64,
    pub(crate) response_bytes: [AtomicU64; SIZE_BYTES.len() + 1],
    pub(crate) response_bytes_sum: AtomicU64,
}

#[derive(Default)]
pub(crate) struct MessagesCell {
    pub(crate) request: AtomicU64,
    pub(crate) response: AtomicU64,
}

#[derive(Default)]
pub(crate) struct TcpCell {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
}

#[derive(PartialEq, Eq, Hash)]
struct RecentKey {
    source: usize,
    destination: usize,
    service: usize,
    reporter: Reporter,
    protocol: Protocol,
    security: SecurityPolicy,
}

/// Counts requests of one label set. Keep it as long as its labels hold.
#[derive(Clone)]
pub struct Flow(Rc<FlowState>);

struct FlowState {
    home: Rc<Home>,
    reporter: Reporter,
    protocol: Protocol,
    /// `None`: the budget was spent when the flow appeared.
    labels: Option<Arc<FlowLabels>>,
    outcomes: RefCell<Vec<(Outcome, Arc<RequestCell>)>>,
    messages: OnceCell<Arc<MessagesCell>>,
}

/// Counts connections and bytes of one TCP label set.
#[derive(Clone)]
pub struct TcpFlow(Arc<TcpCell>, OneThread);

/// A counter cell that only this worker writes.
#[derive(Clone)]
pub struct LocalCounter(Arc<AtomicU64>, OneThread);

/// A gauge cell that only this worker writes; a scrape adds up all workers' cells.
#[derive(Clone)]
pub struct LocalGauge(Arc<AtomicI64>, OneThread);

/// Keeps single-writer cells on their thread: their adds are not atomic.
type OneThread = PhantomData<*const ()>;

impl Shard {
    pub(crate) fn new(registry: Registry, cells: Arc<ShardCells>) -> Self {
        let home = Home { registry, cells, kept: RefCell::default() };
        Self { home: Rc::new(home), recent: Rc::default(), flows: Rc::default() }
    }

    /// Counts one finished HTTP or gRPC request.
    pub fn request(&self, labels: &RequestLabels<'_>, outcome: Outcome, amounts: &Amounts) {
        self.flow(labels).request(outcome, amounts);
    }

    /// The handle for a label set.
    pub fn flow(&self, labels: &RequestLabels<'_>) -> Flow {
        let key = RecentKey {
            source: Arc::as_ptr(labels.source).addr(),
            destination: Arc::as_ptr(labels.destination).addr(),
            service: Arc::as_ptr(labels.service).addr(),
            reporter: labels.reporter,
            protocol: labels.protocol,
            security: labels.security,
        };
        if let Some((_, flow)) = self.recent.borrow().get(&key) {
            return flow.clone();
        }
        let flow = self.flow_by_content(FlowLabels::of(labels));
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= RECENT_MAX {
            recent.clear();
        }
        recent.insert(key, (FlowLabels::of(labels), flow.clone()));
        flow
    }

    fn flow_by_content(&self, labels: FlowLabels) -> Flow {
        if let Some(flow) = self.flows.borrow().get(&labels) {
            return flow.clone();
        }
        let (reporter, protocol) = (labels.reporter, labels.protocol);
        let flow = |labels| {
            Flow(Rc::new(FlowState {
                home: self.home.clone(),
                reporter,
                protocol,
                labels,
                outcomes: RefCell::default(),
                messages: OnceCell::new(),
            }))
        };
        if self.home.registry.is_full() {
            return flow(None);
        }
        let labels = self.home.registry.flow_labels(labels);
        let flow = flow(Some(labels.clone()));
        self.flows.borrow_mut().insert(labels, flow.clone());
        flow
    }

    /// The handle for a TCP label set.
    pub fn tcp(&self, labels: &TcpLabels<'_>) -> TcpFlow {
        let TcpLabels { reporter, source, destination, service, security, flags } = *labels;
        let protocol = Protocol::Tcp;
        let flow = RequestLabels { reporter, source, destination, service, protocol, security };
        let flow = self.flow(&flow);
        // TCP series are taken once a connection, so a lookup in the shared table is cheap enough.
        let cell = match &flow.0.labels {
            Some(labels) => self.home.tcp(&SeriesLabels::Tcp(labels.clone(), flags)),
            None => None,
        };
        let cell = match cell {
            Some(cell) => cell,
            None => self
                .home
                .tcp(&SeriesLabels::OtherTcp(reporter))
                .expect("overflow series are always admitted"),
        };
        TcpFlow(cell, PhantomData)
    }

    /// Whether a host name that a request brought may be a label's value: the first ones may
    /// ([`crate::Budget::hosts_max`]). Takes a lock; remember the answer of a host that may.
    pub fn admits_host(&self, host: &str) -> bool {
        self.home.registry.admits_host(host)
    }

    /// A counter with this worker's own cell, summed over workers at a scrape.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> LocalCounter {
        let cell = self.home.registry.counter_cell(name, help, labels, Ownership::Own);
        LocalCounter(cell, PhantomData)
    }

    /// A gauge with this worker's own cell, summed over workers at a scrape.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> LocalGauge {
        let cell = self.home.registry.gauge_cell(name, help, labels, Ownership::Own);
        LocalGauge(cell, PhantomData)
    }
}

impl Flow {
    /// Counts one finished request.
    pub fn request(&self, outcome: Outcome, amounts: &Amounts) {
        let known = self.0.outcomes.borrow();
        match known.iter().find(|(known, _)| *known == outcome) {
            Some((_, cell)) => cell.record(amounts),
            None => {
                drop(known);
                self.new_cell(outcome).record(amounts);
            }
        }
        if amounts.request_messages > 0 || amounts.response_messages > 0 {
            self.messages(amounts.request_messages, amounts.response_messages);
        }
    }

    /// Counts gRPC messages while a stream runs. Do not count them again in [`Amounts`].
    pub fn messages(&self, request: u64, response: u64) {
        let cell = self.0.messages.get_or_init(|| self.messages_cell());
        bump(&cell.request, request);
        bump(&cell.response, response);
    }

    /// The cell of an outcome this flow has not kept.
    fn new_cell(&self, outcome: Outcome) -> Arc<RequestCell> {
        let FlowState { home, outcomes, labels, .. } = &*self.0;
        let series = match labels {
            Some(labels) if outcomes.borrow().len() < OUTCOMES_MAX => {
                home.request(&SeriesLabels::Request(labels.clone(), outcome))
            }
            _ => None,
        };
        match series {
            Some(cell) => {
                outcomes.borrow_mut().push((outcome, cell.clone()));
                cell
            }
            None => home.other_request(self.0.reporter, self.0.protocol, outcome.code),
        }
    }

    fn messages_cell(&self) -> Arc<MessagesCell> {
        let FlowState { home, labels, reporter, .. } = &*self.0;
        let series = match labels {
            Some(labels) => home.messages(&SeriesLabels::Messages(labels.clone())),
            None => None,
        };
        match series {
            Some(cell) => cell,
            None => home
                .messages(&SeriesLabels::OtherMessages(*reporter))
                .expect("overflow series are always admitted"),
        }
    }
}

impl RequestCell {
    fn record(&self, amounts: &Amounts) {
        let us = u64::try_from(amounts.duration.as_micros()).unwrap_or(u64::MAX);
        observe(&self.duration_us, &self.duration_us_sum, &DURATION_US, us);
        let bytes = amounts.request_bytes;
        observe(&self.request_bytes, &self.request_bytes_sum, &SIZE_BYTES, bytes);
        let bytes = amounts.response_bytes;
        observe(&self.response_bytes, &self.response_bytes_sum, &SIZE_BYTES, bytes);
    }
}

impl TcpFlow {
    pub fn opened(&self) {
        bump(&self.0.opened, 1);
    }

    pub fn closed(&self) {
        bump(&self.0.closed, 1);
    }

    /// Bytes sent to the client (`istio_tcp_sent_bytes_total`: the response's direction).
    pub fn sent(&self, bytes: u64) {
        bump(&self.0.sent_bytes, bytes);
    }

    /// Bytes received from the client (`istio_tcp_received_bytes_total`).
    pub fn received(&self, bytes: u64) {
        bump(&self.0.received_bytes, bytes);
    }
}

impl LocalCounter {
    pub fn inc(&self) {
        bump(&self.0, 1);
    }

    pub fn add(&self, n: u64) {
        bump(&self.0, n);
    }

    /// This worker's part.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl LocalGauge {
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// This worker's part.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Home {
    fn request(&self, labels: &SeriesLabels) -> Option<Arc<RequestCell>> {
        match self.cell(labels, || Cell::Request(Arc::default()))? {
            Cell::Request(cell) => Some(cell),
            Cell::Messages(_) | Cell::Tcp(_) => None,
        }
    }

    fn other_request(&self, reporter: Reporter, protocol: Protocol, code: u16) -> Arc<RequestCell> {
        self.request(&SeriesLabels::Other(reporter, protocol, CodeClass::of(code)))
            .expect("overflow series are always admitted")
    }

    fn messages(&self, labels: &SeriesLabels) -> Option<Arc<MessagesCell>> {
        match self.cell(labels, || Cell::Messages(Arc::default()))? {
            Cell::Messages(cell) => Some(cell),
            Cell::Request(_) | Cell::Tcp(_) => None,
        }
    }

    fn tcp(&self, labels: &SeriesLabels) -> Option<Arc<TcpCell>> {
        match self.cell(labels, || Cell::Tcp(Arc::default()))? {
            Cell::Tcp(cell) => Some(cell),
            Cell::Request(_) | Cell::Messages(_) => None,
        }
    }

    /// The cell for a label set, visible to scrapes; `None` when the budget is spent.
    fn cell(&self, labels: &SeriesLabels, new: impl FnOnce() -> Cell) -> Option<Cell> {
        if let Some(cell) = self.kept.borrow().get(labels) {
            return Some(cell.clone());
        }
        let id = self.registry.series_id(labels)?;
        let cell = new();
        lock(&self.cells.list).push((id, cell.clone()));
        // Request and message cells are kept by their flow.
        if !matches!(labels, SeriesLabels::Request(..) | SeriesLabels::Messages(_)) {
            self.kept.borrow_mut().insert(labels.clone(), cell.clone());
        }
        Some(cell)
    }
}

/// Adds to a cell that only this thread writes: a plain load and store, no locked instruction.
fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn observe(buckets: &[AtomicU64], sum: &AtomicU64, bounds: &[u64], value: u64) {
    bump(&buckets[bounds.partition_point(|bound| *bound < value)], 1);
    bump(sum, value);
}
