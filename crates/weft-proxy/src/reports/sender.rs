//! The control thread's half: collects the workers' batches and sends one report at a time over the
//! connection to the control plane.
//!
//! A report that was not acknowledged is sent again under its number, so that it counts once. What is
//! older than [`KEPT`] when the control plane comes back is lost: it is a picture of now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use weft_telemetry::load::Load;
use weft_telemetry::{Counter, Registry};
use weft_xds::client::Options;
use weft_xds::report::{self, ReportRequest, ReportResponse};

use super::{Access, Batch, Wanted, wire};
use crate::worker::NodeInfo;

/// Time between reports, until the control plane says otherwise.
const INTERVAL: Duration = Duration::from_secs(1);
/// What it may say.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long a report may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Pause after a report that did not arrive.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Pause after a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// How long the past is kept for a control plane that is away.
const KEPT: Duration = Duration::from_secs(60);
/// Lines that may wait: some megabytes.
const LOADS_MAX: usize = 8192;
/// Records that may wait.
const RECORDS_MAX: usize = 1024;

/// The connection to the control plane, while there is one.
pub(crate) type Channels = watch::Sender<Option<Channel>>;

/// Sends until the last worker has ended, and then what it left.
pub(crate) async fn run(
    mut batches: mpsc::Receiver<Batch>,
    mut channels: watch::Receiver<Option<Channel>>,
    options: Options,
    node: Arc<NodeInfo>,
    wanted: Arc<Wanted>,
    registry: Registry,
) {
    let mut sender = Sender::new(options, node, wanted, &registry);
    // The first report says that we are there, and asks what is wanted.
    let mut due = Instant::now();
    loop {
        tokio::select! {
            batch = batches.recv() => match batch {
                Some(batch) => sender.add(batch),
                None => {
                    let channel = channels.borrow().clone();
                    if let Some(channel) = channel.filter(|_| sender.has_work()) {
                        sender.send(channel).await;
                    }
                    return;
                }
            },
            changed = channels.changed() => {
                if changed.is_err() {
                    return;
                }
                // Somebody else may answer now.
                sender.greeted = false;
                due = Instant::now();
            }
            () = tokio::time::sleep_until(due), if sender.has_work() => {
                let channel = channels.borrow().clone();
                due = Instant::now() + match channel {
                    Some(channel) => sender.send(channel).await,
                    None => AGAIN_AFTER,
                };
                sender.forget();
            }
        }
    }
}

struct Sender {
    options: Options,
    node: Arc<NodeInfo>,
    wanted: Arc<Wanted>,
    instance: u64,
    sequence: u64,
    loads: Vec<Load>,
    records: Vec<Access>,
    /// Of the oldest of them.
    since: Instant,
    /// Sent and not acknowledged, since when, and the requests in it.
    unanswered: Option<(ReportRequest, Instant, u64)>,
    greeted: bool,
    lost: u64,
    records_lost: u64,
    counters: Counters,
}

struct Counters {
    sent: Counter,
    failed: Counter,
    refused: Counter,
    lost: Counter,
    records_lost: Counter,
}

impl Sender {
    fn new(
        options: Options,
        node: Arc<NodeInfo>,
        wanted: Arc<Wanted>,
        registry: &Registry,
    ) -> Self {
        let reports = |result| {
            let help = "Load reports to the control plane, by what became of them.";
            registry.counter("weft_proxy_load_reports_total", help, &[("result", result)])
        };
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            options,
            node,
            wanted,
            instance: rand::random(),
            sequence: 0,
            loads: Vec::new(),
            records: Vec::new(),
            since: Instant::now(),
            unanswered: None,
            greeted: false,
            lost: 0,
            records_lost: 0,
            counters: Counters {
                sent: reports("sent"),
                failed: reports("failed"),
                refused: reports("refused"),
                lost: counter(
                    "weft_proxy_load_lost_requests_total",
                    "Requests that no load report tells of: no room, or the control plane was away.",
                ),
                records_lost: counter(
                    "weft_proxy_load_lost_records_total",
                    "Records of single requests that the control plane did not get.",
                ),
            },
        }
    }

    fn add(&mut self, batch: Batch) {
        let Batch { loads, records, records_lost } = batch;
        if self.loads.is_empty() && self.records.is_empty() {
            self.since = Instant::now();
        }
        self.lose(loads.lost);
        let room = LOADS_MAX.saturating_sub(self.loads.len());
        let mut arrived = loads.loads;
        let without = arrived.split_off(arrived.len().min(room));
        self.lose(requests(&without));
        self.loads.append(&mut arrived);
        let room = RECORDS_MAX.saturating_sub(self.records.len());
        let without = records.len().saturating_sub(room) as u64;
        self.lose_records(records_lost + without);
        self.records.extend(records.into_iter().take(room));
    }

    fn has_work(&self) -> bool {
        !self.greeted
            || self.unanswered.is_some()
            || !self.loads.is_empty()
            || !self.records.is_empty()
    }

    /// Sends one report; the time until the next.
    async fn send(&mut self, channel: Channel) -> Duration {
        let (report, since, requests) = match self.unanswered.take() {
            Some(unanswered) => unanswered,
            None => self.next_report(),
        };
        let token = self.options.token.as_ref().and_then(|token| token());
        let cluster = self.options.targets.first().and_then(|target| target.cluster.as_deref());
        let call = report::send(channel, (token.as_deref(), cluster), report.clone());
        let status = match tokio::time::timeout(ANSWER_WITHIN, call).await {
            Ok(Ok(answer)) => return self.answered(&answer),
            Ok(Err(status)) => status,
            Err(_) => tonic::Status::deadline_exceeded("no answer"),
        };
        tracing::debug!(%status, "load report");
        match status.code() {
            // A control plane that is not ours, or one that is told not to.
            Code::Unimplemented => {
                self.wanted.nothing();
                self.greeted = true;
                self.drop_all();
                self.counters.refused.inc();
                INTERVAL_MAX
            }
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::ResourceExhausted => {
                self.counters.refused.inc();
                self.greeted = true;
                self.lose(requests);
                REFUSED_PAUSE
            }
            _ => {
                self.counters.failed.inc();
                self.unanswered = Some((report, since, requests));
                AGAIN_AFTER
            }
        }
    }

    fn next_report(&mut self) -> (ReportRequest, Instant, u64) {
        self.sequence += 1;
        let mut report = ReportRequest {
            node: self.node.id.clone(),
            instance: self.instance,
            sequence: self.sequence,
            lost: self.lost,
            records_lost: self.records_lost,
            own: Some(wire::of_peer(&self.node.peer)),
            gateway: self.node.gateway,
            ..ReportRequest::default()
        };
        let (loads, records) = (std::mem::take(&mut self.loads), std::mem::take(&mut self.records));
        wire::fill(&mut report, &loads, &records);
        (report, self.since, requests(&loads))
    }

    fn answered(&mut self, answer: &ReportResponse) -> Duration {
        self.counters.sent.inc();
        self.greeted = true;
        self.wanted.set(answer);
        match answer.interval_ms {
            0 => INTERVAL,
            ms => Duration::from_millis(ms.into()).clamp(INTERVAL_MIN, INTERVAL_MAX),
        }
    }

    /// Gives up what is too old.
    fn forget(&mut self) {
        if let Some((_, since, requests)) = &self.unanswered
            && since.elapsed() > KEPT
        {
            let requests = *requests;
            self.unanswered = None;
            self.lose(requests);
        }
        if self.unanswered.is_none() && self.since.elapsed() > KEPT {
            self.drop_all();
        }
    }

    fn drop_all(&mut self) {
        let without = requests(&std::mem::take(&mut self.loads));
        self.lose(without);
        let without = std::mem::take(&mut self.records).len() as u64;
        self.lose_records(without);
    }

    fn lose(&mut self, requests: u64) {
        self.lost += requests;
        self.counters.lost.add(requests);
    }

    fn lose_records(&mut self, records: u64) {
        self.records_lost += records;
        self.counters.records_lost.add(records);
    }
}

fn requests(loads: &[Load]) -> u64 {
    loads.iter().map(|load| load.tally.requests).sum()
}
