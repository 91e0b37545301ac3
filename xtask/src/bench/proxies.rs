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
    pub process: Pinned,
    http1: u16,
    http2: u16,
    /// The control plane, when there is one.
    _control: Option<Pinned>,
}

/// The started backend.
pub struct Backend {
    pub port: u16,
    _process: Pinned,
}

impl Proxy {
    /// Where to send a load.
    pub fn port_for(&self, load: Load) -> u16 {
        match load {
            Load::Http1 { .. } => self.http1,
            Load::Http2 { .. } => self.http2,
        }
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
        let log = self.folder.join("backend.log");
        let mut process = Pinned::start(0, &self.helper, &args, &[], &log)?;
        process.ready(port)?;
        Ok(Backend { port, _process: process })
    }

    /// Starts a proxy on core 1 and waits until it forwards.
    pub fn start(&self, kind: Kind, backend: u16) -> anyhow::Result<Proxy> {
        let (http1, http2) = (free_port()?, free_port()?);
        let ports = [http1, http2, backend];
        let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (mut process, control) = match kind {
            Kind::Direct => {
                // A second backend: its own ports and a process to read CPU time from.
                let args = text(&["bench-helper", "backend", &http1.to_string()]);
                (self.pinned(0, &self.helper, &args, "direct")?, None)
            }
            Kind::Relay => {
                let args =
                    text(&["bench-helper", "relay", &http1.to_string(), &backend.to_string()]);
                (self.pinned(1, &self.helper, &args, "relay")?, None)
            }
            Kind::Weft => {
                let (proxy, control) = weft::start(&self.release, &self.folder, ports)?;
                (proxy, Some(control))
            }
            Kind::Envoy => (self.envoy("envoy.yaml", ports)?, None),
            Kind::EnvoyMesh => (self.envoy("envoy-mesh.yaml", ports)?, None),
            Kind::Haproxy => {
                let config = self.config("haproxy.cfg", ports)?;
                let program = self.haproxy.as_deref().context("haproxy is not installed")?;
                (self.pinned(1, program, &text(&["-db", "-f", &config]), "haproxy")?, None)
            }
        };
        process.ready(http1)?;
        let http2 = match kind {
            Kind::Direct | Kind::Relay => http1,
            Kind::Weft | Kind::Envoy | Kind::EnvoyMesh | Kind::Haproxy => http2,
        };
        Ok(Proxy { process, http1, http2, _control: control })
    }

    fn envoy(&self, file: &str, ports: [u16; 3]) -> anyhow::Result<Pinned> {
        let config = self.config(file, ports)?;
        let program = self.envoy.as_deref().context("no Envoy")?;
        let args = ["-c", &config, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"];
        self.pinned(1, program, &args.map(str::to_owned), "envoy")
    }

    fn pinned(
        &self,
        core: u32,
        program: &Path,
        args: &[String],
        name: &str,
    ) -> anyhow::Result<Pinned> {
        Pinned::start(core, program, args, &[], &self.folder.join(format!("{name}.log")))
    }

    /// A configuration of `bench/` with its ports, as a file.
    fn config(&self, file: &str, ports: [u16; 3]) -> anyhow::Result<String> {
        let path = self.folder.join(file);
        std::fs::write(&path, render(file, ports)?)?;
        Ok(path.display().to_string())
    }
}

/// A configuration of `bench/` with its ports.
pub fn render(file: &str, [http1, http2, backend]: [u16; 3]) -> anyhow::Result<String> {
    let path = process::root().join("bench").join(file);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text
        .replace("@HTTP1@", &http1.to_string())
        .replace("@HTTP2@", &http2.to_string())
        .replace("@BACKEND@", &backend.to_string()))
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
