//! The loads: wrk for HTTP/1, h2load for HTTP/2, both on core 0, closed loop, keep-alive.

use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// One way to load a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// HTTP/1.1 with so many connections, each asking for so many bytes at a time.
    Http1 { connections: u32, bytes: u32 },
    /// The same over TLS 1.3 from the client.
    Https { connections: u32, bytes: u32 },
    /// HTTP/2 with so many connections and streams on each; two bytes at a time.
    Http2 { connections: u32, streams: u32 },
}

/// In the order of the tables.
pub const ALL: &[Load] = &[
    Load::Http1 { connections: 64, bytes: 2 },
    Load::Http1 { connections: 64, bytes: 1024 },
    Load::Http1 { connections: 64, bytes: 65536 },
    Load::Http1 { connections: 512, bytes: 1024 },
    Load::Https { connections: 64, bytes: 2 },
    Load::Https { connections: 64, bytes: 65536 },
    Load::Http2 { connections: 1, streams: 100 },
    Load::Http2 { connections: 8, streams: 32 },
    Load::Http2 { connections: 64, streams: 1 },
];

/// What one measurement gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub requests: u64,
    pub per_second: f64,
    pub cpu_us_per_request: f64,
    /// Seen by the load generator, in µs; h2load only gives the mean, in `p50`.
    pub p50_us: f64,
    pub p99_us: Option<f64>,
}

impl Load {
    pub fn name(self) -> String {
        match self {
            Load::Http1 { connections, bytes } => {
                format!("HTTP/1 {connections} × {}", size(bytes))
            }
            Load::Https { connections, bytes } => {
                format!("HTTP/1 over TLS {connections} × {}", size(bytes))
            }
            Load::Http2 { connections, streams } => format!("HTTP/2 {connections} × {streams}"),
        }
    }

    /// Runs it against `port` for so many seconds.
    pub fn run(self, port: u16, seconds: u32) -> anyhow::Result<Measured> {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]);
        match self {
            Load::Http1 { connections, bytes } | Load::Https { connections, bytes } => {
                let scheme = if matches!(self, Load::Https { .. }) { "https" } else { "http" };
                command.args(["wrk", "-t1", "--latency", "-H", "Host: bench.local"]);
                command.args([format!("-c{connections}"), format!("-d{seconds}s")]);
                command.arg(format!("{scheme}://127.0.0.1:{port}/{bytes}"));
                parse_wrk(&output(&mut command)?)
            }
            Load::Http2 { connections, streams } => {
                command.args(["h2load", "-t1", "-H", ":authority: bench.local"]);
                command.args([format!("-c{connections}"), format!("-m{streams}")]);
                command.arg(format!("-D{seconds}"));
                command.arg(format!("http://127.0.0.1:{port}/2"));
                parse_h2load(&output(&mut command)?)
            }
        }
    }
}

fn size(bytes: u32) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => format!("{} KiB", bytes / 1024),
    }
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("cannot start the load generator")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn parse_wrk(text: &str) -> anyhow::Result<Measured> {
    if let Some(line) = text.lines().find(|line| {
        line.contains("Non-2xx") || (line.contains("Socket errors") && !line.contains("read 0,"))
    }) {
        bail!("wrk: {}", line.trim());
    }
    let after =
        |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let count = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok());
    let requests = count.context("wrk printed no request count")?;
    ensure!(requests > 0, "wrk: no request was answered");
    Ok(Measured {
        requests,
        per_second: after("Requests/sec:")
            .and_then(|text| text.parse().ok())
            .context("wrk printed no rate")?,
        cpu_us_per_request: 0.0,
        p50_us: after("50%").and_then(parse_time).context("wrk printed no median")?,
        p99_us: after("99%").and_then(parse_time),
    })
}

fn parse_h2load(text: &str) -> anyhow::Result<Measured> {
    let line = |label: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(label))
            .with_context(|| format!("h2load printed no `{label}`"))
    };
    let requests = line("requests: ")?;
    let number = |label: &str| -> Option<u64> {
        let (before, _) = requests.split_once(label)?;
        before.trim().rsplit([' ', ',']).next()?.parse().ok()
    };
    let (done, failed) = (number("succeeded"), number("failed"));
    if failed != Some(0) {
        bail!("h2load: {requests}");
    }
    let rate = line("finished in ")?.split(',').nth(1).unwrap_or_default();
    let mean = line("time for request:")?.split_whitespace().nth(2).unwrap_or_default();
    Ok(Measured {
        requests: done.context("h2load printed no count")?,
        per_second: rate.trim().trim_end_matches(" req/s").parse().context("h2load rate")?,
        cpu_us_per_request: 0.0,
        p50_us: parse_time(mean).context("h2load mean")?,
        p99_us: None,
    })
}

/// `1.23ms`, `45.00us`, `2.10s` in µs.
fn parse_time(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    match &text[split..] {
        "us" => Some(number),
        "ms" => Some(number * 1e3),
        "s" => Some(number * 1e6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_h2load, parse_wrk};

    #[test]
    fn output_of_the_load_generators() {
        let wrk = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n  Latency Distribution\n     50%    1.50ms\n     99%    2.00s \n  12345 requests in 1.10s, 1.00MB read\nRequests/sec:  11222.7\nTransfer/sec: 1.00MB\n";
        let got = parse_wrk(wrk).unwrap();
        assert_eq!((got.requests, got.p50_us, got.p99_us), (12345, 1500.0, Some(2e6)));
        assert!(parse_wrk(&format!("{wrk}  Non-2xx or 3xx responses: 5\n")).is_err());
        let h2load = "finished in 1.00s, 100.50 req/s, 1.00KB/s\nrequests: 101 total, 101 started, 101 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\ntime for request:      100us      2.00ms       150us        10us    70.00%\n";
        let got = parse_h2load(h2load).unwrap();
        assert_eq!((got.requests, got.per_second, got.p50_us), (100, 100.5, 150.0));
    }
}
