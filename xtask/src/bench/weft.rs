//! Weft under measurement: a control plane on core 0 serving `bench/weft.yaml`, and on core 1 a
//! sidecar and a gateway with one worker each, joined over real xDS. Only one of them has load.

use std::path::Path;

use super::pinned::Pinned;
use super::proxies::{Ports, free_port, render};

/// The running parts.
pub struct Weft {
    pub sidecar: Pinned,
    pub gateway: Pinned,
    pub control: Pinned,
}

/// Starts the programs of the folder `release`; configuration and logs go to `folder`.
pub fn start(release: &Path, folder: &Path, ports: Ports) -> anyhow::Result<Weft> {
    let config = folder.join("weft");
    std::fs::create_dir_all(&config)?;
    for file in ["weft.yaml", "weft-gateway.yaml"] {
        std::fs::write(config.join(file), render(file, ports, folder)?)?;
    }
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
    let mut control = Pinned::start(0, &weft, &control, &folder.join("weft-control.log"))?;
    control.listening(xds)?;
    let proxy = |kind: &str, name: &str| {
        // Gateway credentials go only to proxies that prove who they are.
        let token = folder.join(format!("{name}.token"));
        std::fs::write(&token, mint(&weft, &state, name)?)?;
        let args = [
            kind.into(),
            format!("--xds=127.0.0.1:{xds}"),
            format!("--name={name}"),
            "--namespace=default".into(),
            format!("--service-account={name}"),
            format!("--token-file={}", token.display()),
            "--ip=127.0.0.1".into(),
            format!("--labels=app={name}"),
            "--interception=none".into(),
            "--admin-address=127.0.0.1:0".into(),
            "--concurrency=1".into(),
            "--log-level=warn".into(),
        ];
        let log = folder.join(format!("weft-{kind}.log"));
        Pinned::start(1, &release.join("weft-proxy"), &args, &log)
    };
    let sidecar = proxy("sidecar", "client")?;
    let mut gateway = proxy("gateway", "gateway")?;
    gateway.listening(ports.https)?;
    Ok(Weft { sidecar, gateway, control })
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
