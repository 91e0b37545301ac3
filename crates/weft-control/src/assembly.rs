//! All parts of the control plane, started in order and stopped together.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_telemetry::Registry as Metrics;
use weft_xds::ca::CertificateServer;
use weft_xds::mixer::MixerServer;
use weft_xds::report::ReportServer;
use weft_xds::server::AdsServer;

use crate::ca::{
    self, Authority, CaError, CertificateIssuer, JoinKey, Lifetimes, PluggedIn, Proven, Verifier,
};
use crate::cluster::{self, Kubernetes};
use crate::grpc;
use crate::kube;
use crate::listen;
use crate::push::{self, Ads, Pusher, Trust};
use crate::registration::{Registrar, Store};
use crate::source::dir::{self, DirError};
use crate::status;
use crate::telemetry::{self, Intake, Mixer, Telemetry};
use crate::traces::{self, Traces};
use crate::webhook::{self, Webhook};
use crate::world::{Event, World};

/// How to run the control plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folders of YAML, watched.
    pub config_dirs: Vec<PathBuf>,
    /// A cluster, watched. Not together with folders: who defines what must be clear.
    pub kubernetes: Option<Kubernetes>,
    /// Keeps the CA (root, join key); made if absent.
    pub state_dir: PathBuf,
    /// xDS and CA in plain text.
    pub xds_address: SocketAddr,
    /// xDS and CA with TLS; `None` for no such port.
    pub xds_tls_address: Option<SocketAddr>,
    /// Metrics, status, readiness.
    pub http_address: SocketAddr,
    /// Names and addresses of the TLS certificate, besides the usual ones.
    pub tls_names: Vec<String>,
    pub tls_addresses: Vec<IpAddr>,
    /// First part of SPIFFE ids.
    pub trust_domain: String,
    /// Of workload certificates.
    pub lifetimes: Lifetimes,
    pub push: push::Options,
    /// Answers the API server's questions about pods and configuration; `None` for no such port.
    pub webhook: Option<Webhook>,
    /// Workloads that registered themselves stay this long after their proxy has gone.
    pub registration_grace: Duration,
    /// Who answers `/debug/why`.
    pub why: Option<status::Explain>,
    /// Where Istio's proxies up to 1.4 report (`istio.mixer.v1`), in plain text and without proof of who
    /// they are; `None` for no such port. Mixer's was 9091.
    pub mixer_address: Option<SocketAddr>,
    /// Keep traces, and answer Zipkin's API on the status port.
    pub traces: bool,
}

impl Config {
    /// Istio's ports on loopback, trust domain `cluster.local`.
    pub fn new(config_dirs: Vec<PathBuf>, state_dir: PathBuf) -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            config_dirs,
            kubernetes: None,
            state_dir,
            xds_address: loopback(15010),
            xds_tls_address: Some(loopback(15012)),
            http_address: loopback(15014),
            tls_names: Vec::new(),
            tls_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            trust_domain: "cluster.local".into(),
            lifetimes: Lifetimes::default(),
            push: push::Options::default(),
            webhook: None,
            registration_grace: Duration::from_secs(10),
            why: None,
            mixer_address: None,
            traces: false,
        }
    }
}

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Source(#[from] DirError),
    #[error(transparent)]
    Kubernetes(#[from] kube::AccessError),
    #[error("the authority in the cluster (Secret cacerts or istio-ca-secret): {0}")]
    ClusterAuthority(#[from] kube::ApiError),
    #[error("resources come from folders or from a cluster, not from both")]
    TwoSources,
    #[error("cannot listen on {address} for {what}: {source}; choose another address")]
    Listen { what: &'static str, address: SocketAddr, source: io::Error },
}

/// A running control plane.
pub struct Handle {
    /// Bound addresses.
    pub xds: SocketAddr,
    pub xds_tls: Option<SocketAddr>,
    pub http: SocketAddr,
    pub webhook: Option<SocketAddr>,
    pub mixer: Option<SocketAddr>,
    /// The configuration as it is now.
    pub world: World,
    /// For minting join tokens.
    pub join_key: JoinKey,
    /// PEM of the mesh root.
    pub root_pem: String,
    pub metrics: Metrics,
    pusher: Arc<Pusher>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Handle {
    /// Waits until the configuration was read once and proxies are served.
    pub async fn ready(&self) {
        self.pusher.wait_ready().await;
    }

    /// Waits for the shutdown token, then until all ports are closed.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Stops, and waits until all ports are closed.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.join().await;
    }
}

/// Starts the control plane on the current runtime. It runs until `shutdown` is cancelled.
///
/// # Errors
/// A port that is taken, a folder that cannot be read, a damaged CA folder.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Handle, ControlError> {
    let client = match &config.kubernetes {
        Some(_) if !config.config_dirs.is_empty() => return Err(ControlError::TwoSources),
        Some(cluster) => Some(kube::Client::new(&cluster.access).await?),
        None => None,
    };
    let ca_dir = config.state_dir.join("ca");
    let (authority, plugged) = authority(&config, client.as_ref(), &ca_dir).await?;
    let join_key = JoinKey::open(&ca_dir)?;
    let mut verifier = Verifier::from(join_key.clone());
    let mut reviewers = None;
    if let (Some(client), Some(cluster)) = (&client, &config.kubernetes) {
        let own = kube::Reviewer::new(client, cluster.token_audience.clone());
        let all = kube::Reviewers::new(own);
        verifier = verifier.with_clusters(all.clone());
        reviewers = Some(all);
    }
    let (xds_listener, xds) = bind("xDS", config.xds_address).await?;
    let tls_listener = match config.xds_tls_address {
        Some(address) => Some(bind("xDS with TLS", address).await?),
        None => None,
    };
    let (http_listener, http) = bind("metrics and status", config.http_address).await?;

    let metrics = Metrics::new();
    let own = client.clone();
    let (world, events) =
        start_source(&config, client.zip(reviewers), (&authority, plugged), &metrics, &shutdown)
            .await?;
    let store = match (own, events) {
        (Some(client), _) => Store::cluster(client),
        (None, events) => Store::world(events),
    };
    let registrar = Registrar::new(store, config.registration_grace, &metrics);
    let trust = Trust { authority: authority.clone(), verifier: verifier.clone() };
    let pusher = {
        let (world, push, shutdown) = (world.clone(), config.push, shutdown.clone());
        Pusher::start(world, trust, registrar, push, &metrics, shutdown)
    };

    let mut tasks = JoinSet::new();
    let telemetry = Telemetry::new(&metrics);
    let trust_domain = authority.trust_domain().to_owned();
    let intake = Intake::new(telemetry.clone(), verifier.clone(), world.clone(), trust_domain);
    let reports = ReportServer::new(intake);
    let certificates = CertificateServer::new(Arc::new(issuer(&world, &authority, verifier)));
    // Otherwise both ports are closed again.
    let serves = !config.kubernetes.as_ref().is_some_and(|cluster| cluster.inject_only);
    if serves {
        let plain = routes(Ads::plain(Arc::clone(&pusher)), certificates.clone(), reports.clone());
        let incoming = listen::incoming(xds_listener, None);
        tasks.spawn(grpc::serve(plain, incoming, shutdown.clone()));
    }
    let xds_tls = match tls_listener {
        Some((listener, address)) if serves => {
            let tls =
                ca::server_config(authority.clone(), &config.tls_names, &config.tls_addresses)?;
            let routes = routes(Ads::authenticated(Arc::clone(&pusher)), certificates, reports);
            let incoming = listen::incoming(listener, Some(tls));
            tasks.spawn(grpc::serve(routes, incoming, shutdown.clone()));
            Some(address)
        }
        Some(_) | None => None,
    };
    let webhook = match config.webhook {
        Some(Webhook { address, settings }) => {
            let (listener, address) = bind("the webhook", address).await?;
            let tls =
                ca::server_config(authority.clone(), &config.tls_names, &config.tls_addresses)?;
            let (world, shutdown) = (world.clone(), shutdown.clone());
            let listener = (listener, address);
            tasks.spawn(webhook::serve(listener, tls, settings, world, metrics.clone(), shutdown));
            Some(address)
        }
        None => None,
    };
    let pages = status::Pages::new(Arc::clone(&pusher), world.clone(), metrics.clone(), config.why);
    let mixer = match config.mixer_address {
        Some(address) => {
            let (listener, address) = bind("Mixer's clients", address).await?;
            let server = MixerServer::new(Mixer::new(telemetry.clone(), world.clone(), &metrics));
            let incoming = listen::incoming(listener, None);
            tasks.spawn(grpc::serve(Routes::new(server), incoming, shutdown.clone()));
            Some(address)
        }
        None => None,
    };
    let mut router = pages.router().merge(telemetry::router(telemetry));
    if config.traces {
        router = router.merge(traces::router(Traces::new(&metrics)));
    }
    tasks.spawn(status::serve(http_listener, router, shutdown.clone()));
    tracing::info!(%xds, ?xds_tls, %http, ?webhook, "control plane listens");
    let root_pem = authority.root_pem().to_string();
    Ok(Handle {
        xds,
        xds_tls,
        http,
        webhook,
        mixer,
        world,
        join_key,
        root_pem,
        metrics,
        pusher,
        shutdown,
        tasks,
    })
}

/// The one that was plugged into the cluster (and how), else one that is shared there or in our own folder.
async fn authority(
    config: &Config,
    client: Option<&kube::Client>,
    ca_dir: &Path,
) -> Result<(Authority, Option<PluggedIn>), ControlError> {
    let plugged = match (client, &config.kubernetes) {
        (Some(client), Some(cluster)) => {
            let namespace = &cluster.source.root_namespace;
            match kube::plugged_in(client, namespace).await? {
                None if cluster.shared_root => {
                    let own = ca::make_root(&config.trust_domain)?;
                    Some(kube::shared_root(client, namespace, own).await?)
                }
                plugged => plugged,
            }
        }
        _ => None,
    };
    let authority = match &plugged {
        Some(plugged) => Authority::plugged(plugged, &config.trust_domain, config.lifetimes)?,
        None => Authority::open(ca_dir, &config.trust_domain, config.lifetimes)?,
    };
    Ok((authority, plugged))
}

async fn start_source(
    config: &Config,
    client: Option<(kube::Client, kube::Reviewers)>,
    authority: (&Authority, Option<PluggedIn>),
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(World, mpsc::Sender<Event>), ControlError> {
    let (Some(cluster), Some((client, reviewers))) = (&config.kubernetes, client) else {
        let (world, events) = World::start(usize::from(!config.config_dirs.is_empty()));
        if !config.config_dirs.is_empty() {
            dir::watch(config.config_dirs.clone(), events.clone()).await?;
        }
        return Ok((world, events));
    };
    Ok(cluster::start(cluster, &client, authority, reviewers, metrics, shutdown))
}

async fn bind(
    what: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ControlError> {
    let listen = |source| ControlError::Listen { what, address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
}

type Known = Box<dyn Fn(&Proven) -> bool + Send + Sync>;

fn issuer(world: &World, authority: &Authority, verifier: Verifier) -> CertificateIssuer<Known> {
    let world = world.clone();
    let is_known: Known = Box::new(move |proven| is_known(&world.snapshot(), proven));
    CertificateIssuer::new(authority.clone(), verifier, is_known)
}

/// Does the configuration agree that there is such a workload? A Pod that a cluster vouches for may
/// be too new to be in it.
fn is_known(snapshot: &weft_model::Snapshot, proven: &Proven) -> bool {
    if proven.is_admissible(snapshot).is_err() {
        return false;
    }
    let Proven { identity, pod, node, cluster: _, unbound: _ } = proven;
    let Some(pod) = pod else {
        return snapshot.has_service_account(identity.namespace(), identity.service_account());
    };
    let Some(workload) = push::workload(snapshot, proven, pod) else { return true };
    let runs_on = weft_model::name_and_cluster(&workload.node).0;
    let elsewhere = node.as_ref().is_some_and(|node| !runs_on.is_empty() && *runs_on != **node);
    *workload.service_account == *identity.service_account() && !elsewhere
}

fn routes(
    ads: Arc<Ads>,
    certificates: CertificateServer<CertificateIssuer<Known>>,
    reports: ReportServer<Intake>,
) -> Routes {
    Routes::new(AdsServer::new(ads)).add_service(certificates).add_service(reports)
}
