//! `weft-proxy`: the data plane alone, for sidecar images. The same as `weft proxy`.

use clap::Parser;
use weft_proxy::cli::ProxyArgs;

#[global_allocator]
static ALLOCATOR: weft_proxy::Allocator = weft_proxy::Allocator;

#[derive(Parser)]
#[command(name = "weft-proxy", version, about = "Weft's data plane: sidecar or gateway")]
struct Cli {
    #[command(flatten)]
    proxy: ProxyArgs,
}

fn main() -> std::process::ExitCode {
    match weft_proxy::run(&Cli::parse().proxy) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
