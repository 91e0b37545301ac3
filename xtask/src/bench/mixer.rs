//! `cargo xtask bench mixer`: a real control plane and reports of Mixer's clients, as many a second as
//! the seed article's 25 cores took. The clients are `weft-control`'s `mixer` benchmark.

use std::process::Command;

use clap::Args;

use super::instructions;
use super::proxy::Folders;
use crate::process;

#[derive(Args)]
pub struct MixerArgs {
    /// Reports a second, of one request each.
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Use the release binaries that are there; the benchmark's own is always built.
    #[arg(long)]
    no_build: bool,
}

pub fn run(args: &MixerArgs) -> anyhow::Result<()> {
    let folders = Folders::find(args.no_build)?;
    let clients = instructions::build("weft-control", "mixer")?;
    let mut command = Command::new(clients);
    command.arg(folders.release.join("weft"));
    process::run(command.args([args.rate, args.seconds].map(|number| number.to_string())))
}
