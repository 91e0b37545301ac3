//! Weft under measurement: a control plane on the load's core serving `bench/weft.yaml`, and on
//! the proxy's core the proxies that are wanted, joined over real xDS: a sidecar, a gateway that
//! ends TLS, and a second sidecar behind the first. Only one way through them has load at a time.

use std::path::Path;

use super::config::{self, Ports, free_port};
use super::row::Door;
use super::start::{LOAD_CORE, Wanted};
use crate::bench::pinned::Pinned;

/// The running parts.
pub struct Weft {
    pub sidecar: Pinned,
    pub gateway: Option<Pinned>,
    pub second: Option<Pinned>,
    pub control: Pinned,
}

/// Starts the programs of the folder `release`; configuration and logs go to `folder`.
pub fn start(
    release: &Path,
    folder: &Path,
    ports: &Ports,
    wanted: Wanted<'_>,
) -> anyhow::Result<Weft> {
    let config = folder.join("weft");
    std::fs::create_dir_all(&config)?;
    let mut text = config::read("weft.yaml")?;
    text.extend(wanted.telemetry.map(|telemetry| telemetry.weft()));
    let text = config::render(&text, ports, folder);
    std::fs::write(config.join("weft.yaml"), text)?;
    let (xds, state) = (free_port()?, folder.join("weft-state"));
    let control = [
        "control".into(),
        format!("--config-dir={}", config.display()),
        format!("--state-dir={}", state.display()),
        format!("--xds-address=127.0.0.1:{xds}"),
        "--xds-tls-address=127.0.0.1:0".into(),
        format!("--http-address=127.0.0.1:{}", free_port()?),
    ];
    let weft = release.join("weft");
    let mut control = Pinned::start(LOAD_CORE, &weft, &control, &folder.join("weft-control.log"))?;
    control.listening(xds)?;
    let proxy = |kind: &str, name: &str, ip: &str| {
        let token = folder.join(format!("{name}.token"));
        std::fs::write(&token, mint(&weft, &state, name)?)?;
        let args = [
            kind.into(),
            format!("--xds=127.0.0.1:{xds}"),
            format!("--name={name}"),
            "--namespace=default".into(),
            format!("--service-account={name}"),
            format!("--token-file={}", token.display()),
            format!("--ip={ip}"),
            format!("--labels=app={name}"),
            "--interception=none".into(),
            "--admin-address=127.0.0.1:0".into(),
            format!("--concurrency={}", wanted.workers),
            "--log-level=warn".into(),
            // All connections of the load come from one address.
            "--connections-per-source-max=100000".into(),
        ];
        let log = folder.join(format!("weft-{name}.log"));
        Pinned::start(wanted.cores, &release.join("weft-proxy"), &args, &log)
    };
    let sidecar = proxy("sidecar", "client", "127.0.0.1")?;
    let mut gateway = None;
    if wanted.has(Door::TlsIn) || wanted.has(Door::MtlsIn) {
        let mut started = proxy("gateway", "gateway", "127.0.0.1")?;
        started.listening(ports.of(Door::TlsIn))?;
        gateway = Some(started);
    }
    let second = match wanted.has(Door::Pair) {
        true => Some(proxy("sidecar", "app", "127.0.0.2")?),
        false => None,
    };
    Ok(Weft { sidecar, gateway, second, control })
}

/// A join token for the workload `name`.
fn mint(weft: &Path, state: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let output = std::process::Command::new(weft)
        .args(["token", "--namespace=default"])
        .arg(format!("--service-account={name}"))
        .arg(format!("--state-dir={}", state.display()))
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "weft token: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
