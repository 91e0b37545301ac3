//! Takes reports in: who sends one is what its token proves, not what it says.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Request, Status};
use weft_model::Snapshot;
use weft_xds::NodeView;
use weft_xds::pb::envoy::config::core::v3::Node as XdsNode;
use weft_xds::report::{ReportRequest, ReportResponse};
use weft_xds::unary::Method;

use super::Telemetry;
use super::store::{Node, Sender, bounded};
use crate::ca::{Proven, Verifier};
use crate::world::World;

/// Reports a second that all proxies together should send.
const REPORTS_PER_SECOND: usize = 250;
/// Time between one proxy's reports. Milliseconds.
const INTERVAL_MS_MIN: usize = 1000;
const INTERVAL_MS_MAX: usize = 15_000;
/// Share of requests that did not fail and that proxies tell of one by one, of a million.
const RECORDS_SHARE: u32 = 10_000;
/// Single requests that a proxy's worker tells of between two reports.
const RECORDS_MAX: u32 = 100;

/// The method that proxies call.
pub struct Intake {
    telemetry: Telemetry,
    verifier: Verifier,
    world: World,
    trust_domain: String,
}

impl Intake {
    /// Serve it with [`weft_xds::report::ReportServer`].
    pub fn new(
        telemetry: Telemetry,
        verifier: Verifier,
        world: World,
        trust_domain: String,
    ) -> Arc<Self> {
        Arc::new(Self { telemetry, verifier, world, trust_domain })
    }

    async fn take(&self, request: Request<ReportRequest>) -> Result<ReportResponse, Status> {
        let Some(token) = weft_xds::connect::token(&request) else {
            let text = "reports need a token: who called whom is told by proven workloads only";
            return Err(Status::unauthenticated(text));
        };
        let cluster = weft_xds::connect::cluster(&request);
        let proven = self.verifier.verify(token, cluster, SystemTime::now()).await?;
        let report = request.into_inner();
        let sender = self.sender(&report, &proven)?;
        let now = self.telemetry.now();
        let (resolved, reporters) = {
            let snapshot = self.world.snapshot();
            let mut store = self.telemetry.store();
            store.learn_principals(&report, now, |principal| whose(&snapshot, principal));
            (store.take(&report, &sender, now), store.reporters.len())
        };
        match resolved {
            Some(resolved) => {
                self.telemetry.0.reports.inc();
                let Sender { namespace, workload, .. } = sender;
                let own = Node::Workload { namespace, name: workload };
                self.telemetry.records().take(&report, &resolved, &own);
            }
            None => self.telemetry.0.repeated.inc(),
        }
        let interval = reporters * 1000 / REPORTS_PER_SECOND;
        Ok(ReportResponse {
            interval_ms: interval.clamp(INTERVAL_MS_MIN, INTERVAL_MS_MAX) as u32,
            errors: true,
            share: RECORDS_SHARE,
            records_max: RECORDS_MAX,
        })
    }

    /// The workload that the token is for. Its name is the configuration's where that knows it, else
    /// the sender's word, within the namespace that is proved.
    fn sender(&self, report: &ReportRequest, proven: &Proven) -> Result<Sender, Status> {
        let snapshot = self.world.snapshot();
        proven.is_admissible(&snapshot)?;
        let Proven { identity, pod, node: _, cluster: _, unbound: _ } = proven;
        let node = XdsNode { id: report.node.clone(), ..XdsNode::default() };
        let node =
            NodeView::parse(&node).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let refuse = |what: String| Err(Status::permission_denied(what));
        if node.namespace != identity.namespace() {
            return refuse(format!(
                "the token is for {identity}, the node is in {}",
                node.namespace
            ));
        }
        if pod.as_deref().is_some_and(|pod| pod != node.name) {
            return refuse(format!("the token is another Pod's than {}", node.name));
        }
        let workload = match snapshot.workload_by_name(identity.namespace(), &node.name) {
            Some(known) if *known.service_account != *identity.service_account() => {
                return refuse(format!("{} does not run as {identity}", node.name));
            }
            Some(known) => known.workload_name.clone(),
            None => {
                let said = report.own.as_ref().map(|own| own.workload.as_str());
                let said = said.filter(|said| !said.is_empty()).unwrap_or(&node.name);
                Arc::from(bounded(said))
            }
        };
        Ok(Sender {
            namespace: identity.namespace().into(),
            workload,
            principal: identity.spiffe(&self.trust_domain).into(),
        })
    }
}

/// The one workload that runs as a SPIFFE id's service account.
fn whose(snapshot: &Snapshot, principal: &str) -> Option<(Arc<str>, Arc<str>)> {
    let mut parts = principal.strip_prefix("spiffe://")?.split('/').skip(1);
    let (Some("ns"), Some(namespace), Some("sa"), Some(account)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let mut runs = snapshot.workloads().filter(|workload| {
        *workload.namespace == *namespace && *workload.service_account == *account
    });
    let first = runs.next()?;
    let is_one = runs.all(|other| other.workload_name == first.workload_name);
    is_one.then(|| (first.namespace.clone(), first.workload_name.clone()))
}

impl Method<ReportRequest, ReportResponse> for Intake {
    async fn answer(&self, request: Request<ReportRequest>) -> Result<ReportResponse, Status> {
        let answer = self.take(request).await;
        if answer.is_err() {
            self.telemetry.0.refused.inc();
        }
        answer
    }
}
