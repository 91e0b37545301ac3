//! `weft demo`: a whole mesh on one machine, without root and without Kubernetes.
//!
//! In this process: the control plane and the sample applications. As child processes: the
//! ingress gateway and one sidecar per meshed application, so that their memory is their own and
//! they can be killed. Everything listens on loopback. Must not know how any of them works.

mod apps;
mod certificates;
mod config;
mod layout;
mod proxies;
mod report;
mod traffic;

use crate::cli::{ClusterArgs, ControlArgs, DemoArgs, Output, PortBase};
use crate::inject::InjectSettings;
use anyhow::{Context as _, bail};
use apps::HttpClient;
use http::{HeaderMap, StatusCode};
use layout::Layout;
use proxies::Proxies;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use weft_control::ca::{Identity, JoinKey};

/// The article's site.
const WEBSITE: &str = "wallstreetcn.com";
/// How long the mesh may take to answer its first request.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A proxy that ends this often before it is ever ready will not become so.
const RESTARTS_MAX: u32 = 2;
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Runs the demo until Ctrl-C or SIGTERM.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let layout = choose(args.port_base)?;
    crate::control::log(&args.log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(args, layout))
}

fn choose(base: PortBase) -> anyhow::Result<Layout> {
    let layout = match base {
        PortBase::Port(base) => Layout::new(base).map_err(anyhow::Error::msg)?,
        PortBase::Free => Layout::free().context("no free range of ports: stop other demos")?,
    };
    match layout.taken() {
        None => Ok(layout),
        Some(address) => bail!(taken(address)),
    }
}

fn taken(address: SocketAddr) -> String {
    format!(
        "{address} is taken, perhaps by another demo: stop that, \
         or move this one with `--port-base free` (or a number at least {} away)",
        layout::STEP
    )
}

async fn serve(args: &DemoArgs, layout: Layout) -> anyhow::Result<()> {
    let begun = Instant::now();
    let stop = crate::stop_signal()?;
    let place = Place::new(args)?;
    progress(&format!("configuration in {}", place.config.display()));
    let certificates = certificates::write(&place.config.join("certs"), WEBSITE)?;
    config::write(&place.config, &layout, &certificates)?;

    let control = crate::control::start(control_args(args, &layout, &place)).await?;
    progress("control plane is up; starting applications and proxies");
    apps::start(&layout).await?;
    let join_key = JoinKey::open(&place.state.join("ca"))?;
    let proxies = Proxies::start(&layout, place.temporary.path(), |instance| {
        let identity = Identity::new(instance.namespace, instance.account)?;
        Ok(join_key.mint(&identity, TOKEN_LIFETIME, SystemTime::now()))
    })?;

    let outcome = tokio::select! {
        outcome = until_ready(&layout, &proxies) => outcome.and_then(|()| {
            progress(&format!("ready after {:.1} s", begun.elapsed().as_secs_f64()));
            print(args, &layout, &place, &proxies)
        }),
        () = stop.cancelled() => Ok(()),
    };
    if outcome.is_ok() {
        let sending = async {
            match args.no_traffic {
                true => std::future::pending().await,
                false => traffic::run(layout).await,
            }
        };
        tokio::select! {
            () = sending => {}
            () = stop.cancelled() => {}
        }
    }
    progress("stopping");
    proxies.stop().await;
    control.stop().await;
    outcome
}

/// Where the demo keeps its files.
struct Place {
    /// Removed at the end.
    temporary: TempDir,
    config: PathBuf,
    state: PathBuf,
}

impl Place {
    fn new(args: &DemoArgs) -> anyhow::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("weft-demo-").tempdir();
        let temporary = temporary.context("making a temporary directory")?;
        let config = match &args.config_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => temporary.path().join("config"),
        };
        std::fs::create_dir_all(&config)
            .with_context(|| format!("creating {}", config.display()))?;
        let state = temporary.path().join("state");
        Ok(Self { temporary, config, state })
    }
}

/// A join token outlives any demo.
const TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

fn control_args(args: &DemoArgs, layout: &Layout, place: &Place) -> ControlArgs {
    ControlArgs {
        config_dir: vec![place.config.clone()],
        cluster: ClusterArgs::default(),
        state_dir: place.state.clone(),
        xds_address: layout.xds(),
        xds_tls_address: layout.xds_tls(),
        http_address: layout.control_http(),
        webhook_address: None,
        inject: InjectSettings::default(),
        mixer_address: None,
        trace_store: true,
        xds_streams_max: 10_000,
        xds_streams_per_second: 100,
        trust_domain: "cluster.local".into(),
        workload_cert_ttl: args.workload_cert_ttl,
        registration_grace: Duration::from_secs(10),
        log_level: args.log_level.clone(),
    }
}

/// Waits until every proxy is ready and the gateway's first request came back whole.
async fn until_ready(layout: &Layout, proxies: &Proxies) -> anyhow::Result<()> {
    let http = HttpClient::new();
    let give_up = Instant::now() + START_LIMIT;
    for proxy in proxies.list() {
        let admin = layout.admin(proxy.instance);
        loop {
            match http.get(admin, "localhost", "/ready", HeaderMap::new()).await {
                Ok((StatusCode::OK, _)) => break,
                _ if proxy.restarts() > RESTARTS_MAX || Instant::now() > give_up => bail!(
                    "the proxy of {} does not become ready; its last words:\n{}",
                    proxy.instance.name,
                    proxy.last_words()
                ),
                _ => tokio::time::sleep(POLL_PAUSE).await,
            }
        }
    }
    loop {
        match http.get(layout.gateway_http(), WEBSITE, "/", HeaderMap::new()).await {
            Ok((StatusCode::OK, _)) => return Ok(()),
            answer if Instant::now() > give_up => {
                bail!("the gateway does not answer: {answer:?}");
            }
            _ => tokio::time::sleep(POLL_PAUSE).await,
        }
    }
}

fn print(args: &DemoArgs, layout: &Layout, place: &Place, proxies: &Proxies) -> anyhow::Result<()> {
    let text = match args.output {
        Output::Json => report::json(layout, &place.config, proxies).to_string(),
        Output::Text => report::tour(layout, &place.config, proxies, !args.no_traffic),
    };
    crate::print(&format!("{text}\n"))
}

/// Progress goes to standard error: standard output is for results.
fn progress(line: &str) {
    eprintln!("weft demo: {line}");
}
