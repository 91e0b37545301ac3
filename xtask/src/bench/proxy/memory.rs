//! Memory of a proxy: at start, per idle connection or stream, and after they have closed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::row::Door;
use super::start::{LOAD_CORE, Proxy, Tools};
pub use crate::bench::helper::Held;
use crate::bench::pinned::Pinned;

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub at_start: u64,
    /// Growth of resident memory over what was there at start.
    pub per_item: f64,
    /// The share of it that is heap and stacks.
    pub per_item_anonymous: f64,
    pub after_close: u64,
    /// From closing until it was given back, or until no longer was waited.
    pub given_back_s: f64,
}

/// Within this of the start, memory counts as given back: the heap may keep a few free pages.
pub const GIVEN_BACK_BYTES: u64 = 1 << 20;
/// Memory stands still when it changed by less than this ...
const STILL_BYTES: u64 = 64 * 1024;
/// ... for this long.
const STILL_FOR: Duration = Duration::from_secs(4);
/// Proxies have so long to return memory, and no longer is waited.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// 10,000 handshakes of mutual TLS take half of this on one core.
const OPEN_MAX_S: u32 = 120;

impl Held {
    pub const ALL: [Held; 4] = [Held::Plain, Held::Mtls, Held::Http2, Held::Streams];

    pub fn door(self) -> Door {
        match self {
            Held::Plain => Door::Http1,
            Held::Mtls => Door::MtlsIn,
            Held::Http2 | Held::Streams => Door::Http2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Held::Plain => "idle connections, plain HTTP/1",
            Held::Mtls => "idle connections, HTTP/1 over mTLS",
            Held::Http2 => "idle connections, HTTP/2",
            Held::Streams => "open idle streams, HTTP/2, 100 on each connection",
        }
    }

    /// The goal per item, in bytes.
    pub fn goal(self) -> f64 {
        match self {
            Held::Plain | Held::Streams => 1024.0,
            Held::Mtls => 8.0 * 1024.0,
            Held::Http2 => 4.0 * 1024.0,
        }
    }
}

/// On a proxy that has just been started.
pub fn measure(tools: &Tools, proxy: &Proxy, what: Held, count: usize) -> anyhow::Result<Memory> {
    let (port, processes) = proxy.serving(what.door()).context("not served")?;
    let process = *processes.first().context("no process")?;
    let still = |since: Duration, _| since >= STILL_FOR;
    let before = (settle(process, still)?, process.anonymous()?);
    let mut holder = Command::new("timeout")
        .arg((OPEN_MAX_S + SETTLE_MAX.as_secs() as u32).to_string())
        .args(["taskset", "-c", LOAD_CORE, "sh", "-c"])
        .args([r#"ulimit -n "$(ulimit -Hn)"; exec "$@""#, "sh"])
        .arg(&tools.helper)
        .args(["bench-helper", "hold"])
        .arg(format!("{what:?}").to_lowercase())
        .args([port.to_string(), count.to_string()])
        .arg(tools.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the holder of idle connections")?;
    let mut line = String::new();
    let stdout = holder.stdout.take().context("the holder has no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == "held", "the holder of {} failed", what.name());
    let held = (settle(process, still)?, process.anonymous()?);
    drop(holder.stdin.take());
    holder.wait()?;
    let closed = Instant::now();
    // A proxy may return memory late, but not later than the goal allows.
    let back = before.0 + GIVEN_BACK_BYTES;
    let after_close = settle(process, |_, now| now <= back)?;
    let given_back_s = closed.elapsed().as_secs_f64();
    let per = |held: u64, before: u64| (held as f64 - before as f64) / count as f64;
    Ok(Memory {
        at_start: before.0,
        per_item: per(held.0, before.0),
        per_item_anonymous: per(held.1, before.1),
        after_close,
        given_back_s,
    })
}

/// Resident memory once it is `good`, told how long it has stood still and how much it is.
fn settle(process: &Pinned, good: impl Fn(Duration, u64) -> bool) -> anyhow::Result<u64> {
    let begun = Instant::now();
    let (mut level, mut since) = (process.resident()?, Instant::now());
    loop {
        let now = process.resident()?;
        if now.abs_diff(level) > STILL_BYTES {
            (level, since) = (now, Instant::now());
        }
        if good(since.elapsed(), now) || begun.elapsed() > SETTLE_MAX {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Connections a proxy can hold here: like ours, each may need a second socket behind it.
pub fn connections_max() -> usize {
    const OTHER_FILES: usize = 250;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let hard = limits.lines().find_map(|line| {
        line.strip_prefix("Max open files")?.split_whitespace().nth(1)?.parse().ok()
    });
    hard.map_or(usize::MAX, |hard: usize| hard.saturating_sub(OTHER_FILES) / 2)
}
