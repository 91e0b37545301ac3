//! The small programs of the benchmark, started as processes of their own: the backend, the raw
//! relay, clients that hold connections and the clients for what wrk and h2load cannot do.

mod backend;
mod fair;
mod grpc;
mod hold;
mod load_mtls;
mod rate;
mod relay;
mod tls;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use hold::Held;

/// Which one to run.
#[derive(Args)]
pub struct HelperArgs {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers `GET /N` with N bytes, over HTTP/1.1 and HTTP/2; the same behind mutual TLS with
    /// the certificates of `folder` on its second port, and a gRPC echo on its third.
    Backend { port: u16, tls: u16, grpc: u16, folder: PathBuf },
    /// Copies bytes between each of its ports and the port behind it.
    Relay {
        /// `PORT:BACKEND`.
        #[arg(value_parser = pair)]
        ports: Vec<(u16, u16)>,
    },
    /// Opens connections, sends one request on each, holds them until its input ends.
    Hold { what: Held, port: u16, count: usize, folder: PathBuf },
    /// Sends requests at a fixed rate; prints p50 and p99 in µs.
    Rate { port: u16, host: String, per_second: u32, seconds: u32 },
    /// HTTP/1 over mutual TLS, closed loop; prints requests, p50 and p99 in µs.
    LoadMtls { folder: PathBuf, port: u16, connections: u32, bytes: usize, seconds: u32 },
    /// Messages on open gRPC streams, closed loop; prints messages, p50 and p99 in µs.
    GrpcLoad { port: u16, host: String, connections: u32, streams: u32, bytes: usize, seconds: u32 },
    /// Small calls on an HTTP/2 connection, alone and beside a download; prints p50 and p99 in µs
    /// of both.
    Fair { port: u16, host: String, seconds: u32 },
}

fn pair(text: &str) -> anyhow::Result<(u16, u16)> {
    let (port, backend) = text.split_once(':').ok_or(anyhow::anyhow!("PORT:BACKEND"))?;
    Ok((port.parse()?, backend.parse()?))
}

pub fn run(args: &HelperArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match &args.program {
        &Program::Backend { port, tls, grpc, ref folder } => {
            local.block_on(&runtime, backend::serve(port, tls, grpc, folder))
        }
        Program::Relay { ports } => local.block_on(&runtime, relay::serve(ports)),
        &Program::Hold { what, port, count, ref folder } => hold::hold(what, port, count, folder),
        &Program::Rate { port, ref host, per_second, seconds } => {
            local.block_on(&runtime, rate::measure(port, host, per_second, seconds))
        }
        &Program::LoadMtls { ref folder, port, connections, bytes, seconds } => {
            let load = load_mtls::measure(folder, port, connections, bytes, seconds);
            local.block_on(&runtime, load)
        }
        &Program::GrpcLoad { port, ref host, connections, streams, bytes, seconds } => {
            let load = grpc::Load { connections, streams, bytes, seconds };
            local.block_on(&runtime, grpc::measure(port, host, load))
        }
        &Program::Fair { port, ref host, seconds } => {
            local.block_on(&runtime, fair::measure(port, host, seconds))
        }
    }
}

/// `count p50 p99`, in µs, sorted here; what every closed-loop client prints.
fn print_latencies(mut latencies: Vec<std::time::Duration>) -> anyhow::Result<()> {
    let (p50, p99) = percentiles(&mut latencies)?;
    println!("{} {p50:.0} {p99:.0}", latencies.len());
    Ok(())
}

/// Median and 99th percentile in µs.
fn percentiles(latencies: &mut [std::time::Duration]) -> anyhow::Result<(f64, f64)> {
    anyhow::ensure!(!latencies.is_empty(), "no request was answered");
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize].as_secs_f64() * 1e6;
    Ok((at(0.5), at(0.99)))
}
