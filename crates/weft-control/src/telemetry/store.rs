//! What proxies have told of the last minutes: edges of the call graph, interfaces of services,
//! failures. Bounded in everything; what is quiet longest goes first.
//!
//! Both sides of a call may tell of it. Each side is kept by itself, so that a call counts once
//! wherever only one side has a proxy that tells. Must not know the wire's connection, or pages.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use weft_telemetry::load::LATENCY_BUCKETS;
use weft_xds::report::{self, Protocol, Side};

use super::templates::{OTHER, Templates};
use super::window::{End, Tally, Window};

/// Edges of the graph.
const EDGES_MAX: usize = 5_000;
/// Interfaces of all services.
const INTERFACES_MAX: usize = 5_000;
/// Ways in which interfaces fail, by caller.
const FAILURES_MAX: usize = 5_000;
/// Proxies whose reports are told apart.
const REPORTERS_MAX: usize = 20_000;
/// Services whose paths are learnt.
const SERVICES_MAX: usize = 5_000;
/// Services named at one edge.
const SERVICES_PER_EDGE_MAX: usize = 8;
/// Longest name kept. Bytes.
const NAME_BYTES_MAX: usize = 253;
/// How long it holds whose a certificate is. Seconds.
const NAMED_FOR: u64 = 30;
/// A reporter this long silent is gone. Seconds.
const REPORTER_GONE: u64 = 3600;

/// An end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Node {
    Workload {
        namespace: Arc<str>,
        name: Arc<str>,
    },
    /// Only its certificate is known.
    Principal(Arc<str>),
    /// Nothing is known: a client without a sidecar.
    Unknown,
    /// The clients of a gateway.
    Outside,
    /// The request ended before a workload of the service was found.
    Service(Arc<str>),
    /// A host outside the mesh.
    Passthrough(Arc<str>),
    /// Where what no rule allows ends.
    BlackHole,
    /// No route was found.
    NoRoute,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EdgeKey {
    pub(super) source: Node,
    pub(super) destination: Node,
    pub(super) protocol: Protocol,
}

/// What each side told.
#[derive(Debug, Default)]
pub(super) struct Sides {
    pub(super) source: Option<Box<Window>>,
    pub(super) destination: Option<Box<Window>>,
}

#[derive(Debug, Default)]
pub(super) struct Edge {
    pub(super) sides: Sides,
    pub(super) services: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct InterfaceKey {
    pub(super) service: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) method: Arc<str>,
    pub(super) template: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FailureKey {
    pub(super) source: Node,
    pub(super) destination: Node,
    pub(super) interface: InterfaceKey,
    pub(super) end: End,
}

/// A proxy that reports.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub(super) namespace: Arc<str>,
    pub(super) workload: Arc<str>,
    /// Node id.
    pub(super) node: String,
    pub(super) sequence: u64,
    pub(super) last: u64,
    pub(super) lost: u64,
    pub(super) records_lost: u64,
    pub(super) requests: u64,
}

/// Namespace and name of the one workload of a certificate, if there is one, as it was looked up.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) workload: Option<(Arc<str>, Arc<str>)>,
    at: u64,
}

/// Who sends a report, as proved.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) namespace: Arc<str>,
    pub(super) workload: Arc<str>,
    /// SPIFFE id.
    pub(super) principal: Arc<str>,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) edges: HashMap<EdgeKey, Edge>,
    pub(super) interfaces: HashMap<InterfaceKey, Sides>,
    pub(super) failures: HashMap<FailureKey, Sides>,
    /// By the proxy process' own number.
    pub(super) reporters: HashMap<u64, Reporter>,
    templates: HashMap<Arc<str>, Templates>,
    /// Workload of a certificate; `None`: several share it, or none is known.
    pub(super) principals: HashMap<Arc<str>, Named>,
}

/// A report whose names are resolved.
pub(super) struct Resolved {
    pub(super) sources: Vec<Node>,
    pub(super) destinations: Vec<Node>,
    pub(super) services: Vec<Arc<str>>,
}

impl Store {
    /// Takes a report in. `None`: it was taken before.
    pub(super) fn take(
        &mut self,
        report: &report::ReportRequest,
        sender: &Sender,
        now: u64,
    ) -> Option<Resolved> {
        if !self.is_new(report, sender, now) {
            return None;
        }
        let peers = |side: Side| -> Vec<Node> {
            report.peers.iter().map(|peer| self.node(peer, side, sender)).collect()
        };
        let resolved = Resolved {
            sources: peers(Side::Source),
            destinations: peers(Side::Destination),
            services: report.services.iter().map(service_name).collect(),
        };
        let own =
            Node::Workload { namespace: sender.namespace.clone(), name: sender.workload.clone() };
        for load in &report.loads {
            let Ok(side) = Side::try_from(load.side) else { continue };
            let service_at = load.service as usize;
            let Some(service) = report.services.get(service_at) else { continue };
            let named = resolved.services[service_at].clone();
            // A proxy speaks for its own workload only.
            let (source, destination) = match side {
                Side::Source => {
                    let Some(peer) = report.peers.get(load.destination as usize) else { continue };
                    let known = &resolved.destinations[load.destination as usize];
                    (own.clone(), callee(known, peer, service, &named))
                }
                Side::Destination => {
                    let Some(known) = resolved.sources.get(load.source as usize) else { continue };
                    (known.clone(), own.clone())
                }
            };
            let Some(tally) = tally(load) else { continue };
            if report.gateway && side == Side::Source {
                let key = EdgeKey {
                    source: Node::Outside,
                    destination: own.clone(),
                    protocol: protocol(load),
                };
                let served = Tally { mtls: 0, ..tally.clone() };
                self.count_edge(key, None, Side::Destination, &served, now);
            }
            self.count(Call { source, destination, service: named, side }, load, &tally, now);
        }
        Some(resolved)
    }

    /// How much is kept of one kind.
    pub(super) fn len(&self, kind: &str) -> usize {
        match kind {
            "edges" => self.edges.len(),
            "interfaces" => self.interfaces.len(),
            "failures" => self.failures.len(),
            _ => self.reporters.len(),
        }
    }

    /// Counts reports by their number, so that one that is sent again is known.
    fn is_new(&mut self, report: &report::ReportRequest, sender: &Sender, now: u64) -> bool {
        if self.reporters.len() >= REPORTERS_MAX && !self.reporters.contains_key(&report.instance) {
            self.reporters.retain(|_, reporter| reporter.last + REPORTER_GONE > now);
            if self.reporters.len() >= REPORTERS_MAX {
                drop_quietest(&mut self.reporters, |reporter| reporter.last);
            }
        }
        let reporter = self.reporters.entry(report.instance).or_insert_with(|| Reporter {
            namespace: sender.namespace.clone(),
            workload: sender.workload.clone(),
            node: bounded(&report.node).to_owned(),
            sequence: 0,
            last: now,
            lost: 0,
            records_lost: 0,
            requests: 0,
        });
        if report.sequence <= reporter.sequence {
            return false;
        }
        reporter.sequence = report.sequence;
        reporter.last = now;
        reporter.lost = report.lost;
        reporter.records_lost = report.records_lost;
        let told = report.loads.iter().fold(0, |sum: u64, load| sum.saturating_add(load.requests));
        reporter.requests = reporter.requests.saturating_add(told);
        true
    }

    /// Looks up whose certificates the report names; `whose` is not cheap.
    pub(super) fn learn_principals(
        &mut self,
        report: &report::ReportRequest,
        now: u64,
        whose: impl Fn(&str) -> Option<(Arc<str>, Arc<str>)>,
    ) {
        for peer in &report.peers {
            let principal = peer.principal.as_str();
            let is_known = |named: &Named| named.at + NAMED_FOR > now;
            if !peer.workload.is_empty()
                || principal.is_empty()
                || self.principals.get(principal).is_some_and(is_known)
            {
                continue;
            }
            if self.principals.len() >= REPORTERS_MAX {
                self.principals.clear();
            }
            let workload = whose(bounded(principal));
            self.principals.insert(bounded(principal).into(), Named { workload, at: now });
        }
    }

    fn node(&self, peer: &report::Peer, side: Side, sender: &Sender) -> Node {
        if !peer.workload.is_empty() {
            let namespace = Arc::from(bounded(&peer.namespace));
            return Node::Workload { namespace, name: Arc::from(bounded(&peer.workload)) };
        }
        let is_own = *peer.principal == *sender.principal && side == Side::Destination;
        if peer.principal.is_empty() || is_own {
            return Node::Unknown;
        }
        match self.principals.get(peer.principal.as_str()) {
            Some(Named { workload: Some((namespace, name)), .. }) => {
                Node::Workload { namespace: namespace.clone(), name: name.clone() }
            }
            _ => Node::Principal(Arc::from(bounded(&peer.principal))),
        }
    }

    /// Takes in what one side tells of one interface.
    pub(super) fn count(&mut self, call: Call, load: &report::Load, tally: &Tally, now: u64) {
        let Call { source, destination, service, side } = call;
        let protocol = protocol(load);
        let key = EdgeKey { source: source.clone(), destination: destination.clone(), protocol };
        self.count_edge(key, Some(&service), side, tally, now);
        if protocol == Protocol::Tcp || tally.requests == 0 {
            return;
        }
        let method = Arc::from(bounded(&load.method));
        let teaches = tally.ends.iter().any(|(end, _)| !end.is_unheard());
        let template: Arc<str> = self.template(&service, bounded(&load.path), protocol, teaches);
        let interface = InterfaceKey { service, protocol, method, template };
        for (end, count) in tally.ends.iter().filter(|(end, _)| end.is_error()) {
            let mut interface = interface.clone();
            if *interface.template == *OTHER {
                // Which path it was is the point here; the table drops the quietest.
                interface.template = Arc::from(bounded(&load.path));
            }
            let key = FailureKey {
                source: source.clone(),
                destination: destination.clone(),
                interface,
                end: end.clone(),
            };
            let failed = Tally { requests: *count, ..Tally::default() };
            make_room(&mut self.failures, FAILURES_MAX, &key, Sides::last);
            self.failures.entry(key).or_default().of(side).add(now, &failed);
        }
        make_room(&mut self.interfaces, INTERFACES_MAX, &interface, Sides::last);
        self.interfaces.entry(interface).or_default().of(side).add(now, tally);
    }

    fn count_edge(
        &mut self,
        key: EdgeKey,
        service: Option<&Arc<str>>,
        side: Side,
        tally: &Tally,
        now: u64,
    ) {
        make_room(&mut self.edges, EDGES_MAX, &key, |edge| edge.sides.last());
        let edge = self.edges.entry(key).or_default();
        if let Some(service) = service
            && !service.is_empty()
            && edge.services.len() < SERVICES_PER_EDGE_MAX
            && !edge.services.contains(service)
        {
            edge.services.push(service.clone());
        }
        edge.sides.of(side).add(now, tally);
    }

    fn template(
        &mut self,
        service: &Arc<str>,
        path: &str,
        protocol: Protocol,
        teaches: bool,
    ) -> Arc<str> {
        if self.templates.len() >= SERVICES_MAX && !self.templates.contains_key(service) {
            return OTHER.into();
        }
        let templates = self.templates.entry(service.clone()).or_default();
        if !teaches {
            return templates.find(path).into();
        }
        if protocol == Protocol::Grpc {
            return templates.exact(path).into();
        }
        let learnt = templates.learn(path);
        if learnt.changed {
            self.rename(service);
        }
        learnt.template.into()
    }

    /// Some of the service's templates have become one.
    fn rename(&mut self, service: &Arc<str>) {
        let Some(templates) = self.templates.get(service) else { return };
        let of_service: Vec<InterfaceKey> =
            self.interfaces.keys().filter(|key| key.service == *service).cloned().collect();
        for key in of_service {
            let template = templates.find(&key.template);
            if *template == *key.template || key.protocol == Protocol::Grpc {
                continue;
            }
            if let Some(old) = self.interfaces.remove(&key) {
                let key = InterfaceKey { template: template.into(), ..key };
                self.interfaces.entry(key).or_default().merge(&old);
            }
        }
    }
}

/// Who called whom, and who tells of it.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) source: Node,
    pub(super) destination: Node,
    pub(super) service: Arc<str>,
    pub(super) side: Side,
}

impl Sides {
    fn of(&mut self, side: Side) -> &mut Window {
        match side {
            Side::Source => self.source.get_or_insert_default(),
            Side::Destination => self.destination.get_or_insert_default(),
        }
    }

    fn last(&self) -> u64 {
        [&self.source, &self.destination]
            .into_iter()
            .flatten()
            .map(|side| side.last)
            .max()
            .unwrap_or(0)
    }

    fn merge(&mut self, other: &Sides) {
        for (side, theirs) in
            [(Side::Source, &other.source), (Side::Destination, &other.destination)]
        {
            if let Some(theirs) = theirs {
                self.of(side).merge(theirs);
            }
        }
    }

    /// What each side counts: in the last seconds, or ever.
    pub(super) fn tallies(&self, now: u64, seconds: Option<u64>) -> [Option<Tally>; 2] {
        [&self.source, &self.destination].map(|side| {
            side.as_ref().map(|window| match seconds {
                Some(seconds) => window.over(now, seconds),
                None => window.total.clone(),
            })
        })
    }
}

/// What the caller's side names as callee.
fn callee(known: &Node, peer: &report::Peer, service: &report::Service, named: &Arc<str>) -> Node {
    match service.name.as_str() {
        "PassthroughCluster" => return Node::Passthrough(named.clone()),
        "BlackHoleCluster" => return Node::BlackHole,
        _ => {}
    }
    match (peer.workload.is_empty(), named.is_empty()) {
        (false, _) => known.clone(),
        (true, false) => Node::Service(named.clone()),
        (true, true) => Node::NoRoute,
    }
}

fn service_name(service: &report::Service) -> Arc<str> {
    match service.host.is_empty() {
        false => bounded(&service.host).into(),
        true => bounded(&service.name).into(),
    }
}

pub(super) fn protocol(load: &report::Load) -> Protocol {
    Protocol::try_from(load.protocol).unwrap_or(Protocol::Http)
}

/// `None`: nothing that makes sense.
fn tally(load: &report::Load) -> Option<Tally> {
    let mut tally = Tally {
        requests: load.requests,
        mtls: if load.mtls { load.requests.max(load.opened) } else { 0 },
        duration_us: load.duration_us,
        request_bytes: load.request_bytes,
        response_bytes: load.response_bytes,
        opened: load.opened,
        closed: load.closed,
        ..Tally::default()
    };
    for ends in &load.ends {
        let end = End {
            code: u16::try_from(ends.code).ok()?,
            flags: bounded(&ends.flags).into(),
            grpc: ends.grpc.checked_sub(1).and_then(|status| u8::try_from(status).ok()),
        };
        tally.ended(&end, ends.requests);
    }
    for (bucket, count) in load.buckets.iter().zip(&load.counts) {
        let bucket =
            u8::try_from(*bucket).ok().filter(|bucket| usize::from(*bucket) < LATENCY_BUCKETS)?;
        match tally.latency.last() {
            Some((last, _)) if *last >= bucket => return None,
            _ => tally.latency.push((bucket, u64::from(*count))),
        }
    }
    Some(tally)
}

pub(super) fn bounded(text: &str) -> &str {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Drops the tenth that is quiet longest when a new key finds no room: sorting then is rare.
fn make_room<K: Hash + Eq + Clone, V>(
    map: &mut HashMap<K, V>,
    max: usize,
    new: &K,
    last: impl Fn(&V) -> u64,
) {
    if map.len() >= max && !map.contains_key(new) {
        drop_quietest(map, last);
    }
}

fn drop_quietest<K: Hash + Eq + Clone, V>(map: &mut HashMap<K, V>, last: impl Fn(&V) -> u64) {
    let mut times: Vec<u64> = map.values().map(&last).collect();
    let tenth = times.len() / 10;
    let (_, limit, _) = times.select_nth_unstable(tenth);
    let limit = *limit;
    let mut to_go = tenth + 1;
    map.retain(|_, value| {
        let goes = to_go > 0 && last(value) <= limit;
        to_go -= usize::from(goes);
        !goes
    });
}

#[cfg(test)]
mod tests;
