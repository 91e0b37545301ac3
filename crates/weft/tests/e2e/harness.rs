//! A mesh of one test: a folder of YAML, `weft control` on it, and proxies of either kind.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use serde_json::Value;
use weft_testkit::{
    client, envoy,
    envoy::{Envoy, Join},
    free_port,
    process::Process,
    wait,
};

/// The program under test.
pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// How long a program of ours may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A control plane on a folder of YAML.
pub struct Mesh {
    pub folder: tempfile::TempDir,
    pub xds: SocketAddr,
    pub http: SocketAddr,
    /// How `weft control` is told where resources come from.
    source: String,
    /// What else it is told.
    options: Vec<String>,
    config: PathBuf,
    control: Option<Process>,
}

/// Which proxy stands beside a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    Weft,
    Envoy,
}

/// A workload's place in the mesh.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub kind: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    pub service_account: &'a str,
    pub ip: IpAddr,
    pub labels: &'a [(&'a str, &'a str)],
}

/// What is special about one run of our proxy.
#[derive(Clone, Copy, Default)]
struct Run<'a> {
    admin: Option<SocketAddr>,
    extra: &'a [&'a str],
}

/// A running proxy of either kind.
pub enum Proxy {
    Weft { process: Process, admin: SocketAddr },
    Envoy(Envoy),
}

/// A loopback address that no other test of this process uses.
pub fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let process = std::process::id().to_le_bytes();
    let host = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::V4(Ipv4Addr::new(127, 80 + process[1] % 100, process[0], host))
}

impl Mesh {
    /// Starts a control plane on `yaml` (one file of many documents).
    pub async fn start(yaml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        std::fs::write(config.join("mesh.yaml"), yaml).expect("the folder is writable");
        Self::over(folder, config).await
    }

    /// Starts a control plane on a folder of YAML that is there already.
    pub async fn over(folder: tempfile::TempDir, config: PathBuf) -> Self {
        let source = format!("--config-dir={}", config.display());
        let mut mesh = Self::from(folder, source, &[], config);
        mesh.start_control().await;
        mesh
    }

    /// Starts a control plane on a Kubernetes API, with further options.
    pub async fn on(server: &weft_testkit::kube::Server, options: &[&str]) -> Self {
        let mut mesh = Self::alone(server, options);
        mesh.start_control().await;
        mesh
    }

    /// A mesh without a control plane of its own: others serve `xds`, with its `state` folder.
    pub fn alone(server: &weft_testkit::kube::Server, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = server.kubeconfig(folder.path());
        let source = format!("--kubeconfig={}", kubeconfig.display());
        Self::from(folder, source, options, kubeconfig)
    }

    fn from(folder: tempfile::TempDir, source: String, options: &[&str], config: PathBuf) -> Self {
        let loopback = Ipv4Addr::LOCALHOST;
        Self {
            folder,
            xds: (loopback, free_port()).into(),
            http: (loopback, free_port()).into(),
            source,
            options: options.iter().map(ToString::to_string).collect(),
            config,
            control: None,
        }
    }

    /// Writes (or replaces) a file of the watched folder.
    pub fn write(&self, name: &str, yaml: &str) {
        std::fs::write(self.config.join(name), yaml).expect("the folder is writable");
    }

    /// The text of `NAME.yaml` in the watched folder.
    pub fn written(&self, name: &str) -> String {
        let path = self.config.join(format!("{name}.yaml"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Keeps the control plane's keys.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub async fn start_control(&mut self) {
        let state = self.state();
        let mut args = vec![
            "control".to_owned(),
            self.source.clone(),
            format!("--state-dir={}", state.display()),
            format!("--xds-address={}", self.xds),
            "--xds-tls-address=127.0.0.1:0".to_owned(),
            // Machines that leave are to be gone soon.
            "--registration-grace=1s".to_owned(),
            format!("--http-address={}", self.http),
        ];
        args.extend(self.options.iter().cloned());
        let mut control = Process::start("control", self.folder.path(), Path::new(WEFT), &args);
        let http = self.http;
        wait::until("the control plane to be ready", START_LIMIT, || {
            assert!(control.ended().is_none(), "weft control ended: {}", control.output());
            async move {
                let reply = client::get(http, "/ready", &[]).await.ok()?;
                (reply.status == 200).then_some(())
            }
        })
        .await;
        self.control = Some(control);
    }

    /// Kills the control plane at once.
    pub fn kill_control(&mut self) {
        self.control.take();
    }

    /// What the control plane printed.
    pub fn control_output(&self) -> String {
        self.control.as_ref().map(Process::output).unwrap_or_default()
    }

    /// A join token for an identity, minted as an operator would.
    pub fn token(&self, namespace: &str, service_account: &str) -> String {
        let output = Command::new(WEFT)
            .args(["token", "--namespace", namespace, "--service-account", service_account])
            .arg(format!("--state-dir={}", self.state().display()))
            .output()
            .expect("weft starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a proxy and waits until it is ready.
    pub async fn proxy(&self, flavor: Flavor, place: &Place<'_>) -> Proxy {
        let proxy = self.start_proxy(flavor, place);
        proxy.ready().await;
        proxy
    }

    /// Starts our proxy with further options and waits until it is ready.
    pub async fn proxy_with(&self, place: &Place<'_>, extra: &[&str]) -> Proxy {
        let token = self.token(place.namespace, place.service_account);
        let proxy = self.weft(place, &token, Run { admin: None, extra });
        proxy.ready().await;
        proxy
    }

    /// Starts a proxy and does not wait.
    pub fn start_proxy(&self, flavor: Flavor, place: &Place<'_>) -> Proxy {
        let token = self.token(place.namespace, place.service_account);
        match flavor {
            Flavor::Weft => self.weft(place, &token, Run::default()),
            Flavor::Envoy => Proxy::Envoy(self.envoy(place, &token, true)),
        }
    }

    /// Starts our proxy with further arguments and does not wait.
    pub fn start_with(&self, place: &Place<'_>, extra: &[&str]) -> Proxy {
        let token = self.token(place.namespace, place.service_account);
        self.weft(place, &token, Run { admin: None, extra })
    }

    /// Starts our proxy again with what an earlier run of it left in its folder.
    pub fn start_restarted(&self, place: &Place<'_>) -> Proxy {
        let token = std::fs::read_to_string(self.token_file(place)).expect("it ran before");
        self.weft(place, &token, Run::default())
    }

    /// Starts a further run of our proxy beside the one that is there, on its admin address and
    /// with its folder: the newer binary of a hand-over.
    pub fn start_upgrade(&self, place: &Place<'_>, admin: SocketAddr, extra: &[&str]) -> Process {
        let token = std::fs::read_to_string(self.token_file(place)).expect("it ran before");
        match self.weft(place, &token, Run { admin: Some(admin), extra }) {
            Proxy::Weft { process, .. } => process,
            Proxy::Envoy(_) => unreachable!("ours was asked for"),
        }
    }

    fn token_file(&self, place: &Place<'_>) -> PathBuf {
        self.folder.path().join(format!("{}.token", place.name))
    }

    fn weft(&self, place: &Place<'_>, token: &str, run: Run<'_>) -> Proxy {
        let own = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let admin = run.admin.unwrap_or_else(own);
        let token_file = self.token_file(place);
        std::fs::write(&token_file, token).expect("the folder is writable");
        let labels: Vec<String> =
            place.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let kind = if place.kind == "router" { "gateway" } else { "sidecar" };
        let mut args = vec![
            "proxy".to_owned(),
            kind.to_owned(),
            format!("--xds={}", self.xds),
            format!("--name={}", place.name),
            format!("--namespace={}", place.namespace),
            format!("--service-account={}", place.service_account),
            format!("--ip={}", place.ip),
            format!("--labels={}", labels.join(",")),
            "--interception=none".to_owned(),
            format!("--token-file={}", token_file.display()),
            format!("--state-dir={}", self.folder.path().join(place.name).display()),
            format!("--admin-address={admin}"),
            "--concurrency=1".to_owned(),
        ];
        for arg in run.extra {
            // What is said again replaces what was said.
            let option = arg.split_inclusive('=').next().unwrap_or(arg);
            args.retain(|one| !one.starts_with(option));
            args.push((*arg).to_owned());
        }
        // Measurements are worth reading of a release build only, and the test need not be one.
        let binary = std::env::var("WEFT_BINARY").unwrap_or_else(|_| WEFT.to_owned());
        let process = Process::start(place.name, self.folder.path(), Path::new(&binary), &args);
        Proxy::Weft { process, admin }
    }

    /// Starts a stock Envoy, with delta xDS or state of the world.
    pub fn envoy(&self, place: &Place<'_>, token: &str, delta: bool) -> Envoy {
        let binary = weft_testkit::peer::envoy("envoy").expect("the test has asked for it before");
        let ip = place.ip.to_string();
        let join = Join {
            kind: place.kind,
            name: place.name,
            namespace: place.namespace,
            service_account: place.service_account,
            ip: &ip,
            labels: place.labels,
            interception: "NONE",
            xds: self.xds,
            token: Some(token),
            delta,
        };
        envoy::Envoy::start(&binary, self.folder.path(), &join)
    }

    /// The control plane's view of every proxy: what was sent and acknowledged.
    pub async fn syncz(&self) -> Value {
        client::get(self.http, "/debug/syncz", &[]).await.map(|r| r.json()).unwrap_or_default()
    }
}

impl Proxy {
    pub fn admin(&self) -> SocketAddr {
        match self {
            Self::Weft { admin, .. } => *admin,
            Self::Envoy(envoy) => envoy.admin,
        }
    }

    pub fn process(&mut self) -> &mut Process {
        match self {
            Self::Weft { process, .. } => process,
            Self::Envoy(envoy) => &mut envoy.process,
        }
    }

    pub async fn ready(&self) {
        let admin = self.admin();
        wait::until("the proxy to be ready", START_LIMIT, || async move {
            let reply = client::get(admin, "/ready", &[]).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
    }
}
