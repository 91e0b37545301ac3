//! A worker's part of the metrics: cells that only this worker writes.
//!
//! The request path costs one small hash lookup ([`Shard::flow`]), or none when the caller keeps
//! the [`Flow`], then a scan of the few outcomes seen on that flow and plain adds.

use crate::cell::{Cell, MessagesCell, RequestCell, ShardCells, TcpCell, bump};
use crate::istio::{
    Amounts, CodeClass, FlowLabels, Outcome, Protocol, Reporter, RequestLabels, SecurityPolicy,
    SeriesLabels, TcpLabels,
};
use crate::registry::{Ownership, Registry};
use crate::view::View;
use foldhash::HashMap;
use std::cell::{self, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

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
    /// Evictions that have been noticed.
    evictions: cell::Cell<u64>,
    /// Cells looked up by label set: TCP, and the overflow of the budget.
    kept: RefCell<HashMap<SeriesLabels, Cell>>,
}

#[derive(PartialEq, Eq, Hash)]
struct RecentKey {
    source: usize,
    destination: usize,
    service: usize,
    reporter: Reporter,
    protocol: Protocol,
    security: SecurityPolicy,
    view: usize,
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
    /// What configuration makes of the outcomes.
    view: Option<Arc<View>>,
    outcomes: RefCell<Vec<(Outcome, Arc<RequestCell>)>>,
    messages: RefCell<Option<Arc<MessagesCell>>>,
    /// By the values of the view's own labels, of those that found room.
    variants: RefCell<HashMap<Box<[Box<str>]>, Flow>>,
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
        let evictions = cell::Cell::default();
        let home = Home { registry, cells, evictions, kept: RefCell::default() };
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
            view: labels.view.map_or(0, |view| Arc::as_ptr(view).addr()),
        };
        if let Some((_, flow)) = self.recent.borrow().get(&key) {
            return self.variant(flow, labels.values);
        }
        let flow = self.flow_by_content(FlowLabels::of(labels).canonical());
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= RECENT_MAX {
            recent.clear();
        }
        recent.insert(key, (FlowLabels::of(labels), flow.clone()));
        drop(recent);
        self.variant(&flow, labels.values)
    }

    /// The flow of these values of the view's own labels.
    fn variant(&self, flow: &Flow, values: &[Box<str>]) -> Flow {
        if values.is_empty() {
            return flow.clone();
        }
        let mut variants = flow.0.variants.borrow_mut();
        if let Some(known) = variants.get(values) {
            return known.clone();
        }
        let Some(labels) = &flow.0.labels else { return flow.clone() };
        let labels = FlowLabels { values: Some(values.into()), ..(**labels).clone() };
        let found = self.flow_by_content(labels);
        if found.0.labels.is_some() {
            variants.insert(values.into(), found.clone());
        }
        found
    }

    fn flow_by_content(&self, labels: FlowLabels) -> Flow {
        if let Some(flow) = self.flows.borrow().get(&labels) {
            return flow.clone();
        }
        let (reporter, protocol, view) = (labels.reporter, labels.protocol, labels.view.clone());
        let flow = |labels| {
            Flow(Rc::new(FlowState {
                home: self.home.clone(),
                reporter,
                protocol,
                labels,
                view,
                outcomes: RefCell::default(),
                messages: RefCell::default(),
                variants: RefCell::default(),
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
        let TcpLabels { reporter, source, destination, service, security, flags, view, values } =
            *labels;
        let flow = self.flow(&RequestLabels {
            reporter,
            source,
            destination,
            service,
            protocol: Protocol::Tcp,
            security,
            view,
            values,
        });
        let flags = view.map_or(flags, |view| view.tcp_flags(flags));
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

    /// Forgets what nobody has counted in for this many calls, or more: a series that no worker
    /// counts in is gone from the next scrape. Gives how many series went.
    pub fn sweep(&self, idle_calls_max: u8) -> u64 {
        let home = &self.home;
        let (gone, evicted) = home.registry.retire_idle(&home.cells, idle_calls_max);
        let evictions = home.registry.evictions();
        if gone.is_empty() && home.evictions.replace(evictions) == evictions {
            return 0;
        }
        let is_kept = |cell: usize| !gone.contains(&cell);
        home.kept.borrow_mut().retain(|_, cell| is_kept(cell.address()));
        // What found no room before may find some now.
        self.recent.borrow_mut().clear();
        self.flows.borrow_mut().retain(|_, flow| {
            let FlowState { outcomes, messages, variants, .. } = &*flow.0;
            variants.borrow_mut().clear();
            let (mut outcomes, mut messages) = (outcomes.borrow_mut(), messages.borrow_mut());
            outcomes.retain(|(_, cell)| is_kept(Arc::as_ptr(cell).addr()));
            messages.take_if(|cell| !is_kept(Arc::as_ptr(cell).addr()));
            !outcomes.is_empty() || messages.is_some()
        });
        evicted
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
        let outcome = self.0.view.as_ref().map_or(outcome, |view| view.outcome(outcome));
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
        let mut known = self.0.messages.borrow_mut();
        let cell = known.get_or_insert_with(|| self.messages_cell());
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
        let buckets = || self.registry.buckets().clone();
        match self.cell(labels, || Cell::Request(Arc::new(RequestCell::new(buckets()))))? {
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
        self.cells.add(id, &cell, labels.flow().is_none());
        // Request and message cells are kept by their flow.
        if !matches!(labels, SeriesLabels::Request(..) | SeriesLabels::Messages(_)) {
            self.kept.borrow_mut().insert(labels.clone(), cell.clone());
        }
        Some(cell)
    }
}
