//! Spans of requests that are sampled where a collector is configured, and their way there.
//!
//! A worker collects spans and sends them itself, as Envoy does: five at a time, or what there is
//! after five seconds. What waits is bounded; a collector that is slow, down or unknown costs spans,
//! which are counted, and nobody's time.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use weft_http::{HeaderList, Known, Method, RequestHead, Scheme, Target, Version};
use weft_telemetry::trace::{Context, Side, zipkin};
use weft_telemetry::{Exemplar, LocalCounter, Outcome, Shard};
use weft_traffic::http::Zipkin;
use weft_traffic::listener::Direction;
use weft_traffic::{Cluster, Endpoint, EndpointAddress, HttpConfig};

use super::call::call;
use super::conn::HttpConn;
use super::request::Request;
use super::trace::known;
use crate::worker::Worker;

/// Spans that make a report.
const REPORT_SPANS: usize = 5;
/// How long a span waits for others.
const REPORT_AFTER: Duration = Duration::from_secs(5);
/// How long the collector may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports under way at a time.
const REPORTS_MAX: u32 = 4;
/// Bytes of spans that wait for their report.
const WAITING_BYTES_MAX: usize = 512 * 1024;
/// Longest value of a tag, as Envoy's `max_path_tag_length`.
const TAG_BYTES_MAX: usize = 256;

/// Notes on a request that is sampled.
pub(crate) struct Notes {
    collector: Arc<Zipkin>,
    start: SystemTime,
    operation: Option<Arc<str>>,
    cluster: Option<Arc<Cluster>>,
}

impl Notes {
    /// None: there is no collector, or the request is not sampled.
    pub(crate) fn begin(http: &HttpConfig, head: &RequestHead) -> Option<Box<Notes>> {
        let collector = http.tracing.as_ref()?.collector.as_ref()?;
        is_sampled(&head.headers).then(|| {
            Box::new(Notes {
                collector: collector.clone(),
                start: SystemTime::now(),
                operation: None,
                cluster: None,
            })
        })
    }

    /// The route was found, which may name the span.
    pub(crate) fn routed(&mut self, operation: Option<&Arc<str>>) {
        self.operation = operation.cloned();
    }

    pub(crate) fn calls(&mut self, cluster: &Arc<Cluster>) {
        self.cluster = Some(cluster.clone());
    }

    /// The request as an example of its kind, once it has ended.
    pub(crate) fn exemplar(&self, request: &Request) -> Option<Exemplar> {
        let headers = &request.head.headers;
        let ids = Context::extract(|field| headers.get_known(known(field))).ids?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Exemplar { trace: ids.trace, at_ms: at.as_millis() as u64 })
    }

    /// The request has ended: its span goes on its way.
    pub(crate) fn report(self, request: &Request, end: &End<'_>, conn: &HttpConn) {
        let head = &request.head;
        let incoming = Context::extract(|field| head.headers.get_known(known(field)));
        let Some(mut ids) = incoming.ids else { return };
        let side = match conn.direction() {
            Direction::Inbound => Side::Server,
            Direction::Outbound | Direction::Gateway => Side::Client,
        };
        if side == Side::Client {
            ids.parent = request.parent.map(NonZeroU64::get);
        }
        let worker = &conn.worker;
        let own = &worker.node.peer;
        let authority = text(head.authority());
        let name = self.operation.as_deref().unwrap_or(&authority);
        let service = match (own.canonical_service.as_str(), own.app.as_str()) {
            ("", "") => own.workload.as_str(),
            ("", app) => app,
            (service, _) => service,
        };
        let service = format!("{service}.{}", own.namespace);
        let url =
            format!("{}://{authority}{}", head.scheme.as_str(), cut(&text(head.path_and_query())));
        let number = |number: u64| number.to_string();
        let (code, flags) = (number(end.outcome.code.into()), end.outcome.flags.to_string());
        let (sent, received) = (number(end.sent_bytes), number(end.received_bytes));
        let method = text(head.method.as_bytes());
        let agent = text(head.headers.get("user-agent").unwrap_or(b"-"));
        let id = text(head.headers.get("x-request-id").unwrap_or_default());
        let peer = conn.context.peer.ip().to_canonical().to_string();
        let grpc = end.outcome.grpc_status.map(|status| number(status.into()));
        let mut tags = vec![
            ("component", "proxy"),
            ("node_id", worker.node.id.as_str()),
            ("guid:x-request-id", &id),
            ("http.method", &method),
            ("http.protocol", request.version.as_str()),
            ("http.status_code", &code),
            ("http.url", &url),
            ("user_agent", &agent),
            ("request_size", &received),
            ("response_size", &sent),
            ("response_flags", &flags),
            ("peer.address", &peer),
            ("istio.canonical_service", &own.canonical_service),
            ("istio.canonical_revision", &own.canonical_revision),
            ("istio.namespace", &own.namespace),
        ];
        if let Some(cluster) = &self.cluster {
            tags.push(("upstream_cluster", &cluster.name));
            tags.push(("upstream_cluster.name", &cluster.name));
        }
        if let Some(grpc) = &grpc {
            tags.push(("grpc.status_code", grpc));
        }
        if end.outcome.code >= 500 || end.outcome.code == 0 {
            tags.push(("error", "true"));
        }
        let micros = |time: Duration| time.as_micros() as u64;
        let span = zipkin::Span {
            ids,
            side,
            shared: side == Side::Server && request.parent.is_some(),
            debug: incoming.debug,
            name,
            start_us: micros(self.start.duration_since(UNIX_EPOCH).unwrap_or_default()),
            duration_us: micros(end.duration),
            service: &service,
            local: Some(conn.context.original_dst.unwrap_or(conn.context.local)),
            remote: match (side, end.endpoint.map(|endpoint| &endpoint.address)) {
                (Side::Client, Some(EndpointAddress::Ip(address))) => Some(*address),
                (Side::Server, _) => Some(conn.context.peer),
                (Side::Client, _) => None,
            },
            tags: &tags,
        };
        let mut json = Vec::with_capacity(1024);
        span.write(&mut json);
        worker.spans.add(worker, &self.collector, &json);
    }
}

/// What the record adds at the end.
pub(crate) struct End<'e> {
    pub(crate) duration: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) endpoint: Option<&'e Endpoint>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TAG_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Whether the context that goes on says so; any of its formats will do, for they agree.
fn is_sampled(headers: &HeaderList) -> bool {
    let ends =
        |known, end: &[u8]| headers.get_known(known).is_some_and(|value| value.ends_with(end));
    match headers.get_known(Known::XB3Sampled) {
        Some(value) if !value.is_empty() => value == b"1" || value == b"true",
        _ => {
            ends(Known::Traceparent, b"-01")
                || ends(Known::XB3Flags, b"1")
                || headers.get_known(Known::B3).is_some_and(|value| {
                    value
                        .split(|byte| *byte == b'-')
                        .nth(2)
                        .is_some_and(|one| one == b"1" || one == b"d")
                })
        }
    }
}

/// A worker's spans on their way, by collector.
pub struct Spans {
    queues: RefCell<Vec<Rc<Queue>>>,
    counters: Counters,
}

/// Envoy's counters.
struct Counters {
    spans: LocalCounter,
    sent: LocalCounter,
    dropped: LocalCounter,
    failed: LocalCounter,
    skipped: LocalCounter,
    lost: LocalCounter,
}

struct Queue {
    collector: Arc<Zipkin>,
    /// Spans, separated by commas.
    waiting: RefCell<Vec<u8>>,
    count: Cell<usize>,
    under_way: Cell<u32>,
    /// Somebody will look after [`REPORT_AFTER`].
    timed: Cell<bool>,
}

impl Spans {
    pub(crate) fn new(metrics: &Shard) -> Spans {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Spans {
            queues: RefCell::default(),
            counters: Counters {
                spans: counter("envoy_tracing_zipkin_spans_sent", "Spans in reports."),
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
        }
    }

    fn add(&self, worker: &Rc<Worker>, collector: &Arc<Zipkin>, span: &[u8]) {
        let queue = self.queue(collector);
        let mut waiting = queue.waiting.borrow_mut();
        if waiting.len() + span.len() > WAITING_BYTES_MAX {
            return self.counters.lost.inc();
        }
        if !waiting.is_empty() {
            waiting.push(b',');
        }
        waiting.extend_from_slice(span);
        drop(waiting);
        queue.count.set(queue.count.get() + 1);
        if queue.count.get() >= REPORT_SPANS {
            self.send(worker, &queue);
        } else if !queue.timed.replace(true) {
            tokio::task::spawn_local(send_later(worker.clone(), queue));
        }
    }

    fn queue(&self, collector: &Arc<Zipkin>) -> Rc<Queue> {
        let mut queues = self.queues.borrow_mut();
        if let Some(known) = queues.iter().find(|queue| queue.collector == *collector) {
            return known.clone();
        }
        // Those of earlier configurations go with their last report.
        queues.retain(|queue| queue.count.get() > 0 || queue.under_way.get() > 0);
        let queue = Rc::new(Queue {
            collector: collector.clone(),
            waiting: RefCell::default(),
            count: Cell::new(0),
            under_way: Cell::new(0),
            timed: Cell::new(false),
        });
        queues.push(queue.clone());
        queue
    }

    fn send(&self, worker: &Rc<Worker>, queue: &Rc<Queue>) {
        if queue.count.get() == 0 || queue.under_way.get() >= REPORTS_MAX {
            return;
        }
        let spans = queue.count.replace(0);
        let mut body = vec![b'['];
        body.append(&mut queue.waiting.borrow_mut());
        body.push(b']');
        queue.under_way.set(queue.under_way.get() + 1);
        tokio::task::spawn_local(report(worker.clone(), queue.clone(), body.into(), spans));
    }
}

async fn send_later(worker: Rc<Worker>, queue: Rc<Queue>) {
    tokio::time::sleep(REPORT_AFTER).await;
    queue.timed.set(false);
    worker.spans.send(&worker, &queue);
}

async fn report(worker: Rc<Worker>, queue: Rc<Queue>, body: Bytes, spans: usize) {
    let counters = &worker.spans.counters;
    let cluster = worker.tables().cluster(&queue.collector.cluster).cloned();
    match cluster {
        None => counters.skipped.inc(),
        Some(cluster) => {
            counters.spans.add(spans as u64);
            let head = request_head(&queue.collector);
            let answer = call(&worker, &cluster, head, body);
            match tokio::time::timeout(REPORT_TIMEOUT, Box::pin(answer)).await {
                Ok(Ok(200 | 202)) => counters.sent.inc(),
                Ok(Ok(_)) => counters.dropped.inc(),
                Ok(Err(_)) | Err(_) => counters.failed.inc(),
            }
        }
    }
    queue.under_way.set(queue.under_way.get() - 1);
    if queue.count.get() >= REPORT_SPANS {
        worker.spans.send(&worker, &queue);
    }
}

fn request_head(collector: &Zipkin) -> RequestHead {
    let mut headers = HeaderList::new();
    headers.append("content-type", "application/json");
    RequestHead {
        method: Method::Post,
        scheme: Scheme::Http,
        authority: Some(Bytes::copy_from_slice(collector.host.as_bytes())),
        target: Target::Path(Bytes::copy_from_slice(collector.path.as_bytes())),
        version: Version::H11,
        headers,
    }
}
