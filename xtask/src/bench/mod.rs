//! `cargo xtask bench`: what Weft costs. `proxy` measures the data plane beside its peers; without
//! a subcommand the same is meant. `telemetry` tells what metrics, traces and logs cost,
//! `instructions` counts single operations of the request path; `demo` measures a start, `control` the
//! control plane with many proxies, `mixer` what reports of old proxies cost it.

mod control;
mod demo;
mod helper;
mod instructions;
mod mixer;
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
    Proxy(Box<proxy::ProxyArgs>),
    /// What metrics, traces and access logs cost a request.
    Telemetry(proxy::TelemetryArgs),
    /// The control plane with many services and connected proxies.
    Control(control::ControlArgs),
    /// The control plane taking reports of Istio's proxies up to 1.4.
    Mixer(mixer::MixerArgs),
    /// Seconds until the demo's gateway answers, and memory of its proxies.
    Demo(demo::DemoArgs),
    /// Instructions of single operations of the request path, beside the recorded ones.
    Instructions(instructions::InstructionsArgs),
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.task {
        None => proxy::run(&args.proxy),
        Some(Task::Proxy(args)) => proxy::run(args),
        Some(Task::Telemetry(args)) => proxy::run_telemetry(args),
        Some(Task::Control(args)) => control::run(args),
        Some(Task::Mixer(args)) => mixer::run(args),
        Some(Task::Demo(args)) => demo::run(args),
        Some(Task::Instructions(args)) => instructions::run(args),
    }
}

/// Runs one of the small programs of the benchmark; started by [`run`].
pub fn run_helper(args: &HelperArgs) -> anyhow::Result<()> {
    helper::run(args)
}
