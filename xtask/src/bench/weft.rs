//! Weft under measurement: a control plane on core 0 serving `bench/weft.yaml`, one proxy with one
//! worker on core 1, joined over real xDS.

use std::path::Path;

use super::pinned::Pinned;
use super::proxies::{free_port, render};

/// The proxy and the control plane that feeds it.
pub fn start(release: &Path, folder: &Path, ports: [u16; 3]) -> anyhow::Result<(Pinned, Pinned)> {
    let config = folder.join("weft");
    std::fs::create_dir_all(&config)?;
    std::fs::write(config.join("mesh.yaml"), render("weft.yaml", ports)?)?;
    let (xds, http) = (free_port()?, free_port()?);
    let control = [
        "control".into(),
        format!("--config-dir={}", config.display()),
        format!("--state-dir={}", folder.join("weft-state").display()),
        format!("--xds-address=127.0.0.1:{xds}"),
        "--xds-tls-address=127.0.0.1:0".into(),
        format!("--http-address=127.0.0.1:{http}"),
    ];
    let control =
        Pinned::start(0, &release.join("weft"), &control, &[], &folder.join("weft-control.log"))?;
    let proxy = [
        "sidecar".into(),
        format!("--xds=127.0.0.1:{xds}"),
        "--name=client".into(),
        "--namespace=default".into(),
        "--service-account=client".into(),
        "--ip=127.0.0.1".into(),
        "--labels=app=client".into(),
        "--interception=none".into(),
        "--admin-address=127.0.0.1:0".into(),
        "--concurrency=1".into(),
        "--log-level=warn".into(),
    ];
    let proxy =
        Pinned::start(1, &release.join("weft-proxy"), &proxy, &[], &folder.join("weft-proxy.log"))?;
    Ok((proxy, control))
}
