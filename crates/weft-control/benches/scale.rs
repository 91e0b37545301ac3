//! How the control plane bears many services and proxies: a real `weft control` on a generated
//! folder, and so many xDS clients in this process. Started by `cargo xtask bench control` with
//! WEFT SERVICES ENDPOINTS PROXIES NAMESPACES; prints a table. Proxies see their own namespace
//! (a Sidecar resource each), so that most of the mesh is unrelated to any change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weft_xds::client::{self, Connection, Options, Subscriber, Wants};
use weft_xds::connect::Target;
use weft_xds::node::NodeKind;
use weft_xds::session::{ClientSession, Mode, Rejection, Update, Wanted};
use weft_xds::{NodeView, ResourceType};

/// Longest wait for one phase.
const PHASE_MAX: Duration = Duration::from_secs(120);
/// After so long without an update a change is over.
const QUIET: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 5;

#[derive(Clone, Copy)]
struct Size {
    services: usize,
    endpoints: usize,
    proxies: usize,
    namespaces: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [weft, sizes @ ..] = args.as_slice() else { bail!("WEFT and sizes") };
    let sizes = sizes.iter().map(|text| text.parse()).collect::<Result<Vec<usize>, _>>()?;
    let &[services, endpoints, proxies, namespaces] = sizes.as_slice() else {
        bail!("SERVICES ENDPOINTS PROXIES NAMESPACES")
    };
    let size = Size { services, endpoints, proxies, namespaces };
    let world = World::write(size)?;
    let mut run = Run::start(Path::new(weft), &world, size).await?;
    println!("### Control plane: {services} services × {endpoints} endpoints, {proxies} proxies\n");
    println!(
        "{namespaces} namespaces, each proxy sees its own. {} MB of YAML.\n",
        world.bytes / 1_000_000
    );
    run.phases(&world).await
}

/// The configuration folder.
struct World {
    folder: tempfile::TempDir,
    bytes: usize,
}

impl World {
    fn write(size: Size) -> anyhow::Result<World> {
        let mut world = World { folder: tempfile::tempdir()?, bytes: 0 };
        std::fs::create_dir(world.config())?;
        for namespace in 0..size.namespaces {
            let mut text = String::new();
            for service in (namespace..size.services).step_by(size.namespaces) {
                write_service(&mut text, namespace, service, size.endpoints);
            }
            let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\n";
            writeln!(text, "{sidecar}metadata: {{name: default, namespace: ns-{namespace}}}")?;
            text.push_str("spec: {egress: [{hosts: [\"./*\"]}]}\n");
            world.bytes += text.len();
            world.put(&format!("ns-{namespace}.yaml"), &text)?;
        }
        world.endpoint(0)?;
        world.rule(0)?;
        world.unrelated(0)?;
        Ok(world)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// Replaces a file at once.
    fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let draft = self.folder.path().join(name);
        std::fs::write(&draft, text)?;
        Ok(std::fs::rename(draft, self.config().join(name))?)
    }

    /// One more endpoint of `s0`, at another address each round.
    fn endpoint(&self, round: u32) -> anyhow::Result<()> {
        let mut text = String::new();
        write_pod(&mut text, 0, 0, 10_000, &format!("10.255.0.{}", round + 1));
        self.put("endpoint.yaml", &text)
    }

    /// A rule of `s0`, with another timeout each round.
    fn rule(&self, round: u32) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: s0, namespace: ns-0}}\n\
             spec: {{hosts: [s0], http: [{{timeout: {}s, route: [{{destination: {{host: s0}}}}]}}]}}\n",
            round + 1
        );
        self.put("rule.yaml", &text)
    }

    /// A service in a namespace that no proxy sees.
    fn unrelated(&self, round: u32) -> anyhow::Result<()> {
        let mut text = String::from(
            "apiVersion: v1\nkind: Service\nmetadata: {name: lonely, namespace: elsewhere}\n",
        );
        writeln!(
            text,
            "spec: {{selector: {{app: x}}, ports: [{{name: http, port: {}}}]}}",
            80 + round
        )?;
        self.put("unrelated.yaml", &text)
    }
}

fn write_service(text: &mut String, namespace: usize, service: usize, endpoints: usize) {
    let written = write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: ns-{namespace}}}\n\
         spec: {{selector: {{app: s{service}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    );
    written.expect("writing to memory cannot fail");
    for endpoint in 0..endpoints {
        let number = service * endpoints + endpoint;
        let ip = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
        write_pod(text, namespace, service, endpoint, &ip);
    }
}

fn write_pod(text: &mut String, namespace: usize, service: usize, index: usize, ip: &str) {
    let written = write!(
        text,
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: s{service}-{index}, namespace: ns-{namespace}, labels: {{app: s{service}}}}}\n\
         spec: {{serviceAccountName: s{service}, containers: [{{name: app, ports: [{{containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    );
    written.expect("writing to memory cannot fail");
}

/// An update as a proxy saw it.
struct Seen {
    proxy: usize,
    at: Instant,
    ty: ResourceType,
    /// Encoded resources, without names and framing.
    bytes: usize,
}

/// The control plane and its proxies.
struct Run {
    control: Control,
    begun: Instant,
    size: Size,
    target: Target,
    seen: mpsc::UnboundedReceiver<Seen>,
    report: mpsc::UnboundedSender<Seen>,
    proxies: Vec<JoinHandle<()>>,
}

/// Killed when dropped.
struct Control(Child);

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    async fn start(weft: &Path, world: &World, size: Size) -> anyhow::Result<Run> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let begun = Instant::now();
        let control = Command::new(weft)
            .args(["control", "--xds-tls-address=127.0.0.1:0", "--http-address=127.0.0.1:0"])
            .arg(format!("--config-dir={}", world.config().display()))
            .arg(format!("--state-dir={}", world.folder.path().join("state").display()))
            .arg(format!("--xds-address=127.0.0.1:{port}"))
            .args(["--log-level=error"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start weft control")?;
        let (report, seen) = mpsc::unbounded_channel();
        let target = Target::plain(format!("http://127.0.0.1:{port}"));
        Ok(Run {
            control: Control(control),
            begun,
            size,
            target,
            seen,
            report,
            proxies: Vec::new(),
        })
    }

    async fn phases(&mut self, world: &World) -> anyhow::Result<()> {
        println!(
            "| phase | proxies reached | half by | 99 % by | all by | bytes | to others | CPU of control | resident |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        let (size, begun) = (self.size, self.begun);
        self.connect(1);
        self.phase("start to the first proxy configured", begun, ResourceType::Route, &[0]).await?;
        let connected = Instant::now();
        self.connect(size.proxies);
        let rest: Vec<usize> = (1..size.proxies).collect();
        self.phase("all others connected and configured", connected, ResourceType::Route, &rest)
            .await?;
        let near: Vec<usize> = (0..size.proxies).step_by(size.namespaces).collect();
        for round in 1..=ROUNDS {
            world.endpoint(round)?;
            self.phase("one endpoint", Instant::now(), ResourceType::Endpoint, &near).await?;
        }
        for round in 1..=ROUNDS {
            world.rule(round)?;
            self.phase("one VirtualService", Instant::now(), ResourceType::Route, &near).await?;
        }
        world.unrelated(1)?;
        self.phase("unrelated", Instant::now(), ResourceType::Cluster, &[]).await
    }

    /// Starts proxies until there are so many.
    fn connect(&mut self, count: usize) {
        for number in self.proxies.len()..count {
            let namespace = format!("ns-{}", number % self.size.namespaces);
            let ip = [10, 254, (number >> 8) as u8, number as u8].into();
            let node =
                NodeView::new(NodeKind::Sidecar, Some(ip), &format!("p{number}"), &namespace);
            let mut session = ClientSession::new(Mode::Delta, node.to_node());
            session.subscribe(ResourceType::Cluster, Wanted::All);
            session.subscribe(ResourceType::Listener, Wanted::All);
            session.subscribe(ResourceType::Route, Wanted::Names([Arc::from("80")].into()));
            let mut options = Options::new(self.target.clone());
            options.backoff_base = Duration::from_millis(10);
            options.backoff_max = Duration::from_millis(200);
            let report = self.report.clone();
            let recorder = Recorder { proxy: number, clusters: BTreeSet::new(), report };
            // Nothing is asked for later: the sender may go.
            let (_, commands) = mpsc::channel(1);
            self.proxies.push(tokio::spawn(client::run(options, session, recorder, commands)));
        }
    }

    /// Waits until every proxy of `near` saw an update of `ty` and then for silence; prints a row.
    async fn phase(
        &mut self,
        name: &str,
        since: Instant,
        ty: ResourceType,
        near: &[usize],
    ) -> anyhow::Result<()> {
        let cpu = self.cpu()?;
        let mut reached: BTreeMap<usize, Duration> = BTreeMap::new();
        let wanted: BTreeSet<usize> = near.iter().copied().collect();
        let (mut bytes, mut others) = (0, 0);
        let end = Instant::now() + PHASE_MAX;
        while Instant::now() < end {
            let done = reached.len() >= wanted.len();
            let patience = if done { QUIET } else { end - Instant::now() };
            match tokio::time::timeout(patience, self.seen.recv()).await {
                Ok(Some(seen)) if wanted.contains(&seen.proxy) => {
                    bytes += seen.bytes;
                    if seen.ty == ty {
                        reached
                            .entry(seen.proxy)
                            .or_insert(seen.at.saturating_duration_since(since));
                    }
                }
                Ok(Some(seen)) => others += seen.bytes,
                Ok(None) => bail!("no proxy is left"),
                Err(_) => break,
            }
        }
        let mut times: Vec<Duration> = reached.into_values().collect();
        times.sort_unstable();
        let at = |share: f64| {
            let index = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
            times
                .get(index)
                .map_or("–".into(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3))
        };
        println!(
            "| {name} | {} of {} | {} | {} | {} | {bytes} | {others} | {:.0} ms | {:.1} MB |",
            times.len(),
            wanted.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            (self.cpu()? - cpu).as_secs_f64() * 1e3,
            self.resident()? as f64 / 1e6,
        );
        Ok(())
    }

    /// User and system time of the control plane.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.control.0.id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    fn resident(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.control.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kilobytes.context("no VmRSS")? * 1024)
    }
}

/// A proxy that follows references and tells what came.
struct Recorder {
    proxy: usize,
    clusters: BTreeSet<Arc<str>>,
    report: mpsc::UnboundedSender<Seen>,
}

impl Subscriber for Recorder {
    fn on_update(&mut self, update: &Update, wants: &mut Wants) -> Result<(), Rejection> {
        if update.ty == ResourceType::Cluster {
            self.clusters.retain(|name| !update.removes.contains(name));
            let names = update.upserts.iter().map(|resource| &resource.name);
            self.clusters.extend(names.filter(|name| name.starts_with("outbound|")).cloned());
            wants.set(ResourceType::Endpoint, Wanted::Names(self.clusters.clone()));
        }
        let bytes = update.upserts.iter().map(|resource| resource.body.len()).sum();
        // The run is over when nobody listens.
        _ = self.report.send(Seen { proxy: self.proxy, at: Instant::now(), ty: update.ty, bytes });
        Ok(())
    }

    fn on_connection(&mut self, _: &Connection) {}
}
