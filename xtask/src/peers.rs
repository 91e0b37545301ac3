//! The real peers that tests run against, installed into a cache folder.
//!
//! Stock Envoy and grpc's Python xDS client come as packages of the Python registry, pinned in
//! `xtask/peers.txt`; tools of the distribution are installed with apt when we are root.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process::{root, run, succeeds};

/// Debian packages the cache folder needs: (package, a program it brings).
const DEBIAN: &[(&str, &str)] = &[("python3-venv", "python3")];
/// Debian packages that are peers themselves.
const DEBIAN_PEERS: &[(&str, &str)] = &[
    ("haproxy", "haproxy"),
    ("nginx-light", "nginx"),
    ("curl", "curl"),
    ("nghttp2-client", "h2load"),
    ("prometheus", "promtool"),
];

/// Where the peers are.
pub struct Peers {
    pub envoy: PathBuf,
    pub python: PathBuf,
}

/// Installs what is missing. `WEFT_CACHE` names the cache folder (default `target/peers`).
pub fn provision() -> anyhow::Result<Peers> {
    debian(DEBIAN_PEERS)?;
    let cache =
        std::env::var_os("WEFT_CACHE").map_or_else(|| root().join("target/peers"), PathBuf::from);
    let venv = cache.join("python");
    let peers = Peers { envoy: venv.join("bin/envoy"), python: venv.join("bin/python") };
    let pins = root().join("xtask/peers.txt");
    let wanted = std::fs::read_to_string(&pins).context("cannot read xtask/peers.txt")?;
    let stamp = cache.join("installed.txt");
    let installed = std::fs::read_to_string(&stamp).unwrap_or_default();
    if installed == wanted && works(&peers) {
        return Ok(peers);
    }
    install_venv(&venv)?;
    run(Command::new(venv.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&pins))
    .context("cannot install the peers; `cargo test` runs without them and says what it skipped")?;
    anyhow::ensure!(works(&peers), "{} does not run here", peers.envoy.display());
    std::fs::write(&stamp, wanted).context("cannot write the peers' stamp")?;
    Ok(peers)
}

/// Installs those of `packages` (package, program or file it brings) that are missing; needs root
/// and apt.
pub fn debian(packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, brought)| match brought.starts_with('/') {
            true => !Path::new(brought).exists(),
            false => !succeeds(Command::new("which").arg(brought)),
        })
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing)
}

fn apt_install(packages: &[&str]) -> anyhow::Result<()> {
    let root_user = succeeds(Command::new("test").args(["-w", "/var/lib/dpkg"]));
    anyhow::ensure!(
        root_user,
        "missing Debian packages: {}; install them, or run as root",
        packages.join(" ")
    );
    let mut update = Command::new("apt-get");
    run(update.args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    run(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

fn install_venv(venv: &Path) -> anyhow::Result<()> {
    debian(DEBIAN)?;
    let mut create = Command::new("python3");
    create.args(["-m", "venv", "--clear"]).arg(venv);
    if !succeeds(&mut create) {
        // Debian's python3 comes without ensurepip until python3-venv is there.
        apt_install(&["python3-venv"])?;
        run(&mut create)?;
    }
    Ok(())
}

fn works(peers: &Peers) -> bool {
    succeeds(Command::new(&peers.envoy).arg("--version"))
        && succeeds(Command::new(&peers.python).args(["-c", "import grpc"]))
}
