//! What configuration makes of Istio's metrics: which are kept, and which labels each shows.
//!
//! Labels that no metric of a flow shows are blanked when the flow is first seen, so that flows that
//! differ in nothing else share their cells. What only some metrics hide is merged by a scrape.

use std::sync::Arc;

use crate::istio::{self, FlowLabels, Outcome};
use crate::peer::PeerInfo;
use crate::{ResponseFlags, ServiceInfo};

/// One of Istio's metrics, in the order written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    Requests,
    Duration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpSent,
    TcpReceived,
    TcpOpened,
    TcpClosed,
}

impl Metric {
    pub const ALL: [Metric; 10] = [
        Metric::Requests,
        Metric::Duration,
        Metric::RequestBytes,
        Metric::ResponseBytes,
        Metric::RequestMessages,
        Metric::ResponseMessages,
        Metric::TcpSent,
        Metric::TcpReceived,
        Metric::TcpOpened,
        Metric::TcpClosed,
    ];
    /// Those that one HTTP flow's labels are for.
    const HTTP: [Metric; 6] = [
        Metric::Requests,
        Metric::Duration,
        Metric::RequestBytes,
        Metric::ResponseBytes,
        Metric::RequestMessages,
        Metric::ResponseMessages,
    ];
    const TCP: [Metric; 4] =
        [Metric::TcpSent, Metric::TcpReceived, Metric::TcpOpened, Metric::TcpClosed];

    /// As Prometheus knows it, `istio_requests_total`.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::Requests => istio::REQUESTS_TOTAL,
            Metric::Duration => istio::REQUEST_DURATION_MS,
            Metric::RequestBytes => istio::REQUEST_BYTES,
            Metric::ResponseBytes => istio::RESPONSE_BYTES,
            Metric::RequestMessages => istio::REQUEST_MESSAGES_TOTAL,
            Metric::ResponseMessages => istio::RESPONSE_MESSAGES_TOTAL,
            Metric::TcpSent => istio::TCP_SENT_BYTES_TOTAL,
            Metric::TcpReceived => istio::TCP_RECEIVED_BYTES_TOTAL,
            Metric::TcpOpened => istio::TCP_OPENED_TOTAL,
            Metric::TcpClosed => istio::TCP_CLOSED_TOTAL,
        }
    }

    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Metric::Duration | Metric::RequestBytes | Metric::ResponseBytes => "histogram",
            _ => "counter",
        }
    }

    /// By its name with or without `istio_`.
    pub fn from_name(name: &str) -> Option<Metric> {
        let short = name.strip_prefix("istio_").unwrap_or(name);
        Metric::ALL.into_iter().find(|metric| &metric.name()["istio_".len()..] == short)
    }
}

/// A set of the standard labels, by index in [`istio::LABELS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct LabelSet(u32);

impl LabelSet {
    const ALL: LabelSet = LabelSet(u32::MAX);

    pub(crate) fn has(self, at: usize) -> bool {
        self.0 >> at & 1 == 1
    }

    fn add(&mut self, at: usize) {
        self.0 |= 1 << at;
    }
}

/// What configuration says of the metrics of some traffic. Equal views make equal series.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct View {
    families: [FamilyView; Metric::ALL.len()],
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct FamilyView {
    dropped: bool,
    hidden: LabelSet,
    /// Names of further labels, in order, and which of the flow's values they show.
    added: Vec<(Box<str>, usize)>,
}

impl View {
    /// Whether a metric is counted for nobody.
    pub fn set_dropped(&mut self, metric: Metric, dropped: bool) {
        self.families[metric as usize].dropped = dropped;
    }

    /// A metric goes without this label.
    pub fn remove(&mut self, metric: Metric, label: &str) {
        let family = &mut self.families[metric as usize];
        family.added.retain(|(name, _)| **name != *label);
        if let Some(at) = istio::LABELS.iter().position(|name| *name == label) {
            family.hidden.add(at);
        }
    }

    /// A metric shows as this label the value number `value` of what a request is counted with.
    pub fn set(&mut self, metric: Metric, label: &str, value: usize) {
        self.remove(metric, label);
        let added = &mut self.families[metric as usize].added;
        let at = added.partition_point(|(name, _)| **name < *label);
        added.insert(at, (label.into(), value));
    }

    pub(crate) fn drops(&self, metric: Metric) -> bool {
        self.families[metric as usize].dropped
    }

    pub(crate) fn hidden(&self, metric: Metric) -> LabelSet {
        self.families[metric as usize].hidden
    }

    pub(crate) fn added(&self, metric: Metric) -> &[(Box<str>, usize)] {
        &self.families[metric as usize].added
    }

    /// Labels that none of the metrics kept shows.
    fn hidden_everywhere(&self, metrics: &[Metric]) -> LabelSet {
        let kept = metrics.iter().filter(|metric| !self.drops(**metric));
        LabelSet(kept.fold(LabelSet::ALL.0, |all, metric| all & self.hidden(*metric).0))
    }

    /// Series of this view alone never look the same.
    pub(crate) fn is_uniform(&self) -> bool {
        [&Metric::HTTP[..], &Metric::TCP].iter().all(|metrics| {
            let everywhere = self.hidden_everywhere(metrics);
            let kept = metrics.iter().filter(|metric| !self.drops(**metric));
            let shown = |metric: Metric, at| self.added(metric).iter().any(|(_, one)| *one == at);
            kept.clone().all(|metric| {
                self.hidden(*metric) == everywhere
                    && (0..self.values(metrics)).all(|at| shown(*metric, at))
            })
        })
    }

    /// How many values a flow has.
    fn values(&self, metrics: &[Metric]) -> usize {
        let added = metrics.iter().flat_map(|metric| self.added(*metric));
        added.map(|(_, at)| at + 1).max().unwrap_or(0)
    }

    /// An outcome without what no metric shows of it.
    pub(crate) fn outcome(&self, outcome: Outcome) -> Outcome {
        let hidden = self.hidden_everywhere(&Metric::HTTP[..4]);
        let Outcome { code, grpc_status, flags } = outcome;
        Outcome {
            code: if hidden.has(istio::CODE_AT) { 0 } else { code },
            grpc_status: if hidden.has(istio::GRPC_STATUS_AT) { None } else { grpc_status },
            flags: if hidden.has(istio::FLAGS_AT) { ResponseFlags::NONE } else { flags },
        }
    }

    pub(crate) fn tcp_flags(&self, flags: ResponseFlags) -> ResponseFlags {
        match self.hidden_everywhere(&Metric::TCP).has(istio::FLAGS_AT) {
            true => ResponseFlags::NONE,
            false => flags,
        }
    }
}

impl FlowLabels {
    /// Without what no label tells, so that flows that look the same are the same.
    pub(crate) fn canonical(mut self) -> FlowLabels {
        let hidden = match (&self.view, self.protocol) {
            (None, _) => LabelSet::default(),
            (Some(view), istio::Protocol::Tcp) => view.hidden_everywhere(&Metric::TCP),
            (Some(view), _) => view.hidden_everywhere(&Metric::HTTP),
        };
        self.source = peer(&self.source, istio::SOURCE_AT, hidden);
        self.destination = peer(&self.destination, istio::DESTINATION_AT, hidden);
        if (istio::SERVICE_AT..istio::PROTOCOL_AT).any(|at| hidden.has(at)) {
            let ServiceInfo { host, name, namespace } = &*self.service;
            let mut parts = [host, name, namespace].map(String::clone);
            for (index, part) in parts.iter_mut().enumerate() {
                if hidden.has(istio::SERVICE_AT + index) {
                    part.clear();
                }
            }
            let [host, name, namespace] = parts;
            self.service = Arc::new(ServiceInfo { host, name, namespace });
        }
        self
    }
}

/// Of a peer what its labels show: not the pod's name, which none does.
fn peer(peer: &Arc<PeerInfo>, first: usize, hidden: LabelSet) -> Arc<PeerInfo> {
    let shown = (first..first + istio::PEER_LABELS).all(|at| !hidden.has(at));
    let latest = peer.canonical_revision.is_empty() && !peer.canonical_service.is_empty();
    if shown && peer.name.is_empty() && !latest {
        return peer.clone();
    }
    let mut shown = PeerInfo { name: String::new(), ..(**peer).clone() };
    if latest {
        shown.canonical_revision = istio::LATEST.to_owned();
    }
    let PeerInfo {
        name: _,
        workload,
        namespace,
        app,
        version,
        principal,
        cluster,
        canonical_service,
        canonical_revision,
    } = &mut shown;
    // In the order of the labels.
    let facts = [
        workload,
        namespace,
        principal,
        app,
        version,
        canonical_service,
        canonical_revision,
        cluster,
    ];
    for (index, fact) in facts.into_iter().enumerate() {
        if hidden.has(first + index) {
            fact.clear();
        }
    }
    Arc::new(shown)
}
