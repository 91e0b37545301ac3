//! Reports to collectors: spans and access logs that services take, on their way.
//!
//! A worker collects items and sends them itself, as Envoy does: spans five at a time or what there is
//! after five seconds, logs by 16 KiB or each second. What waits is bounded; a collector that is slow,
//! down or unknown costs items, which are counted, and nobody's time. Every report is a call of its
//! own, so that a collector that went away is found again by the next one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_http::{HeaderList, Method, RequestHead, Scheme, Target, Version};
use weft_telemetry::trace::otlp::{self, field};
use weft_telemetry::{LocalCounter, Shard};
use weft_traffic::collector::{Collector, Report};

use crate::http::call::{Reply, call};
use crate::worker::Worker;

/// Spans that make a report, and how long one waits for others.
const SPANS: usize = 5;
const SPANS_AFTER: Duration = Duration::from_secs(5);
/// Bytes of logs that make a report, and how long a line waits for others.
const LOG_BYTES: usize = 16 * 1024;
const LOGS_AFTER: Duration = Duration::from_secs(1);
/// Reports to one collector under way at a time.
const REPORTS_MAX: u32 = 4;
/// Bytes that wait for one collector.
const WAITING_BYTES_MAX: usize = 512 * 1024;
/// Collectors that one worker has items for at a time.
const COLLECTORS_MAX: usize = 64;

/// A worker's items on their way, by collector.
pub struct Outbox {
    queues: RefCell<Vec<Rc<Queue>>>,
    zipkin: Counters,
    spans: Counters,
    logs: Counters,
}

/// What became of the items of one kind.
struct Counters {
    items: LocalCounter,
    sent: LocalCounter,
    dropped: LocalCounter,
    failed: LocalCounter,
    skipped: LocalCounter,
    lost: LocalCounter,
}

struct Queue {
    collector: Arc<Collector>,
    /// Items, as the report has them.
    waiting: RefCell<Vec<u8>>,
    count: Cell<usize>,
    under_way: Cell<u32>,
    /// Somebody will look after a while.
    timed: Cell<bool>,
}

impl Outbox {
    pub(crate) fn new(metrics: &Shard) -> Outbox {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Outbox {
            queues: RefCell::default(),
            zipkin: Counters {
                items: counter("envoy_tracing_zipkin_spans_sent", "Spans in reports."),
                sent: counter("envoy_tracing_zipkin_reports_sent", "Reports taken (202)."),
                dropped: counter("envoy_tracing_zipkin_reports_dropped", "Reports refused."),
                failed: counter("envoy_tracing_zipkin_reports_failed", "Reports not delivered."),
                skipped: counter(
                    "envoy_tracing_zipkin_reports_skipped_no_cluster",
                    "Reports without a collector to send them to.",
                ),
                lost: counter(
                    "weft_proxy_spans_dropped_total",
                    "Spans lost because too many waited for the collector.",
                ),
            },
            spans: Counters::of(metrics, "otlp_spans"),
            logs: Counters::of(metrics, "logs"),
        }
    }

    fn counters(&self, report: Report) -> &Counters {
        match report {
            Report::Zipkin { .. } => &self.zipkin,
            Report::OtlpSpans => &self.spans,
            Report::OtlpLogs | Report::HttpEntries | Report::TcpEntries => &self.logs,
        }
    }

    pub(crate) fn add(&self, worker: &Rc<Worker>, collector: &Arc<Collector>, item: &[u8]) {
        let Some(queue) = self.queue(collector) else {
            return self.counters(collector.report).lost.inc();
        };
        let mut waiting = queue.waiting.borrow_mut();
        if waiting.len() + item.len() > WAITING_BYTES_MAX {
            return self.counters(collector.report).lost.inc();
        }
        match collector.report {
            Report::Zipkin { .. } => {
                if !waiting.is_empty() {
                    waiting.push(b',');
                }
                waiting.extend_from_slice(item);
            }
            Report::OtlpSpans | Report::OtlpLogs => field(2, item, &mut waiting),
            Report::HttpEntries | Report::TcpEntries => field(1, item, &mut waiting),
        }
        drop(waiting);
        queue.count.set(queue.count.get() + 1);
        if queue.is_due() {
            self.send(worker, &queue);
        } else if !queue.timed.replace(true) {
            tokio::task::spawn_local(send_later(worker.clone(), queue));
        }
    }

    /// None: there are too many.
    fn queue(&self, collector: &Arc<Collector>) -> Option<Rc<Queue>> {
        let mut queues = self.queues.borrow_mut();
        if let Some(known) = queues.iter().find(|queue| queue.collector == *collector) {
            return Some(known.clone());
        }
        // Those of earlier configurations go with their last report.
        queues.retain(|queue| queue.count.get() > 0 || queue.under_way.get() > 0);
        if queues.len() >= COLLECTORS_MAX {
            return None;
        }
        let queue = Rc::new(Queue {
            collector: collector.clone(),
            waiting: RefCell::default(),
            count: Cell::new(0),
            under_way: Cell::new(0),
            timed: Cell::new(false),
        });
        queues.push(queue.clone());
        Some(queue)
    }

    fn send(&self, worker: &Rc<Worker>, queue: &Rc<Queue>) {
        if queue.count.get() == 0 || queue.under_way.get() >= REPORTS_MAX {
            return;
        }
        let count = queue.count.replace(0);
        let items = std::mem::take(&mut *queue.waiting.borrow_mut());
        let body = body(&queue.collector, items, worker);
        queue.under_way.set(queue.under_way.get() + 1);
        tokio::task::spawn_local(report(worker.clone(), queue.clone(), body, count));
    }
}

impl Counters {
    fn of(metrics: &Shard, kind: &str) -> Counters {
        let result = |result| {
            let help = "Reports to collectors, by what they hold and what became of them.";
            let labels = [("kind", kind), ("result", result)];
            metrics.counter("weft_proxy_reports_total", help, &labels)
        };
        let items = |name, help| metrics.counter(name, help, &[("kind", kind)]);
        Counters {
            items: items("weft_proxy_report_items_total", "Spans and log lines in reports."),
            lost: items(
                "weft_proxy_report_items_dropped_total",
                "Spans and log lines lost because too much waited for the collector.",
            ),
            sent: result("sent"),
            dropped: result("refused"),
            failed: result("failed"),
            skipped: result("no_cluster"),
        }
    }
}

impl Queue {
    fn is_due(&self) -> bool {
        match self.collector.report {
            Report::Zipkin { .. } | Report::OtlpSpans => self.count.get() >= SPANS,
            _ => self.waiting.borrow().len() >= LOG_BYTES,
        }
    }
}

async fn send_later(worker: Rc<Worker>, queue: Rc<Queue>) {
    let after = match queue.collector.report {
        Report::Zipkin { .. } | Report::OtlpSpans => SPANS_AFTER,
        _ => LOGS_AFTER,
    };
    tokio::time::sleep(after).await;
    queue.timed.set(false);
    worker.outbox.send(&worker, &queue);
}

async fn report(worker: Rc<Worker>, queue: Rc<Queue>, body: Bytes, count: usize) {
    let collector = &queue.collector;
    let counters = worker.outbox.counters(collector.report);
    let cluster = worker.tables().cluster(&collector.cluster).cloned();
    match cluster {
        None => counters.skipped.inc(),
        Some(cluster) => {
            counters.items.add(count as u64);
            let answer = call(&worker, &cluster, request_head(collector), body);
            match tokio::time::timeout(collector.timeout, Box::pin(answer)).await {
                Ok(Ok(reply)) if is_taken(&reply, collector.grpc) => counters.sent.inc(),
                Ok(Ok(_)) => counters.dropped.inc(),
                Ok(Err(error)) => {
                    tracing::debug!(cluster = %cluster.name, %error, "report not delivered");
                    counters.failed.inc();
                }
                Err(_) => counters.failed.inc(),
            }
        }
    }
    queue.under_way.set(queue.under_way.get() - 1);
    if queue.is_due() {
        worker.outbox.send(&worker, &queue);
    }
}

fn is_taken(reply: &Reply, grpc: bool) -> bool {
    match grpc {
        true => reply.status == 200 && reply.grpc_status == Some(0),
        false => matches!(reply.status, 200..=299),
    }
}

/// The report's body, with who sends it.
fn body(collector: &Collector, items: Vec<u8>, worker: &Worker) -> Bytes {
    let own = &worker.node.peer;
    let message = match collector.report {
        Report::Zipkin { .. } => {
            let mut json = Vec::with_capacity(items.len() + 2);
            json.push(b'[');
            json.extend(items);
            json.push(b']');
            json
        }
        Report::OtlpSpans => {
            let service = format!("{}.{}", own.canonical_service, own.namespace);
            let name = if collector.name.is_empty() { &service } else { &*collector.name };
            otlp::report(&[("service.name", name)], &items)
        }
        Report::OtlpLogs => {
            let labels = [
                ("log_name", &*collector.name),
                ("node_name", &worker.node.id),
                ("cluster_name", &own.workload),
            ];
            otlp::report(&labels, &items)
        }
        Report::HttpEntries | Report::TcpEntries => {
            // StreamAccessLogsMessage{identifier{node{id, cluster}, log_name}, http_logs | tcp_logs}
            let (mut node, mut identifier, mut message) = (Vec::new(), Vec::new(), Vec::new());
            field(1, worker.node.id.as_bytes(), &mut node);
            field(2, own.workload.as_bytes(), &mut node);
            field(1, &node, &mut identifier);
            field(2, collector.name.as_bytes(), &mut identifier);
            field(1, &identifier, &mut message);
            let number = if collector.report == Report::HttpEntries { 2 } else { 3 };
            field(number, &items, &mut message);
            message
        }
    };
    if !collector.grpc {
        return message.into();
    }
    let mut framed = Vec::with_capacity(message.len() + 5);
    framed.push(0);
    framed.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(message);
    framed.into()
}

fn request_head(collector: &Collector) -> RequestHead {
    let mut headers = HeaderList::new();
    let kind = match (collector.grpc, collector.report) {
        (true, _) => "application/grpc",
        (false, Report::Zipkin { .. }) => "application/json",
        (false, _) => "application/x-protobuf",
    };
    headers.append("content-type", kind);
    if collector.grpc {
        headers.append("te", "trailers");
    }
    RequestHead {
        method: Method::Post,
        scheme: Scheme::Http,
        authority: Some(Bytes::copy_from_slice(collector.host.as_bytes())),
        target: Target::Path(Bytes::copy_from_slice(collector.path.as_bytes())),
        version: Version::H11,
        headers,
    }
}
