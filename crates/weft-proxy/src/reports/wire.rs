//! Batches as a report: each workload and service is named once.

use std::collections::HashMap;
use std::sync::Arc;

use weft_telemetry::load::Load;
use weft_telemetry::{Outcome, PeerInfo, Protocol, Reporter, SecurityPolicy, ServiceInfo};
use weft_xds::report;

use super::Access;

/// Puts loads and records into a report.
pub(super) fn fill(report: &mut report::ReportRequest, loads: &[Load], records: &[Access]) {
    let mut names = Names::default();
    report.loads = loads.iter().map(|load| names.load(load)).collect();
    report.records = records.iter().map(|record| names.access(record)).collect();
    report.peers = names.peers;
    report.services = names.services;
}

/// Indexes by the address of what they name; the batch keeps that alive.
#[derive(Default)]
struct Names {
    peers: Vec<report::Peer>,
    services: Vec<report::Service>,
    known: HashMap<usize, u32>,
}

impl Names {
    fn peer(&mut self, peer: &Arc<PeerInfo>) -> u32 {
        let Self { peers, known, .. } = self;
        *known.entry(Arc::as_ptr(peer).addr()).or_insert_with(|| {
            peers.push(of_peer(peer));
            peers.len() as u32 - 1
        })
    }

    fn service(&mut self, service: &Arc<ServiceInfo>) -> u32 {
        let Self { services, known, .. } = self;
        *known.entry(Arc::as_ptr(service).addr()).or_insert_with(|| {
            let ServiceInfo { host, name, namespace } = &**service;
            services.push(report::Service {
                host: host.clone(),
                name: name.clone(),
                namespace: namespace.clone(),
            });
            services.len() as u32 - 1
        })
    }

    fn load(&mut self, load: &Load) -> report::Load {
        let Load { flow, method, path, tally } = load;
        let (buckets, counts) =
            tally.latency.iter().map(|(bucket, count)| (u32::from(*bucket), *count)).unzip();
        report::Load {
            side: side(flow.reporter).into(),
            source: self.peer(&flow.source),
            destination: self.peer(&flow.destination),
            service: self.service(&flow.service),
            protocol: protocol(flow.protocol).into(),
            mtls: match (flow.reporter, flow.security) {
                (Reporter::Destination, security) => security == SecurityPolicy::MutualTls,
                // Istio's label is silent there, but a name that TLS proved says it.
                (Reporter::Source, _) => !flow.destination.principal.is_empty(),
            },
            method: method.to_string(),
            path: path.to_string(),
            requests: tally.requests,
            ends: tally
                .outcomes
                .iter()
                .map(|(outcome, requests)| ends(*outcome, *requests))
                .collect(),
            buckets,
            counts,
            duration_us: tally.duration_us_sum,
            request_bytes: tally.request_bytes,
            response_bytes: tally.response_bytes,
            opened: tally.opened,
            closed: tally.closed,
        }
    }

    fn access(&mut self, access: &Access) -> report::Access {
        let report::Ends { code, flags, grpc, .. } = ends(access.outcome, 1);
        report::Access {
            time_us: access.time_us,
            side: side(access.reporter).into(),
            source: self.peer(&access.source),
            destination: self.peer(&access.destination),
            service: self.service(&access.service),
            protocol: protocol(access.protocol).into(),
            method: access.method.to_string(),
            host: access.host.to_string(),
            path: access.path.to_string(),
            code,
            flags,
            grpc,
            duration_us: access.duration_us,
            source_address: access.client.clone(),
            destination_address: access.endpoint.clone(),
            request_id: access.request_id.to_string(),
            trace_id: access.trace_id.to_string(),
            request_bytes: access.request_bytes,
            response_bytes: access.response_bytes,
        }
    }
}

pub(super) fn of_peer(peer: &PeerInfo) -> report::Peer {
    report::Peer {
        workload: peer.workload.clone(),
        namespace: peer.namespace.clone(),
        app: peer.app.clone(),
        version: peer.version.clone(),
        principal: peer.principal.clone(),
        cluster: peer.cluster.clone(),
    }
}

fn ends(outcome: Outcome, requests: u64) -> report::Ends {
    let Outcome { code, grpc_status, flags } = outcome;
    report::Ends {
        code: code.into(),
        flags: if flags.is_empty() { String::new() } else { flags.to_string() },
        grpc: grpc_status.map_or(0, |status| u32::from(status) + 1),
        requests,
    }
}

fn side(reporter: Reporter) -> report::Side {
    match reporter {
        Reporter::Source => report::Side::Source,
        Reporter::Destination => report::Side::Destination,
    }
}

fn protocol(protocol: Protocol) -> report::Protocol {
    match protocol {
        Protocol::Http => report::Protocol::Http,
        Protocol::Grpc => report::Protocol::Grpc,
        Protocol::Tcp => report::Protocol::Tcp,
    }
}
