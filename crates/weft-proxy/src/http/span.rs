//! Spans of requests that are sampled where a collector is configured. Their way there is
//! `crate::outbox`.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_http::{HeaderList, Known, RequestHead};
use weft_telemetry::trace::{Context, Side, zipkin};
use weft_telemetry::{Exemplar, Outcome};
use weft_traffic::collector::{Collector, Report};
use weft_traffic::http::{Tag, TagValue};
use weft_traffic::listener::Direction;
use weft_traffic::{Cluster, Endpoint, EndpointAddress, HttpConfig};

use super::conn::HttpConn;
use super::request::Request;
use super::trace::known;
use crate::access_log;

/// Notes on a request that is sampled.
pub(crate) struct Notes {
    /// Its tracing is configured.
    http: Arc<HttpConfig>,
    start: SystemTime,
    operation: Option<Arc<str>>,
    cluster: Option<Arc<Cluster>>,
}

impl Notes {
    /// None: nobody wants spans, or the request is not sampled.
    pub(crate) fn begin(
        http: &Arc<HttpConfig>,
        head: &RequestHead,
        conn: &HttpConn,
    ) -> Option<Box<Notes>> {
        let collector = http.tracing.as_ref()?.collector.as_ref();
        if collector.is_none() && conn.worker.node.span_log.is_none() {
            return None;
        }
        is_sampled(&head.headers).then(|| {
            Box::new(Notes {
                http: http.clone(),
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
        let Some(tracing) = &self.http.tracing else { return };
        let shares = shares_span(tracing.collector.as_deref());
        if side == Side::Client || !shares {
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
        let url = format!(
            "{}://{authority}{}",
            head.scheme.as_str(),
            cut(&text(head.path_and_query()), tracing.tag_bytes_max)
        );
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
        let told = tags_of(&tracing.tags, head);
        for (name, value) in &told {
            tags.retain(|(known, _)| known != name);
            tags.push((name, cut(value, TAG_BYTES_MAX)));
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
            shared: side == Side::Server && shares && request.parent.is_some(),
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
        if let Some(collector) = &tracing.collector {
            let mut item = Vec::with_capacity(1024);
            match collector.report {
                Report::OtlpSpans => span.write_otlp(&mut item),
                _ => span.write(&mut item),
            }
            worker.outbox.add(worker, collector, &item);
        }
        if let Some(target) = &worker.node.span_log {
            let mut line = Vec::with_capacity(1024);
            span.write(&mut line);
            line.push(b'\n');
            worker.logs.write(target, &line);
        }
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

/// Whether a server's span is the other half of its client's.
pub(crate) fn shares_span(collector: Option<&Collector>) -> bool {
    match collector.map(|collector| collector.report) {
        None => true,
        Some(report) => report == Report::Zipkin { shared: true },
    }
}

/// Tags that configuration asks for.
fn tags_of<'t>(tags: &'t [Tag], head: &RequestHead) -> Vec<(&'t str, String)> {
    let or = |found: Option<String>, default: &str| {
        found.or_else(|| Some(default.to_owned())).filter(|value| !value.is_empty())
    };
    let value = |tag: &TagValue| match tag {
        TagValue::Literal(value) => Some(value.to_string()),
        TagValue::Environment { name, default } => or(access_log::environment(name), default),
        TagValue::Header { name, default } => or(head.headers.get(&**name).map(text), default),
    };
    tags.iter().filter_map(|tag| Some((&*tag.name, value(&tag.value)?))).collect()
}

/// Longest value of a tag that configuration asks for.
const TAG_BYTES_MAX: usize = 1024;

fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
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
