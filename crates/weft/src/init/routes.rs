//! What capture needs of routing: TPROXY's marked packets end at loopback, and the proxy needs an
//! IPv6 address of its own to speak to the application from (IPv4 has all of 127.0.0.0/8).

use anyhow::Context as _;
use weft_capture::{CaptureSpec, Family, Mode};

use super::backend::run;

/// Commands that set it, in order. Each may be run again but the rule's.
pub(super) fn commands(spec: &CaptureSpec, family: Family) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    if family == Family::V6 {
        all.push("ip -6 address replace ::6/128 dev lo".to_owned());
    }
    if spec.mode == Mode::Tproxy {
        let (ip, mark, table) = (ip(family), spec.tproxy_mark, spec.tproxy_table);
        all.push(format!("ip {ip} rule add fwmark {mark} lookup {table}"));
        all.push(format!("ip {ip} route replace local default dev lo table {table}"));
    }
    all.iter().map(|command| command.split(' ').map(str::to_owned).collect()).collect()
}

/// Runs the commands; a rule that is there is not added again.
pub(super) fn set(spec: &CaptureSpec, family: Family) -> anyhow::Result<()> {
    for command in commands(spec, family) {
        let is_rule = command.get(2).is_some_and(|word| word == "rule");
        if is_rule && has_rule(spec, family)? {
            continue;
        }
        let words: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
        run("ip", &words, None).context("iproute2 must be there")?;
    }
    if spec.mode == Mode::Tproxy && !has_rule(spec, family)? {
        anyhow::bail!("`ip rule` was added and is not there");
    }
    Ok(())
}

/// Takes rule and routes away. The address stays: others may speak from it.
pub(super) fn remove(spec: &CaptureSpec, family: Family) -> anyhow::Result<()> {
    let table = spec.tproxy_table.to_string();
    while spec.mode == Mode::Tproxy && has_rule(spec, family)? {
        let mark = spec.tproxy_mark.to_string();
        let rule = [ip(family), "rule", "del", "fwmark", &mark, "lookup", &table];
        run("ip", &rule, None)?;
        run("ip", &[ip(family), "route", "flush", "table", &table], None)?;
    }
    Ok(())
}

fn has_rule(spec: &CaptureSpec, family: Family) -> anyhow::Result<bool> {
    let rules = run("ip", &[ip(family), "rule", "list"], None)?;
    let rule = format!("fwmark {:#x} lookup {}", spec.tproxy_mark, spec.tproxy_table);
    Ok(rules.lines().any(|line| line.trim_end().ends_with(&rule)))
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}
