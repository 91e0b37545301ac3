//! Memory of a proxy: at start, per idle connection after one request on each, and after they
//! have closed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::proxies::{Proxy, Tools};

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub at_start: u64,
    pub per_connection: f64,
    pub after_close: u64,
}

/// Time for a proxy to return buffers after traffic stops.
const SETTLE: Duration = Duration::from_secs(3);

pub fn measure(tools: &Tools, proxy: &Proxy, connections: usize) -> anyhow::Result<Memory> {
    let (port, process) = proxy.http1();
    let at_start = process.resident()?;
    let mut holder = Command::new("taskset")
        .args(["-c", "0", "sh", "-c", r#"ulimit -n "$(ulimit -Hn)"; exec "$@""#, "sh"])
        .arg(&tools.helper)
        .args(["bench-helper", "hold", &port.to_string()])
        .arg(connections.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the holder of idle connections")?;
    let mut line = String::new();
    let stdout = holder.stdout.take().context("the holder has no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "held", "the holder of idle connections failed");
    std::thread::sleep(SETTLE);
    let held = process.resident()?;
    drop(holder.stdin.take());
    holder.wait()?;
    std::thread::sleep(SETTLE);
    let after_close = process.resident()?;
    let per_connection = (held as f64 - at_start as f64) / connections as f64;
    Ok(Memory { at_start, per_connection, after_close })
}
