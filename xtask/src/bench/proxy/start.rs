//! Where the programs are and how each proxy is started.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::config::{self, Backends, Ports};
use super::kind::Kind;
use super::row::Door;
use super::telemetry::Telemetry;
use super::weft;
use crate::bench::pinned::Pinned;
use crate::{peers, process};

/// The core of load generator and backend.
pub const LOAD_CORE: &str = "0";
/// The core of the proxy.
pub const PROXY_CORE: &str = "1";

/// Programs and folders.
pub struct Tools {
    /// This program, built with optimisation.
    pub helper: PathBuf,
    /// Where our own release programs are.
    release: PathBuf,
    envoy: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    nginx: Option<PathBuf>,
    folder: PathBuf,
}

/// A started proxy.
pub struct Proxy {
    kind: Kind,
    process: Pinned,
    /// What ends TLS, where that is a process of its own.
    gateway: Option<Pinned>,
    /// The second of two in a row.
    second: Option<Pinned>,
    /// The control plane, when there is one.
    _control: Option<Pinned>,
    ports: Ports,
}

/// The started backend.
pub struct Backend {
    pub ports: Backends,
    _process: Pinned,
}

/// What of a proxy is wanted; the rest is not started.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub doors: &'a [Door],
    /// Weft's workers; the others always have one.
    pub workers: u32,
    pub cores: &'a str,
    /// None: as it comes.
    pub telemetry: Option<Telemetry>,
}

impl<'a> Wanted<'a> {
    /// One worker on its own core.
    pub fn doors(doors: &'a [Door]) -> Self {
        Wanted { doors, workers: 1, cores: PROXY_CORE, telemetry: None }
    }

    pub fn has(&self, door: Door) -> bool {
        self.doors.contains(&door)
    }
}

impl Proxy {
    /// Where to send a door's load and the processes that bear it; `None` where it is not served.
    pub fn serving(&self, door: Door) -> Option<(u16, Vec<&Pinned>)> {
        let processes = match (door, &self.gateway) {
            _ if !serves(self.kind, door) => return None,
            (Door::TlsIn | Door::MtlsIn, Some(gateway)) => vec![gateway],
            (Door::Pair, _) => vec![&self.process, self.second.as_ref()?],
            _ => vec![&self.process],
        };
        let door = match self.kind {
            // The backend's own port takes all it can.
            Kind::Direct if door == Door::Grpc => {
                return Some((self.ports.backend.grpc, processes));
            }
            Kind::Direct => Door::Http1,
            _ => door,
        };
        Some((self.ports.of(door), processes))
    }
}

fn serves(kind: Kind, door: Door) -> bool {
    match kind {
        Kind::Direct => matches!(door, Door::Http1 | Door::Http2 | Door::Grpc),
        Kind::Relay => matches!(door, Door::Http1 | Door::Tcp | Door::Http2 | Door::Grpc),
        // nginx speaks HTTP/2 to a backend only as gRPC, from a client with HTTP/2.
        Kind::Nginx => door != Door::Http1To2,
        Kind::Weft | Kind::Envoy | Kind::EnvoyMesh | Kind::Haproxy => true,
    }
}

impl Tools {
    /// Finds the peers and builds our own programs, unless told not to.
    pub fn find(no_build: bool) -> anyhow::Result<Tools> {
        let folders = Folders::find(no_build)?;
        config::make_certificates(&folders.bench)?;
        let envoy = match std::env::var_os("WEFT_ENVOY") {
            Some(path) => PathBuf::from(path),
            None => peers::provision()?.envoy,
        };
        let sbin = |name: &str| {
            let places = [Path::new("/usr/sbin").join(name), Path::new("/usr/bin").join(name)];
            places.into_iter().find(|path| path.exists())
        };
        Ok(Tools {
            helper: folders.release.join("xtask"),
            envoy: envoy.exists().then_some(envoy),
            haproxy: sbin("haproxy"),
            nginx: sbin("nginx"),
            release: folders.release,
            folder: folders.bench,
        })
    }

    /// Where configurations, certificates and logs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Why a proxy cannot be measured here.
    pub fn missing(&self, kind: Kind) -> Option<&'static str> {
        match kind {
            Kind::Direct | Kind::Relay => None,
            Kind::Weft if self.release.join("weft-proxy").exists() => None,
            Kind::Weft => Some("no release build of weft"),
            Kind::Envoy | Kind::EnvoyMesh if self.envoy.is_some() => None,
            Kind::Envoy | Kind::EnvoyMesh => {
                Some("no Envoy: set WEFT_ENVOY or run `cargo xtask peers`")
            }
            Kind::Haproxy if self.haproxy.is_some() => None,
            Kind::Haproxy => Some("haproxy is not installed"),
            Kind::Nginx if self.nginx.is_some() => None,
            Kind::Nginx => Some("nginx is not installed"),
        }
    }

    /// Starts the backend on the load's core.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        let ports = Backends::choose()?;
        let mut process = self.start_backend(ports, "backend")?;
        process.ready(ports.plain, "bench.local")?;
        Ok(Backend { ports, _process: process })
    }

    fn start_backend(&self, ports: Backends, name: &str) -> anyhow::Result<Pinned> {
        let mut args = vec!["bench-helper".to_owned(), "backend".to_owned()];
        args.extend([ports.plain, ports.tls, ports.grpc].map(|port| port.to_string()));
        args.push(self.folder.display().to_string());
        self.pinned(LOAD_CORE, &self.helper, &args, name)
    }

    /// Starts a proxy on its core and waits until it forwards.
    pub fn start(
        &self,
        kind: Kind,
        backend: Backends,
        wanted: Wanted<'_>,
    ) -> anyhow::Result<Proxy> {
        let mut ports = Ports::choose(backend)?;
        let mut proxy = match kind {
            Kind::Direct => {
                // A second backend, with a process of its own to read CPU time from.
                let mine = Backends { plain: ports.of(Door::Http1), ..Backends::choose()? };
                ports.backend = mine;
                Proxy::alone(kind, self.start_backend(mine, "direct")?, ports)
            }
            Kind::Relay => Proxy::alone(kind, self.relay(&ports)?, ports),
            Kind::Weft => {
                let weft = weft::start(&self.release, &self.folder, &ports, wanted)?;
                Proxy {
                    kind,
                    process: weft.sidecar,
                    gateway: weft.gateway,
                    second: weft.second,
                    _control: Some(weft.control),
                    ports,
                }
            }
            Kind::Envoy | Kind::EnvoyMesh | Kind::Haproxy | Kind::Nginx => {
                let mut proxy =
                    Proxy::alone(kind, self.peer(kind, false, &ports, wanted.telemetry)?, ports);
                if wanted.has(Door::Pair) {
                    proxy.second = Some(self.peer(kind, true, &ports, wanted.telemetry)?);
                }
                proxy
            }
        };
        proxy.process.ready(ports.of(Door::Http1), Door::Http1.host())?;
        if wanted.has(Door::Pair) && proxy.second.is_some() {
            proxy.process.ready(ports.of(Door::Pair), Door::Pair.host())?;
        }
        Ok(proxy)
    }

    fn relay(&self, ports: &Ports) -> anyhow::Result<Pinned> {
        let mut args = vec!["bench-helper".to_owned(), "relay".to_owned()];
        let backend = ports.backend;
        let behind = |door| if door == Door::Grpc { backend.grpc } else { backend.plain };
        let doors = Door::ALL.into_iter().filter(|&door| serves(Kind::Relay, door));
        args.extend(doors.map(|door| format!("{}:{}", ports.of(door), behind(door))));
        self.pinned(PROXY_CORE, &self.helper, &args, "relay")
    }

    /// Envoy, haproxy or nginx; `second` is the one behind in a row of two.
    fn peer(
        &self,
        kind: Kind,
        second: bool,
        ports: &Ports,
        telemetry: Option<Telemetry>,
    ) -> anyhow::Result<Pinned> {
        let stem = if second { "-second" } else { "" };
        let name = format!("{kind:?}{stem}").to_lowercase();
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let folder = self.folder.as_path();
        let (program, args) = match kind {
            Kind::Envoy | Kind::EnvoyMesh => {
                let router = match kind {
                    Kind::EnvoyMesh => "envoy-router-mesh.yaml",
                    _ => "envoy-router.yaml",
                };
                let (file, as_name) = (format!("envoy{stem}.yaml"), format!("{name}.yaml"));
                let router = config::read(router)?;
                let router = telemetry.map_or_else(|| router.clone(), |all| all.envoy(&router));
                let config = config::write_envoy(&file, &router, &as_name, ports, folder)?;
                let base = ["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"];
                (&self.envoy, [words(&["-c", &config]), words(&base)].concat())
            }
            Kind::Haproxy => {
                let file = format!("haproxy{stem}.cfg");
                let config = config::write(&file, &file, ports, folder)?;
                (&self.haproxy, words(&["-db", "-f", &config]))
            }
            _ => {
                let file = format!("nginx{stem}.conf");
                let config = config::write(&file, &file, ports, folder)?;
                let prefix = folder.display().to_string();
                (&self.nginx, words(&["-p", &prefix, "-e", "stderr", "-c", &config]))
            }
        };
        let program = program.as_deref().with_context(|| format!("no {kind}"))?;
        self.pinned(PROXY_CORE, program, &args, &name)
    }

    fn pinned(
        &self,
        cores: &str,
        program: &Path,
        args: &[String],
        name: &str,
    ) -> anyhow::Result<Pinned> {
        Pinned::start(cores, program, args, &self.folder.join(format!("{name}.log")))
    }
}

impl Proxy {
    fn alone(kind: Kind, process: Pinned, ports: Ports) -> Self {
        Proxy { kind, process, gateway: None, second: None, _control: None, ports }
    }
}

/// Where release programs are built to and where the benchmark keeps its files.
pub struct Folders {
    pub release: PathBuf,
    pub bench: PathBuf,
}

impl Folders {
    /// Builds the release programs, unless told not to.
    pub fn find(no_build: bool) -> anyhow::Result<Folders> {
        let current = std::env::current_exe()?;
        let profile = current.parent().context("this program has no folder")?;
        let target = profile.parent().context("this program has no target folder")?;
        let release = target.join("release");
        if !no_build {
            let packages = ["xtask", "weft", "weft-proxy"].map(|name| format!("--package={name}"));
            process::run(process::cargo().args(["build", "--release"]).args(packages))?;
        }
        let helper = release.join("xtask");
        ensure!(helper.exists(), "{} is not built; leave out --no-build", helper.display());
        let bench = target.join("bench");
        std::fs::create_dir_all(&bench)?;
        Ok(Folders { release, bench })
    }
}
