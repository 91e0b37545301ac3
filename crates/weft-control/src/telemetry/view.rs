//! What the pages show of the store, as JSON that a program may rely on; `docs/telemetry.md` says what
//! each field means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_telemetry::load::quantile_us;
use weft_xds::report::Protocol;

use super::store::{Edge, Node, Sides, Store};
use super::window::Tally;

/// The call graph.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Graph {
    pub window_seconds: u64,
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<GraphEdge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphNode {
    /// What edges name it by.
    pub id: String,
    /// `workload`, `service` (no workload of it was reached), `principal` (only a certificate is
    /// known), `unknown` (a client without a sidecar), `outside` (clients of a gateway),
    /// `passthrough` (a host outside the mesh), `blackhole`, `no_route`.
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// What went from one node to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GraphEdge {
    pub source: String,
    pub destination: String,
    /// `http`, `grpc`, `tcp`
    pub protocol: String,
    /// Services that the calls were for.
    pub services: Vec<String>,
    /// `mutual_tls`, `none`, `mixed`
    pub security: String,
    /// Whose numbers these are: `source` where the caller's proxy tells, else `destination`.
    pub reporter: String,
    /// What each side counted in the window.
    pub reported: Reported,
    /// Since the edge was first seen.
    pub total_requests: u64,
    #[serde(flatten)]
    pub numbers: Numbers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    pub source: u64,
    pub destination: u64,
}

/// Numbers of one window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Numbers {
    pub requests: u64,
    pub requests_per_second: f64,
    /// Status 5xx, no answer, or a gRPC status that is the server's fault.
    pub errors: u64,
    /// Status 4xx.
    pub client_errors: u64,
    /// Of those, 404s of the mesh (flag `NR`): no application heard of the request.
    pub no_route: u64,
    /// Share of requests that are no `errors`; `null` without requests.
    pub success_rate: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub mean_ms: Option<f64>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// TCP connections.
    pub connections_opened: u64,
    pub connections_closed: u64,
    /// Requests by status code.
    pub codes: BTreeMap<String, u64>,
}

/// One interface of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceRow {
    pub service: String,
    pub protocol: String,
    /// Empty for gRPC.
    pub method: String,
    /// Template of the path, `/package.Service/Method` for gRPC, `other` for the rest.
    pub path: String,
    pub total_requests: u64,
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// One way in which requests failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailureRow {
    pub source: String,
    pub destination: String,
    pub service: String,
    pub protocol: String,
    pub method: String,
    pub path: String,
    pub code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    /// Envoy's short names; `-` for none.
    pub flags: String,
    /// `mesh`: the request never came to an application, or its answer not back; `application`: that
    /// is what it said.
    pub by: String,
    /// The mesh's own 404: no route.
    pub no_route: bool,
    pub requests: u64,
    pub total_requests: u64,
}

/// A proxy that reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReporterRow {
    pub namespace: String,
    pub workload: String,
    pub node: String,
    pub seconds_since_report: u64,
    /// Requests it told of.
    pub requests: u64,
    /// Requests and records that it could not tell of.
    pub lost_requests: u64,
    pub lost_records: u64,
}

impl Node {
    pub(super) fn view(&self) -> GraphNode {
        let node = |kind: &str, namespace: &str, name: &str| {
            let id = match (kind, namespace) {
                ("workload", namespace) => format!("{namespace}/{name}"),
                (kind, _) if name.is_empty() => kind.to_owned(),
                (kind, _) => format!("{kind}:{name}"),
            };
            GraphNode { id, kind: kind.into(), namespace: namespace.into(), name: name.into() }
        };
        match self {
            Node::Workload { namespace, name } => node("workload", namespace, name),
            Node::Principal(id) => node("principal", "", id),
            Node::Unknown => node("unknown", "", ""),
            Node::Outside => node("outside", "", ""),
            Node::Service(host) => node("service", "", host),
            Node::Passthrough(host) => node("passthrough", "", host),
            Node::BlackHole => node("blackhole", "", ""),
            Node::NoRoute => node("no_route", "", ""),
        }
    }
}

pub(super) fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    }
}

impl Store {
    /// Edges with traffic in the last `window` seconds; of one namespace at either end if one is
    /// given.
    pub(super) fn graph(&self, now: u64, window: u64, namespace: Option<&str>) -> Graph {
        let mut nodes = BTreeMap::new();
        let mut edges = Vec::new();
        for (key, edge) in &self.edges {
            let Some(seen) = seen(edge, now, window) else { continue };
            let ends = [key.source.view(), key.destination.view()];
            if namespace.is_some_and(|wanted| ends.iter().all(|end| end.namespace != wanted)) {
                continue;
            }
            let [source, destination] = ends.each_ref().map(|end| end.id.clone());
            nodes.extend(ends.map(|end| (end.id.clone(), end)));
            let mut services: Vec<String> = edge.services.iter().map(|s| s.to_string()).collect();
            services.sort();
            edges.push(GraphEdge {
                source,
                destination,
                protocol: protocol_text(key.protocol).to_owned(),
                services,
                security: security(&seen.tally).to_owned(),
                reporter: if seen.by_source { "source" } else { "destination" }.to_owned(),
                reported: seen.reported,
                total_requests: total(&edge.sides),
                numbers: Numbers::of(&seen.tally, window),
            });
        }
        edges.sort_by(|a, b| {
            (&a.source, &a.destination, &a.protocol).cmp(&(&b.source, &b.destination, &b.protocol))
        });
        Graph { window_seconds: window, nodes: nodes.into_values().collect(), edges }
    }

    /// Interfaces with traffic in the window, the busiest first.
    pub(super) fn interfaces(
        &self,
        now: u64,
        window: u64,
        service: Option<&str>,
    ) -> Vec<InterfaceRow> {
        let wanted = |name: &str| service.is_none_or(|wanted| is_service(name, wanted));
        let mut rows: Vec<InterfaceRow> = self
            .interfaces
            .iter()
            .filter(|(key, _)| wanted(&key.service))
            .filter_map(|(key, sides)| {
                let tally = fuller(sides.tallies(now, Some(window)))?;
                Some(InterfaceRow {
                    service: key.service.to_string(),
                    protocol: protocol_text(key.protocol).to_owned(),
                    method: key.method.to_string(),
                    path: key.template.to_string(),
                    total_requests: fuller(sides.tallies(now, None)).map_or(0, |sum| sum.requests),
                    numbers: Numbers::of(&tally, window),
                })
            })
            .collect();
        rows.sort_by(|a, b| {
            (b.numbers.requests, &a.service, &a.path, &a.method).cmp(&(
                a.numbers.requests,
                &b.service,
                &b.path,
                &b.method,
            ))
        });
        rows
    }

    /// Failures in the window, the most frequent first.
    pub(super) fn failures(&self, now: u64, window: u64, service: Option<&str>) -> Vec<FailureRow> {
        let wanted = |name: &str| service.is_none_or(|wanted| is_service(name, wanted));
        let mut rows: Vec<FailureRow> = self
            .failures
            .iter()
            .filter(|(key, _)| wanted(&key.interface.service))
            .filter_map(|(key, sides)| {
                let tally = fuller(sides.tallies(now, Some(window)))?;
                let end = &key.end;
                Some(FailureRow {
                    source: key.source.view().id,
                    destination: key.destination.view().id,
                    service: key.interface.service.to_string(),
                    protocol: protocol_text(key.interface.protocol).to_owned(),
                    method: key.interface.method.to_string(),
                    path: key.interface.template.to_string(),
                    code: end.code,
                    grpc_status: end.grpc,
                    flags: flags_text(&end.flags),
                    by: if end.flags.is_empty() { "application" } else { "mesh" }.to_owned(),
                    no_route: end.is_no_route(),
                    requests: tally.requests,
                    total_requests: fuller(sides.tallies(now, None)).map_or(0, |sum| sum.requests),
                })
            })
            .collect();
        rows.sort_by(|a, b| {
            (b.requests, &a.service, &a.path, a.code)
                .cmp(&(a.requests, &b.service, &b.path, b.code))
        });
        rows
    }

    pub(super) fn reporters(&self, now: u64) -> Vec<ReporterRow> {
        let mut rows: Vec<ReporterRow> = self
            .reporters
            .values()
            .map(|reporter| ReporterRow {
                namespace: reporter.namespace.to_string(),
                workload: reporter.workload.to_string(),
                node: reporter.node.clone(),
                seconds_since_report: now.saturating_sub(reporter.last),
                requests: reporter.requests,
                lost_requests: reporter.lost,
                lost_records: reporter.records_lost,
            })
            .collect();
        rows.sort_by(|a, b| a.node.cmp(&b.node));
        rows
    }
}

/// `reviews`, `reviews.shop` and the full name are one service.
fn is_service(name: &str, wanted: &str) -> bool {
    name == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'))
}

pub(super) fn flags_text(flags: &str) -> String {
    if flags.is_empty() { "-".to_owned() } else { flags.to_owned() }
}

/// An edge's numbers.
struct Seen {
    tally: Tally,
    by_source: bool,
    reported: Reported,
}

fn seen(edge: &Edge, now: u64, window: u64) -> Option<Seen> {
    let [source, destination] = edge.sides.tallies(now, Some(window));
    let requests = |side: &Option<Tally>| side.as_ref().map_or(0, |side| side.requests);
    let reported = Reported { source: requests(&source), destination: requests(&destination) };
    let source = source.filter(|tally| !tally.is_empty());
    let by_source = source.is_some();
    let mut tally = source.or_else(|| destination.clone().filter(|tally| !tally.is_empty()))?;
    // The called side sees for itself whether there was TLS.
    if let Some(destination) = destination.filter(|tally| !tally.is_empty()) {
        let share = destination.mtls as f64 / weight(&destination).max(1) as f64;
        tally.mtls = (share * weight(&tally) as f64).round() as u64;
    }
    Some(Seen { tally, by_source, reported })
}

fn total(sides: &Sides) -> u64 {
    match &sides.source {
        Some(source) => source.total.requests,
        None => sides.destination.as_ref().map_or(0, |side| side.total.requests),
    }
}

/// The side that saw more: callers may have no proxy that tells, and calls may not have arrived.
fn fuller([source, destination]: [Option<Tally>; 2]) -> Option<Tally> {
    let some = [source, destination].into_iter().flatten().filter(|tally| !tally.is_empty());
    // Of equals the first, which is the caller's: its latencies are what was felt.
    some.reduce(|first, second| if second.requests > first.requests { second } else { first })
}

/// Requests, or connections where there are no requests.
fn weight(tally: &Tally) -> u64 {
    if tally.requests > 0 { tally.requests } else { tally.opened }
}

fn security(tally: &Tally) -> &'static str {
    match (tally.mtls, weight(tally)) {
        (0, _) => "none",
        (mtls, all) if mtls >= all => "mutual_tls",
        _ => "mixed",
    }
}

impl Numbers {
    fn of(tally: &Tally, window: u64) -> Self {
        let errors = tally.count(|end| end.is_server_error());
        let latency = || tally.latency.iter().copied();
        let quantile = |q| quantile_us(latency(), q).map(|us| us / 1000.0);
        let mut codes = BTreeMap::new();
        for (end, count) in &tally.ends {
            *codes.entry(end.code.to_string()).or_insert(0) += count;
        }
        let of_requests = |number: u64| match tally.requests {
            0 => None,
            requests => Some(number as f64 / requests as f64),
        };
        Self {
            requests: tally.requests,
            requests_per_second: tally.requests as f64 / window.max(1) as f64,
            errors,
            client_errors: tally.count(|end| end.code / 100 == 4),
            no_route: tally.count(|end| end.is_no_route()),
            success_rate: of_requests(tally.requests.saturating_sub(errors)),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            mean_ms: of_requests(tally.duration_us).map(|us| us / 1000.0),
            request_bytes: tally.request_bytes,
            response_bytes: tally.response_bytes,
            connections_opened: tally.opened,
            connections_closed: tally.closed,
            codes,
        }
    }
}
