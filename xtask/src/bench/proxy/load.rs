//! Runs a row's load on core 0 and reads what the load generator says: wrk for HTTP/1, h2load for
//! HTTP/2, and our own small clients where neither can: client certificates, gRPC messages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::row::{Door, Load, Row};
use super::start::Tools;

/// What one measurement gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub requests: u64,
    pub per_second: f64,
    pub cpu_us_per_request: f64,
    /// Seen by the load generator under full load, in µs.
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Runs `row` against `port` for so many seconds.
pub fn run(tools: &Tools, row: Row, port: u16, seconds: u32) -> anyhow::Result<Measured> {
    let mut command = Command::new("timeout");
    // Nothing measured takes longer; a proxy that stands still must not hold up the run.
    command.args([format!("{}", seconds + 20), "taskset".into(), "-c".into(), "0".into()]);
    let host = row.door.host();
    match row.load {
        Load::Http1 { connections, bytes } if row.door == Door::MtlsIn => {
            command.arg(&tools.helper).args(["bench-helper", "load-mtls"]);
            command.arg(tools.folder());
            command.arg(port.to_string());
            command.args([connections, bytes, seconds].map(|number| number.to_string()));
            parse_own(&output(&mut command)?, seconds)
        }
        Load::Http1 { connections, bytes } => {
            let scheme = if row.door == Door::TlsIn { "https" } else { "http" };
            command.args(["wrk", "-t1", "--latency", "-H", &format!("Host: {host}")]);
            command.args([format!("-c{connections}"), format!("-d{seconds}s")]);
            command.arg(format!("{scheme}://127.0.0.1:{port}/{bytes}"));
            parse_wrk(&output(&mut command)?)
        }
        Load::Http2 { connections, streams } | Load::Unary { connections, streams, .. } => {
            let log = tools.folder().join("h2load.tsv");
            let _ = std::fs::remove_file(&log);
            command.args(["h2load", "-t1", "-H", &format!(":authority: {host}")]);
            command.args([format!("-c{connections}"), format!("-m{streams}")]);
            command.args([format!("-D{seconds}"), format!("--log-file={}", log.display())]);
            match row.load {
                Load::Unary { bytes, .. } => {
                    let message = tools.folder().join("message");
                    std::fs::write(&message, grpc_message(bytes))?;
                    command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
                    command.arg(format!("--data={}", message.display()));
                    command.arg(format!("http://127.0.0.1:{port}/bench.Bench/Echo"));
                }
                _ => {
                    command.arg(format!("http://127.0.0.1:{port}/2"));
                }
            }
            let mut measured = parse_h2load(&output(&mut command)?)?;
            (measured.p50_us, measured.p99_us) = percentiles_of_log(&log)?;
            std::fs::remove_file(&log)?;
            Ok(measured)
        }
        Load::Streaming { connections, streams, bytes } => {
            command.arg(&tools.helper).args(["bench-helper", "grpc-load"]);
            command.args([port.to_string(), host.to_owned()]);
            command.args([connections, streams, bytes, seconds].map(|number| number.to_string()));
            parse_own(&output(&mut command)?, seconds)
        }
    }
}

/// A message of so many bytes with its prefix.
fn grpc_message(bytes: u32) -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&bytes.to_be_bytes());
    message.resize(message.len() + bytes as usize, b'x');
    message
}

pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().context("cannot start the load generator")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// `requests p50 p99`, of our own clients.
fn parse_own(text: &str, seconds: u32) -> anyhow::Result<Measured> {
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    let &[requests, p50_us, p99_us] = numbers.as_slice() else { bail!("own client: {text}") };
    ensure!(requests > 0.0, "own client: no request was answered");
    Ok(Measured {
        requests: requests as u64,
        per_second: requests / f64::from(seconds),
        cpu_us_per_request: 0.0,
        p50_us,
        p99_us,
    })
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
        p99_us: after("99%").and_then(parse_time).context("wrk printed no 99th percentile")?,
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
    // "succeeded" counts streams that ended well, whatever their status.
    let bad = line("status codes: ")?;
    ensure!(
        bad.contains("0 3xx, 0 4xx, 0 5xx") && done > Some(0),
        "h2load: requests: {requests}; status codes: {bad}"
    );
    let rate = line("finished in ")?.split(',').nth(1).unwrap_or_default();
    Ok(Measured {
        requests: done.context("h2load printed no count")?,
        per_second: rate.trim().trim_end_matches(" req/s").parse().context("h2load rate")?,
        ..Measured::default()
    })
}

/// Median and 99th percentile of h2load's log, whose third column is µs: its own summary has
/// only the mean.
fn percentiles_of_log(path: &Path) -> anyhow::Result<(f64, f64)> {
    let text = std::fs::read_to_string(path).context("h2load wrote no log")?;
    let mut times: Vec<u64> =
        text.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    ensure!(!times.is_empty(), "h2load's log is empty");
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize] as f64;
    Ok((at(0.5), at(0.99)))
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
        assert_eq!((got.requests, got.p50_us, got.p99_us), (12345, 1500.0, 2e6));
        assert!(parse_wrk(&format!("{wrk}  Non-2xx or 3xx responses: 5\n")).is_err());
        let h2load = "finished in 1.00s, 100.50 req/s, 1.00KB/s\nrequests: 101 total, 101 started, 101 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: 101 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        let got = parse_h2load(h2load).unwrap();
        assert_eq!((got.requests, got.per_second), (100, 100.5));
        assert!(parse_h2load(&h2load.replace("0 5xx", "7 5xx")).is_err());
    }
}
