//! Single requests of the last hour, the newest kept: who asked whom for what. Proxies send what
//! failed and a share of the rest. Bounded by number and by bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_xds::report::{self, Side};

use super::store::{Node, Resolved, bounded};
use super::view::{flags_text, protocol_text};

/// Requests kept.
const RECORDS_MAX: usize = 50_000;
/// Bytes kept, as counted by [`Record::bytes`].
const BYTES_MAX: usize = 32 << 20;
/// Longest answer.
const ANSWERS_MAX: usize = 10_000;

/// One request as one side told it.
#[derive(Debug)]
struct Record {
    time_us: u64,
    side: Side,
    source: Node,
    destination: Node,
    service: Arc<str>,
    protocol: &'static str,
    method: Box<str>,
    host: Box<str>,
    path: Box<str>,
    code: u16,
    flags: Box<str>,
    grpc: Option<u8>,
    duration_us: u64,
    source_address: Box<str>,
    destination_address: Box<str>,
    request_id: Box<str>,
    trace_id: Box<str>,
    request_bytes: u64,
    response_bytes: u64,
}

/// What is asked for. Everything given must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filter {
    /// How the path begins; with `*` anywhere, a pattern of the whole.
    pub path: Option<String>,
    /// `503`, `5xx`, or flags such as `NR`.
    pub status: Option<String>,
    /// Not older than this, seconds.
    pub since: Option<u64>,
    /// Workload (`NAMESPACE/NAME` or a name), or IP.
    pub from: Option<String>,
    pub to: Option<String>,
    pub limit: Option<usize>,
}

/// One request, told by one or both of its sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestRow {
    /// Start, microseconds since 1970.
    pub time_us: u64,
    pub source: String,
    /// `IP:PORT`, or `IP` where the address is from `x-forwarded-for`.
    pub source_address: String,
    pub destination: String,
    /// The endpoint; where none was chosen, what the client connected to.
    pub destination_address: String,
    pub service: String,
    pub protocol: String,
    pub method: String,
    pub host: String,
    pub path: String,
    pub code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    pub flags: String,
    pub duration_ms: f64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// `source`, `destination` or `both`.
    pub reporter: String,
}

#[derive(Debug, Default)]
pub(super) struct Records {
    kept: VecDeque<Record>,
    bytes: usize,
    /// Gone to make room.
    pub(super) dropped: u64,
}

/// A request that something else than a proxy's report tells of.
pub(super) struct Told {
    pub(super) source: Node,
    pub(super) destination: Node,
    pub(super) service: Arc<str>,
    /// Its indexes say nothing.
    pub(super) access: report::Access,
}

impl Records {
    /// Takes in one request.
    pub(super) fn tell(&mut self, told: &Told) {
        let Told { source, destination, service, access } = told;
        let who = (source.clone(), destination.clone(), service.clone());
        if let Some(record) = Record::of(access, who) {
            self.keep(record);
        }
    }

    /// Takes in what a report tells of single requests; `own` is who sends it.
    pub(super) fn take(&mut self, report: &report::ReportRequest, resolved: &Resolved, own: &Node) {
        for access in &report.records {
            if let Some(record) = Record::read(access, resolved, own) {
                self.keep(record);
            }
        }
    }

    fn keep(&mut self, record: Record) {
        self.bytes += record.bytes();
        self.kept.push_back(record);
        while self.kept.len() > RECORDS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.dropped += 1;
        }
    }

    /// The newest first. `now_us` is microseconds since 1970.
    pub(super) fn find(&self, filter: &Filter, now_us: u64) -> Vec<RequestRow> {
        let limit = filter.limit.unwrap_or(100).min(ANSWERS_MAX);
        let from =
            filter.since.map(|seconds| now_us.saturating_sub(seconds.saturating_mul(1_000_000)));
        let mut rows: Vec<RequestRow> = Vec::new();
        // The other side's word on a request that is listed.
        let mut listed: HashMap<(&str, &str), usize> = HashMap::new();
        for record in self.kept.iter().rev() {
            if from.is_some_and(|from| record.time_us < from) || !record.fits(filter) {
                continue;
            }
            let name = (&*record.request_id, record.destination_name());
            if !record.request_id.is_empty()
                && let Some(at) = listed.get(&name)
                && record.completes(&mut rows[*at])
            {
                continue;
            }
            if rows.len() >= limit {
                break;
            }
            listed.insert(name, rows.len());
            rows.push(record.row());
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.time_us));
        rows
    }
}

impl Record {
    fn read(access: &report::Access, resolved: &Resolved, own: &Node) -> Option<Self> {
        let side = Side::try_from(access.side).ok()?;
        let of = |list: &[Node], index: u32| list.get(index as usize).cloned();
        let service = resolved.services.get(access.service as usize)?.clone();
        let (source, destination) = match side {
            Side::Source => {
                let callee = of(&resolved.destinations, access.destination)?;
                let callee = match (callee, service.is_empty()) {
                    (Node::Unknown, false) => Node::Service(service.clone()),
                    (Node::Unknown, true) => Node::NoRoute,
                    (callee, _) => callee,
                };
                (own.clone(), callee)
            }
            Side::Destination => (of(&resolved.sources, access.source)?, own.clone()),
        };
        Self::of(access, (source, destination, service))
    }

    fn of(
        access: &report::Access,
        (source, destination, service): (Node, Node, Arc<str>),
    ) -> Option<Self> {
        let side = Side::try_from(access.side).ok()?;
        let text = |text: &str| Box::from(bounded(text));
        Some(Self {
            time_us: access.time_us,
            side,
            source,
            destination,
            service,
            protocol: protocol_text(report::Protocol::try_from(access.protocol).ok()?),
            method: text(&access.method),
            host: text(&access.host),
            path: text(&access.path),
            code: u16::try_from(access.code).ok()?,
            flags: text(&access.flags),
            grpc: access.grpc.checked_sub(1).and_then(|status| u8::try_from(status).ok()),
            duration_us: access.duration_us,
            source_address: text(&access.source_address),
            destination_address: text(&access.destination_address),
            request_id: text(&access.request_id),
            trace_id: text(&access.trace_id),
            request_bytes: access.request_bytes,
            response_bytes: access.response_bytes,
        })
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + [
                &self.method,
                &self.host,
                &self.path,
                &self.flags,
                &self.source_address,
                &self.destination_address,
                &self.request_id,
                &self.trace_id,
            ]
            .iter()
            .map(|text| text.len())
            .sum::<usize>()
    }

    fn destination_name(&self) -> &str {
        match &self.destination {
            Node::Workload { name, .. } => name,
            _ => "",
        }
    }

    fn fits(&self, filter: &Filter) -> bool {
        let Filter { path, status, since: _, from, to, limit: _ } = filter;
        path.as_deref().is_none_or(|path| matches(path, &self.path))
            && status.as_deref().is_none_or(|status| self.has_status(status))
            && from.as_deref().is_none_or(|from| is_end(&self.source, &self.source_address, from))
            && to.as_deref().is_none_or(|to| {
                is_end(&self.destination, &self.destination_address, to) || *self.service == *to
            })
    }

    fn has_status(&self, wanted: &str) -> bool {
        match wanted.parse::<u16>() {
            Ok(code) => self.code == code,
            Err(_) => match wanted.as_bytes() {
                [class @ b'0'..=b'9', b'x' | b'X', b'x' | b'X'] => {
                    self.code / 100 == u16::from(class - b'0')
                }
                _ => self.flags.split(',').any(|flag| flag == wanted),
            },
        }
    }

    /// Adds to a row what this side knows better. False: it is another request, or told already.
    fn completes(&self, row: &mut RequestRow) -> bool {
        match (self.side, row.reporter.as_str()) {
            // The called side sees where the request came from.
            (Side::Destination, "source") => {
                row.source_address = self.source_address.to_string();
            }
            (Side::Source, "destination") => {
                let source_address = std::mem::take(&mut row.source_address);
                *row = self.row();
                row.source_address = source_address;
            }
            _ => return false,
        }
        row.reporter = "both".to_owned();
        true
    }

    fn row(&self) -> RequestRow {
        RequestRow {
            time_us: self.time_us,
            source: self.source.view().id,
            source_address: self.source_address.to_string(),
            destination: self.destination.view().id,
            destination_address: self.destination_address.to_string(),
            service: self.service.to_string(),
            protocol: self.protocol.to_owned(),
            method: self.method.to_string(),
            host: self.host.to_string(),
            path: self.path.to_string(),
            code: self.code,
            grpc_status: self.grpc,
            flags: flags_text(&self.flags),
            duration_ms: self.duration_us as f64 / 1000.0,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            request_id: self.request_id.to_string(),
            trace_id: self.trace_id.to_string(),
            reporter: match self.side {
                Side::Source => "source",
                Side::Destination => "destination",
            }
            .to_owned(),
        }
    }
}

fn is_end(node: &Node, address: &str, wanted: &str) -> bool {
    let view = node.view();
    let ip = address.rsplit_once(':').map_or(address, |(ip, _)| ip).trim_matches(['[', ']']);
    view.id == wanted || view.name == wanted || address == wanted || ip == wanted
}

/// A prefix, or with `*` a pattern.
fn matches(pattern: &str, path: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return path.starts_with(pattern) };
    let Some(mut left) = path.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(path: &str, code: u32, side: Side, id: &str) -> report::Access {
        report::Access {
            time_us: 1_000_000,
            side: side.into(),
            method: "GET".into(),
            path: path.into(),
            code,
            source_address: match side {
                Side::Source => "127.0.0.1:4000".into(),
                Side::Destination => "10.0.0.7:5000".into(),
            },
            destination_address: "10.0.0.8:8080".into(),
            request_id: id.into(),
            ..report::Access::default()
        }
    }

    fn workload(name: &str) -> Node {
        Node::Workload { namespace: "shop".into(), name: name.into() }
    }

    fn take(records: &mut Records, own: &str, accesses: Vec<report::Access>) {
        let report = report::ReportRequest { records: accesses, ..Default::default() };
        let resolved = Resolved {
            sources: vec![workload("web")],
            destinations: vec![workload("reviews")],
            services: vec!["reviews.shop.svc.cluster.local".into()],
        };
        records.take(&report, &resolved, &workload(own));
    }

    #[test]
    fn both_sides_of_a_request_are_one_row() {
        let mut records = Records::default();
        take(&mut records, "web", vec![access("/a", 503, Side::Source, "one")]);
        take(&mut records, "reviews", vec![access("/a", 503, Side::Destination, "one")]);
        take(&mut records, "web", vec![access("/b", 200, Side::Source, "two")]);
        let rows = records.find(&Filter::default(), 2_000_000);
        assert_eq!(rows.len(), 2, "{rows:?}");
        let both = rows.iter().find(|row| row.path == "/a").unwrap();
        assert_eq!(both.reporter, "both");
        assert_eq!((&*both.source, &*both.source_address), ("shop/web", "10.0.0.7:5000"));
        assert_eq!(
            (&*both.destination, &*both.destination_address),
            ("shop/reviews", "10.0.0.8:8080")
        );

        let of = |filter: Filter| records.find(&filter, 2_000_000).len();
        let status = |status: &str| Filter { status: Some(status.into()), ..Filter::default() };
        assert_eq!(of(status("5xx")), 1);
        assert_eq!(of(status("503")), 1);
        assert_eq!(of(status("4xx")), 0);
        assert_eq!(of(Filter { path: Some("/b".into()), ..Filter::default() }), 1);
        assert_eq!(of(Filter { from: Some("10.0.0.7".into()), ..Filter::default() }), 1);
        assert_eq!(of(Filter { to: Some("reviews".into()), ..Filter::default() }), 2);
        assert_eq!(of(Filter { since: Some(0), ..Filter::default() }), 0);
    }

    #[test]
    fn patterns() {
        for (pattern, path, expect) in [
            ("/a", "/abc", true),
            ("/b", "/abc", false),
            ("*", "/abc", true),
            ("/a*c", "/abc", true),
            ("/a*d", "/abc", false),
            ("*/orders/*", "/users/7/orders/8", true),
            ("/users/*/orders", "/users/7/orders/8", false),
        ] {
            assert_eq!(matches(pattern, path), expect, "{pattern} {path}");
        }
    }

    #[test]
    fn the_store_is_bounded() {
        let mut records = Records::default();
        for _ in 0..60 {
            take(&mut records, "web", vec![access(&"/x".repeat(100), 500, Side::Source, ""); 1000]);
        }
        assert!(records.kept.len() <= RECORDS_MAX && records.bytes <= BYTES_MAX);
        assert_eq!(records.kept.len() as u64 + records.dropped, 60_000);
        let all = Filter { limit: Some(usize::MAX), ..Filter::default() };
        assert_eq!(records.find(&all, u64::MAX).len(), ANSWERS_MAX);
    }
}
