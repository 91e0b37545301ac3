//! The proxies that are measured: where their programs are and how each is started.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

use super::load::Load;
use super::pinned::Pinned;
use super::weft;
use crate::{peers, process};

/// A proxy under measurement, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The backend itself.
    Direct,
    /// Bytes in, bytes out: the floor for anything that must read and write.
    Relay,
    Weft,
    /// Stock Envoy as a bare router.
    Envoy,
    /// Stock Envoy doing what a sidecar does.
    EnvoyMesh,
    Haproxy,
}

impl Kind {
    /// The last of the order.
    pub const LAST: Kind = Kind::Haproxy;
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Direct => "direct",
            Kind::Relay => "raw relay",
            Kind::Weft => "Weft",
            Kind::Envoy => "Envoy",
            Kind::EnvoyMesh => "Envoy, sidecar work",
            Kind::Haproxy => "haproxy",
        })
    }
}

/// Programs and folders.
pub struct Tools {
    /// This program, built with optimisation.
    pub helper: PathBuf,
    /// Where our own release programs are.
    release: PathBuf,
    envoy: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    folder: PathBuf,
}

/// A started proxy.
pub struct Proxy {
    process: Pinned,
    /// What ends TLS, where that is a process of its own.
    gateway: Option<Pinned>,
    /// The control plane, when there is one.
    _control: Option<Pinned>,
    ports: Ports,
}

/// Where everything listens.
#[derive(Clone, Copy)]
pub struct Ports {
    pub http1: u16,
    pub http2: u16,
    /// 0: not served.
    pub https: u16,
    pub backend: u16,
}

/// The started backend.
pub struct Backend {
    pub port: u16,
    _process: Pinned,
}

impl Proxy {
    fn alone(process: Pinned, ports: Ports) -> Self {
        Proxy { process, gateway: None, _control: None, ports }
    }

    /// Where to send a load and the process that bears it; `None` where it is not served.
    pub fn serving(&self, load: Load) -> Option<(u16, &Pinned)> {
        match load {
            Load::Http1 { .. } => Some((self.ports.http1, &self.process)),
            Load::Http2 { .. } => Some((self.ports.http2, &self.process)),
            Load::Https { .. } if self.ports.https == 0 => None,
            Load::Https { .. } => {
                Some((self.ports.https, self.gateway.as_ref().unwrap_or(&self.process)))
            }
        }
    }

    /// Where plain HTTP/1 is served, by the main process.
    pub fn http1(&self) -> (u16, &Pinned) {
        (self.ports.http1, &self.process)
    }
}

impl Tools {
    /// Finds the peers and builds our own programs, unless told not to.
    pub fn find(no_build: bool) -> anyhow::Result<Tools> {
        let current = std::env::current_exe()?;
        let profile = current.parent().context("this program has no folder")?;
        let release =
            profile.parent().context("this program has no target folder")?.join("release");
        if !no_build {
            let packages = ["xtask", "weft", "weft-proxy"].map(|name| format!("--package={name}"));
            process::run(process::cargo().args(["build", "--release"]).args(packages))?;
        }
        let helper = release.join("xtask");
        ensure!(helper.exists(), "{} is not built; leave out --no-build", helper.display());
        let folder = profile.parent().context("no target folder")?.join("bench");
        std::fs::create_dir_all(&folder)?;
        make_certificate(&folder)?;
        let envoy = match std::env::var_os("WEFT_ENVOY") {
            Some(path) => PathBuf::from(path),
            None => peers::provision()?.envoy,
        };
        let haproxy = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].map(PathBuf::from);
        Ok(Tools {
            helper,
            envoy: envoy.exists().then_some(envoy),
            haproxy: haproxy.into_iter().find(|path| path.exists()),
            release,
            folder,
        })
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
        }
    }

    /// Starts the backend on core 0.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        let port = free_port()?;
        let args = ["bench-helper".into(), "backend".into(), port.to_string()];
        let mut process = self.helper(0, &args)?;
        process.ready(port)?;
        Ok(Backend { port, _process: process })
    }

    /// Starts a proxy on core 1 and waits until it forwards.
    pub fn start(&self, kind: Kind, backend: u16) -> anyhow::Result<Proxy> {
        let mut ports =
            Ports { http1: free_port()?, http2: free_port()?, https: free_port()?, backend };
        let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut proxy = match kind {
            Kind::Direct | Kind::Relay => {
                (ports.http2, ports.https) = (ports.http1, 0);
                let (http1, to) = (ports.http1.to_string(), backend.to_string());
                // Direct is a second backend, with a process of its own to read CPU time from.
                let process = match kind {
                    Kind::Direct => self.helper(0, &text(&["bench-helper", "backend", &http1])),
                    _ => self.helper(1, &text(&["bench-helper", "relay", &http1, &to])),
                }?;
                Proxy::alone(process, ports)
            }
            Kind::Weft => {
                let weft = weft::start(&self.release, &self.folder, ports)?;
                Proxy {
                    process: weft.sidecar,
                    gateway: Some(weft.gateway),
                    _control: Some(weft.control),
                    ports,
                }
            }
            Kind::Envoy => Proxy::alone(self.envoy("envoy.yaml", ports)?, ports),
            Kind::EnvoyMesh => Proxy::alone(self.envoy("envoy-mesh.yaml", ports)?, ports),
            Kind::Haproxy => {
                let config = self.config("haproxy.cfg", ports)?;
                let program = self.haproxy.as_deref().context("haproxy is not installed")?;
                let args = text(&["-db", "-f", &config]);
                Proxy::alone(self.pinned(program, &args, "haproxy")?, ports)
            }
        };
        proxy.process.ready(ports.http1)?;
        Ok(proxy)
    }

    fn envoy(&self, file: &str, ports: Ports) -> anyhow::Result<Pinned> {
        let config = self.config(file, ports)?;
        let program = self.envoy.as_deref().context("no Envoy")?;
        let args = ["-c", &config, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"];
        self.pinned(program, &args.map(str::to_owned), "envoy")
    }

    fn pinned(&self, program: &Path, args: &[String], name: &str) -> anyhow::Result<Pinned> {
        Pinned::start(1, program, args, &self.folder.join(format!("{name}.log")))
    }

    fn helper(&self, core: u32, args: &[String]) -> anyhow::Result<Pinned> {
        Pinned::start(core, &self.helper, args, &self.folder.join("helper.log"))
    }

    /// A configuration of `bench/`, filled in, as a file.
    fn config(&self, file: &str, ports: Ports) -> anyhow::Result<String> {
        let path = self.folder.join(file);
        std::fs::write(&path, render(file, ports, &self.folder)?)?;
        Ok(path.display().to_string())
    }
}

/// A configuration of `bench/` with its ports and certificate filled in.
pub fn render(file: &str, ports: Ports, folder: &Path) -> anyhow::Result<String> {
    let path = process::root().join("bench").join(file);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let certificate = |name: &str| folder.join(name).display().to_string();
    let base64 = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    Ok(text
        .replace("@HTTP1@", &ports.http1.to_string())
        .replace("@HTTP2@", &ports.http2.to_string())
        .replace("@HTTPS@", &ports.https.to_string())
        .replace("@BACKEND@", &ports.backend.to_string())
        .replace("@CERT@", &certificate("cert.pem"))
        .replace("@KEY@", &certificate("key.pem"))
        .replace("@PEM@", &certificate("both.pem"))
        .replace("@CERT_BASE64@", base64("cert.base64").trim())
        .replace("@KEY_BASE64@", base64("key.base64").trim()))
}

/// A self-signed P-256 certificate in the forms the configurations want.
fn make_certificate(folder: &Path) -> anyhow::Result<()> {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -keyout key.pem -out cert.pem -days 30 -subj /CN=bench.local \
        -addext subjectAltName=DNS:bench.local 2>openssl.log \
        && cat cert.pem key.pem > both.pem \
        && base64 -w0 cert.pem > cert.base64 && base64 -w0 key.pem > key.base64";
    let mut shell = std::process::Command::new("sh");
    process::run(shell.current_dir(folder).args(["-c", script]))
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
