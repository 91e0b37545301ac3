//! Developer tasks, run as `cargo xtask TASK`.
//!
//! `test` provisions the real peers and runs every check; `tidy` holds the crate walls and lists
//! the longest files and functions; `bench` measures Weft beside its peers.

use clap::{Parser, Subcommand};

mod bench;
mod peers;
mod process;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Weft developer tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the peers, then run format, tidy, clippy and every test; ends with one summary.
    Test(test::TestArgs),
    /// Check the crate walls and documents; list the longest files and functions.
    Tidy,
    /// Measure what Weft costs; see docs/performance.md.
    Bench(Box<bench::BenchArgs>),
    /// The small programs of the benchmark.
    #[command(hide = true)]
    BenchHelper(bench::HelperArgs),
    /// Install the real peers (Envoy, gRPC) into the cache folder and print where they are.
    Peers,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Tidy => tidy::run(),
        Task::Bench(args) => bench::run(&args),
        Task::BenchHelper(args) => bench::run_helper(&args),
        Task::Peers => {
            let peers = peers::provision()?;
            println!("envoy  {}", peers.envoy.display());
            println!("python {}", peers.python.display());
            Ok(())
        }
    }
}
