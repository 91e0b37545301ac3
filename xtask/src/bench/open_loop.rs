//! Latency at a fixed rate, open loop: requests start when they are due, whether or not earlier
//! ones have come back, and latency counts from when they were due.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::proxies::Tools;

/// In µs.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

pub fn measure(tools: &Tools, port: u16, rate: u32) -> anyhow::Result<Latency> {
    let output = Command::new("taskset")
        .args(["-c", "0"])
        .arg(&tools.helper)
        .args(["bench-helper", "rate", &port.to_string(), &rate.to_string()])
        .output()
        .context("cannot start the open-loop client")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [p50, p99] if output.status.success() => Ok(Latency { p50, p99 }),
        _ => bail!("open-loop client: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
