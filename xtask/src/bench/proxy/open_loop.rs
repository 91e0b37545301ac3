//! Latency at a fixed rate, open loop: requests start when they are due, whether or not earlier
//! ones have come back, and latency counts from when they were due.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::load;
use super::row::Door;
use super::start::{LOAD_CORE, Proxy, Tools};

/// The ways that are measured.
pub const DOORS: [Door; 2] = [Door::Http1, Door::Pair];

/// In µs.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// What small calls see on an HTTP/2 connection, alone and beside a download on it.
#[derive(Clone, Copy, Debug)]
pub struct Fairness {
    pub alone: Latency,
    pub beside: Latency,
}

pub fn measure(
    tools: &Tools,
    proxy: &Proxy,
    door: Door,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Latency> {
    let (port, _) = proxy.serving(door).context("not served")?;
    let mut command = helper(tools, seconds + 20);
    command.args(["rate", &port.to_string(), door.host(), &rate.to_string()]);
    command.arg(seconds.to_string());
    match numbers(&load::output(&mut command)?)[..] {
        [p50, p99] => Ok(Latency { p50, p99 }),
        _ => bail!("the open-loop client printed something else"),
    }
}

pub fn fairness(tools: &Tools, proxy: &Proxy, seconds: u32) -> anyhow::Result<Fairness> {
    let (port, _) = proxy.serving(Door::Grpc).context("not served")?;
    let mut command = helper(tools, 2 * seconds + 20);
    command.args(["fair", &port.to_string(), Door::Grpc.host(), &seconds.to_string()]);
    match numbers(&load::output(&mut command)?)[..] {
        [a, b, c, d] => {
            Ok(Fairness { alone: Latency { p50: a, p99: b }, beside: Latency { p50: c, p99: d } })
        }
        _ => bail!("the fairness client printed something else"),
    }
}

/// A helper on the load's core that ends by itself.
fn helper(tools: &Tools, seconds_max: u32) -> Command {
    let mut command = Command::new("timeout");
    command.arg(seconds_max.to_string()).args(["taskset", "-c", LOAD_CORE]);
    command.arg(&tools.helper).arg("bench-helper");
    command
}

fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace().filter_map(|text| text.parse().ok()).collect()
}
