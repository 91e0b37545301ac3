//! `cargo xtask bench`: what Weft costs. `proxy` measures the data plane beside its peers; without
//! a subcommand the same is meant.

mod helper;
mod pinned;
mod proxy;

use clap::{Args, Subcommand};

pub use helper::HelperArgs;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    proxy: proxy::ProxyArgs,
}

#[derive(Subcommand)]
enum Task {
    /// The data plane beside a raw relay, stock Envoy, haproxy and nginx (the default).
    Proxy(proxy::ProxyArgs),
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.task {
        None => proxy::run(&args.proxy),
        Some(Task::Proxy(args)) => proxy::run(args),
    }
}

/// Runs one of the small programs of the benchmark; started by [`run`].
pub fn run_helper(args: &HelperArgs) -> anyhow::Result<()> {
    helper::run(args)
}
