//! Reports of Istio's proxies up to 1.4, folded into the same store.
//!
//! As Mixer's own port was, this one is open to whoever reaches it: it is off unless asked for, and
//! what is told there is as true as the network is trusted. Must not know gRPC.

mod attributes;
mod dictionary;

use std::sync::Arc;

use tonic::{Request, Status};
use weft_model::Snapshot;
use weft_telemetry::Counter;
use weft_telemetry::load::{latency_bucket, template};
use weft_xds::mixer::{ReportRequest, ReportResponse};
use weft_xds::report::{self, Protocol, Side};
use weft_xds::unary::Method;

use super::Telemetry;
use super::records::Told;
use super::store::{Call, Node, bounded};
use super::window::{End, Tally};
use crate::world::World;
use attributes::{Attribute, Set};

/// Answers `Report`.
pub struct Mixer {
    telemetry: Telemetry,
    world: World,
    sets: Counter,
}

impl Mixer {
    /// Serve it with [`weft_xds::mixer::MixerServer`].
    pub fn new(
        telemetry: Telemetry,
        world: World,
        metrics: &weft_telemetry::Registry,
    ) -> Arc<Self> {
        let help = "Requests and connections that Mixer's clients reported.";
        let sets = metrics.counter("weft_telemetry_mixer_attribute_sets_total", help, &[]);
        Arc::new(Self { telemetry, world, sets })
    }

    /// Folds one report in.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: it cannot be decoded. Nothing of it is counted then.
    pub fn take(&self, report: &ReportRequest) -> Result<(), Status> {
        let sets = attributes::sets(report)?;
        self.sets.add(sets.len() as u64);
        let snapshot = self.world.snapshot();
        let now = self.telemetry.now();
        let read: Vec<Reported> = sets.iter().map(|set| Reported::read(set, &snapshot)).collect();
        let mut store = self.telemetry.store();
        for Reported { call, load, tally, .. } in &read {
            store.count(call.clone(), load, tally, now);
        }
        drop(store);
        let mut records = self.telemetry.records();
        for (set, reported) in sets.iter().zip(&read) {
            if reported.failed {
                records.tell(&record(set, reported));
            }
        }
        Ok(())
    }
}

impl Method<ReportRequest, ReportResponse> for Mixer {
    async fn answer(&self, request: Request<ReportRequest>) -> Result<ReportResponse, Status> {
        let taken = self.take(request.get_ref());
        if taken.is_err() {
            self.telemetry.0.refused.inc();
        }
        taken.map(|()| ReportResponse {})
    }
}

/// One set, as the store counts it.
struct Reported {
    call: Call,
    load: report::Load,
    tally: Tally,
    failed: bool,
}

impl Reported {
    fn read(set: &Set<'_>, snapshot: &Snapshot) -> Self {
        let side = match set.text(Attribute::ReporterKind) {
            "outbound" => Side::Source,
            _ => Side::Destination,
        };
        let service =
            set.first(&[Attribute::ServiceHost, Attribute::Service, Attribute::ServiceName]);
        let source = source(set, snapshot);
        let destination = match destination(set, snapshot) {
            Node::Unknown => match service {
                "" => Node::NoRoute,
                "PassthroughCluster" => {
                    Node::Passthrough(bounded(set.text(Attribute::Host)).into())
                }
                "BlackHoleCluster" => Node::BlackHole,
                service => Node::Service(bounded(service).into()),
            },
            known => known,
        };
        let protocol = protocol(set);
        let mut path = Vec::new();
        match protocol {
            Protocol::Http => template(path_of(set).as_bytes(), &mut path),
            Protocol::Grpc => path.extend(path_of(set).bytes()),
            Protocol::Tcp => {}
        }
        let load = report::Load {
            protocol: protocol.into(),
            method: if protocol == Protocol::Http { set.text(Attribute::Method) } else { "" }
                .to_owned(),
            path: String::from_utf8_lossy(&path).into_owned(),
            ..report::Load::default()
        };
        let tally = tally(set, protocol);
        let failed = tally.ends.iter().any(|(end, _)| end.is_error());
        let call = Call { source, destination, service: bounded(service).into(), side };
        Self { call, load, tally, failed }
    }
}

fn tally(set: &Set<'_>, protocol: Protocol) -> Tally {
    let mtls = u64::from(set.flag(Attribute::Mtls));
    if protocol == Protocol::Tcp {
        let event = set.text(Attribute::Event);
        return Tally {
            mtls: if event == "open" { mtls } else { 0 },
            opened: u64::from(event == "open"),
            closed: u64::from(event == "close"),
            request_bytes: set.number(Attribute::ReceivedBytes).unwrap_or(0),
            response_bytes: set.number(Attribute::SentBytes).unwrap_or(0),
            ..Tally::default()
        };
    }
    let duration_us = set.time_us(Attribute::Duration);
    let of = |names: [Attribute; 2]| names.iter().find_map(|name| set.number(*name)).unwrap_or(0);
    let flags = match set.text(Attribute::Flags) {
        // The dictionary has the word with its quotes.
        "-" | "\"-\"" => "",
        flags => flags,
    };
    let end = End {
        code: set.number(Attribute::Code).and_then(|code| u16::try_from(code).ok()).unwrap_or(0),
        flags: bounded(flags).into(),
        grpc: match protocol {
            Protocol::Grpc => set.text(Attribute::GrpcStatus).parse().ok(),
            _ => None,
        },
    };
    Tally {
        requests: 1,
        mtls,
        ends: vec![(end, 1)],
        latency: vec![(latency_bucket(duration_us), 1)],
        duration_us,
        request_bytes: of([Attribute::RequestTotalSize, Attribute::RequestSize]),
        response_bytes: of([Attribute::ResponseTotalSize, Attribute::ResponseSize]),
        ..Tally::default()
    }
}

fn protocol(set: &Set<'_>) -> Protocol {
    match set.first(&[Attribute::ApiProtocol, Attribute::ContextProtocol]) {
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "" if !set.text(Attribute::Event).is_empty() => Protocol::Tcp,
        _ => Protocol::Http,
    }
}

fn path_of<'r>(set: &Set<'r>) -> &'r str {
    let path = set.first(&[Attribute::UrlPath, Attribute::Path]);
    bounded(path.split('?').next().unwrap_or(path))
}

fn source(set: &Set<'_>, snapshot: &Snapshot) -> Node {
    let named = set.text(Attribute::SourceWorkload);
    if !named.is_empty() {
        let namespace =
            set.first(&[Attribute::SourceWorkloadNamespace, Attribute::SourceNamespace]);
        return workload(namespace, named);
    }
    if let Some(node) = of_pod(set.text(Attribute::SourceUid), snapshot) {
        return node;
    }
    let ip = set.address(Attribute::SourceIp).and_then(|ip| snapshot.workload_by_ip(ip));
    let principal = set.first(&[Attribute::SourcePrincipal, Attribute::SourceUser]);
    match (ip, principal) {
        (Some(known), _) => workload(&known.namespace, &known.workload_name),
        (None, "") => Node::Unknown,
        (None, principal) => Node::Principal(bounded(principal).into()),
    }
}

fn destination(set: &Set<'_>, snapshot: &Snapshot) -> Node {
    let named = set.text(Attribute::DestinationWorkload);
    if !named.is_empty() {
        let namespace =
            set.first(&[Attribute::DestinationWorkloadNamespace, Attribute::DestinationNamespace]);
        return workload(namespace, named);
    }
    if let Some(node) = of_pod(set.text(Attribute::DestinationUid), snapshot) {
        return node;
    }
    let ip = set.address(Attribute::DestinationIp).and_then(|ip| snapshot.workload_by_ip(ip));
    ip.map_or(Node::Unknown, |known| workload(&known.namespace, &known.workload_name))
}

/// `kubernetes://POD.NAMESPACE`: what Mixer asked the cluster about.
fn of_pod(uid: &str, snapshot: &Snapshot) -> Option<Node> {
    let (pod, namespace) = uid.strip_prefix("kubernetes://")?.rsplit_once('.')?;
    match snapshot.workload_by_name(namespace, pod) {
        Some(known) => Some(workload(&known.namespace, &known.workload_name)),
        None => Some(workload(namespace, pod)),
    }
}

fn workload(namespace: &str, name: &str) -> Node {
    Node::Workload { namespace: bounded(namespace).into(), name: bounded(name).into() }
}

fn record(set: &Set<'_>, reported: &Reported) -> Told {
    let Reported { call, load, tally, .. } = reported;
    let text =
        |address: Option<std::net::IpAddr>| address.map(|ip| ip.to_string()).unwrap_or_default();
    let destination =
        match (set.address(Attribute::DestinationIp), set.number(Attribute::DestinationPort)) {
            (Some(ip), Some(port)) => format!("{ip}:{port}"),
            (ip, _) => text(ip),
        };
    let end = tally.ends.first().map(|(end, _)| end.clone());
    let End { code, flags, grpc } = end.unwrap_or(End { code: 0, flags: "".into(), grpc: None });
    Told {
        source: call.source.clone(),
        destination: call.destination.clone(),
        service: call.service.clone(),
        access: report::Access {
            time_us: Telemetry::now_us().saturating_sub(tally.duration_us),
            side: call.side.into(),
            protocol: load.protocol,
            method: set.text(Attribute::Method).to_owned(),
            host: set.text(Attribute::Host).to_owned(),
            path: path_of(set).to_owned(),
            code: code.into(),
            flags: flags.to_string(),
            grpc: grpc.map_or(0, |status| u32::from(status) + 1),
            duration_us: tally.duration_us,
            source_address: text(set.address(Attribute::SourceIp)),
            destination_address: destination,
            request_id: set.text(Attribute::Id).to_owned(),
            request_bytes: tally.request_bytes,
            response_bytes: tally.response_bytes,
            ..report::Access::default()
        },
    }
}

#[cfg(test)]
mod tests;
