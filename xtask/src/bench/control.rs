//! `cargo xtask bench control`: a real control plane with many services and many connected
//! proxies. The proxies are clients in one process, `weft-control`'s `scale` benchmark.

use std::process::Command;

use clap::Args;

use super::instructions;
use super::proxy::Folders;
use crate::process;

#[derive(Args)]
pub struct ControlArgs {
    /// Services; several sizes run one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    services: Vec<u32>,
    /// Ready Pods of each service.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Connected proxies.
    #[arg(long, default_value_t = 1000)]
    proxies: u32,
    /// Namespaces; services and proxies are spread over them, and a proxy sees its own.
    #[arg(long, default_value_t = 10)]
    namespaces: u32,
    /// Use the release binaries that are there; the benchmark's own is always built.
    #[arg(long)]
    no_build: bool,
}

/// No size takes longer; a control plane that stands still must not hold up the run.
const SECONDS_MAX: &str = "900";

pub fn run(args: &ControlArgs) -> anyhow::Result<()> {
    let folders = Folders::find(args.no_build)?;
    let swarm = instructions::build("weft-control", "scale")?;
    for services in &args.services {
        let sizes = [*services, args.endpoints, args.proxies, args.namespaces.max(1)];
        let mut command = Command::new("timeout");
        command.arg(SECONDS_MAX).arg(&swarm).arg(folders.release.join("weft"));
        process::run(command.args(sizes.map(|size| size.to_string())))?;
        println!();
    }
    Ok(())
}
