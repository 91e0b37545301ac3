//! The small programs of the benchmark, started as processes of their own: the backend, the raw
//! relay, a holder of idle connections and an open-loop client.

mod backend;
mod hold;
mod rate;
mod relay;

use clap::{Args, Subcommand};

/// Which one to run.
#[derive(Args)]
pub struct HelperArgs {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers `GET /N` with N bytes, over HTTP/1.1 and HTTP/2.
    Backend { port: u16 },
    /// Copies bytes between its port and the backend.
    Relay { port: u16, backend: u16 },
    /// Opens connections, sends one request on each, holds them until its input ends.
    Hold { port: u16, connections: usize },
    /// Sends requests at a fixed rate; prints p50 and p99 in µs.
    Rate { port: u16, per_second: u32 },
}

pub fn run(args: &HelperArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match args.program {
        Program::Backend { port } => local.block_on(&runtime, backend::serve(port)),
        Program::Relay { port, backend } => local.block_on(&runtime, relay::serve(port, backend)),
        Program::Hold { port, connections } => hold::hold(port, connections),
        Program::Rate { port, per_second } => {
            local.block_on(&runtime, rate::measure(port, per_second))
        }
    }
}
