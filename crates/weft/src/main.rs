//! The `weft` command. Reads the command line, starts what it names, and turns any error into one
//! message on standard error and a non-zero exit.

mod analyze;
mod cli;
mod control;
mod demo;
mod hooks;
mod init;
mod inject;
mod install;
mod mesh;
mod proxy_status;
mod token;
mod vm;
mod why;

use anyhow::Context as _;
use clap::Parser as _;
use cli::{Cli, Command};
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: weft_proxy::Allocator = weft_proxy::Allocator;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args)?,
        Command::Control(args) => control::run(*args)?,
        Command::Proxy { args, exit_with_stdin } => {
            if exit_with_stdin {
                exit_with_stdin_closed();
            }
            weft_proxy::run(&args)?;
        }
        Command::Init(args) => init::run(&args)?,
        Command::Inject(args) => inject::run(&args)?,
        Command::Wait(args) => hooks::wait(&args)?,
        Command::Drain(args) => hooks::drain(&args)?,
        Command::Analyze(args) => return analyze::run(&args),
        Command::Why(args) => return why::run(&args),
        Command::ProxyStatus(args) => proxy_status::run(&args)?,
        Command::Graph(args) => mesh::graph(&args)?,
        Command::Top(args) => mesh::top(&args)?,
        Command::Logs(args) => mesh::logs(&args)?,
        Command::Install(args) => install::run(args)?,
        Command::Token(args) => token::run(&args)?,
        Command::Vm(args) => vm::run(&args)?,
        Command::Version => print(&format!("weft {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a result to standard output. A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("writing the result")
        }
        _ => Ok(()),
    }
}

/// An error and its causes, without those that its message already quotes.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Ends this process when standard input closes: its parent, who held the other end, is gone.
fn exit_with_stdin_closed() {
    std::thread::spawn(|| {
        // Whatever is written there is read away; only the end matters.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// Is cancelled at Ctrl-C, SIGTERM or a closed terminal.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}
