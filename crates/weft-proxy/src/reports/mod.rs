//! Telling the control plane what traffic there is: who called whom, and single requests that it
//! keeps for a moment.
//!
//! ```text
//! request ─► Loads (worker: adds up) ─ once a second ─► Sender (control thread) ─► control plane
//! ```
//! Nothing here holds a request up: what finds no room on the way is lost, and counted. A control
//! plane that wants no reports says so once, and then nothing is added up. Must not know what is made
//! of the reports.

mod records;
mod sender;
mod wire;

pub(crate) use records::Access;
pub(crate) use sender::{Channels, run};

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use weft_telemetry::load::{Interface, LoadBatch, LoadTable, TcpLoad};
use weft_telemetry::{Amounts, Outcome, RequestLabels, TcpLabels};

/// Time between a worker's batches.
const BATCH_AFTER: Duration = Duration::from_secs(1);
/// Batches that may wait for the control thread.
const BATCHES_MAX: usize = 64;
/// Records that may wait in one worker.
const RECORDS_MAX: usize = 256;

/// What the control plane wants; read by workers, written with each of its answers.
pub(crate) struct Wanted {
    loads: AtomicBool,
    errors: AtomicBool,
    /// Of a million.
    share: AtomicU32,
    records_max: AtomicU32,
}

/// What a worker hands to the control thread.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    loads: LoadBatch,
    records: Vec<Access>,
    records_lost: u64,
}

/// One worker's part.
pub(crate) struct Loads(Rc<State>);

struct State {
    table: RefCell<LoadTable>,
    records: RefCell<Vec<Access>>,
    records_lost: Cell<u64>,
    wanted: Arc<Wanted>,
    batches: mpsc::Sender<Batch>,
    /// Somebody will look after [`BATCH_AFTER`].
    timed: Cell<bool>,
}

/// What all workers share, and the control thread's end.
pub(crate) fn channel() -> (Outlet, mpsc::Receiver<Batch>) {
    let (batches, receiver) = mpsc::channel(BATCHES_MAX);
    let wanted = Wanted {
        loads: AtomicBool::new(true),
        errors: AtomicBool::new(false),
        share: AtomicU32::new(0),
        records_max: AtomicU32::new(0),
    };
    (Outlet { wanted: Arc::new(wanted), batches }, receiver)
}

/// Where workers put their batches.
#[derive(Clone)]
pub(crate) struct Outlet {
    pub(crate) wanted: Arc<Wanted>,
    batches: mpsc::Sender<Batch>,
}

impl Loads {
    pub(crate) fn new(outlet: Outlet) -> Self {
        Self(Rc::new(State {
            table: RefCell::default(),
            records: RefCell::default(),
            records_lost: Cell::new(0),
            wanted: outlet.wanted,
            batches: outlet.batches,
            timed: Cell::new(false),
        }))
    }

    /// Counts one finished request.
    pub(crate) fn request(
        &self,
        labels: &RequestLabels<'_>,
        interface: Interface<'_>,
        outcome: Outcome,
        amounts: &Amounts,
    ) {
        if self.0.wanted.loads.load(Ordering::Relaxed) {
            self.0.table.borrow_mut().request(labels, interface, outcome, amounts);
            self.begin();
        }
    }

    /// The handle for a connection; `None` when nobody wants to know.
    pub(crate) fn tcp(&self, labels: &TcpLabels<'_>) -> Option<TcpLoad> {
        if !self.0.wanted.loads.load(Ordering::Relaxed) {
            return None;
        }
        let load = self.0.table.borrow_mut().tcp(labels);
        self.begin();
        load
    }

    /// Whether a record of a request that ended so is wanted. `random` draws its share.
    pub(crate) fn wants_record(&self, outcome: Outcome, random: impl FnOnce() -> u64) -> bool {
        let failed = outcome.code >= 400 || !outcome.flags.is_empty() || outcome.code == 0;
        let share = self.0.wanted.share.load(Ordering::Relaxed);
        failed && self.0.wanted.errors.load(Ordering::Relaxed)
            || share > 0 && random() % 1_000_000 < u64::from(share)
    }

    /// Keeps a record until the next batch.
    pub(crate) fn record(&self, record: impl FnOnce() -> Access) {
        let max = self.0.wanted.records_max.load(Ordering::Relaxed) as usize;
        let mut records = self.0.records.borrow_mut();
        if records.len() >= max.min(RECORDS_MAX) {
            self.0.records_lost.set(self.0.records_lost.get() + 1);
            return;
        }
        records.push(record());
        drop(records);
        self.begin();
    }

    /// Hands over what there is now; what finds no room stays, and adds up further.
    pub(crate) fn flush(&self) {
        self.0.flush();
    }

    fn begin(&self) {
        if !self.0.timed.replace(true) {
            tokio::task::spawn_local(flush_later(self.0.clone()));
        }
    }
}

impl State {
    fn flush(&self) {
        let Ok(place) = self.batches.try_reserve() else { return };
        let batch = Batch {
            loads: self.table.borrow_mut().take(),
            records: self.records.take(),
            records_lost: self.records_lost.take(),
        };
        if !batch.is_empty() {
            place.send(batch);
        }
    }
}

/// Runs while there is something to tell: an idle worker has no timer.
async fn flush_later(state: Rc<State>) {
    loop {
        tokio::time::sleep(BATCH_AFTER).await;
        state.flush();
        // Open TCP connections count without telling us.
        let is_quiet = state.table.borrow().is_idle() && state.records.borrow().is_empty();
        if is_quiet {
            state.timed.set(false);
            return;
        }
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.loads.loads.is_empty()
            && self.loads.lost == 0
            && self.records.is_empty()
            && self.records_lost == 0
    }
}

impl Wanted {
    fn set(&self, answer: &weft_xds::report::ReportResponse) {
        self.loads.store(true, Ordering::Relaxed);
        self.errors.store(answer.errors, Ordering::Relaxed);
        self.share.store(answer.share, Ordering::Relaxed);
        self.records_max.store(answer.records_max, Ordering::Relaxed);
    }

    /// Nothing, until an answer says otherwise.
    fn nothing(&self) {
        for wanted in [&self.loads, &self.errors] {
            wanted.store(false, Ordering::Relaxed);
        }
        self.share.store(0, Ordering::Relaxed);
    }
}
