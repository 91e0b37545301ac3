//! `weft init`: tells the kernel which traffic of this network namespace enters the proxy, reads it
//! back, and takes it away again. The rules are weft-capture's; what runs here are the programs
//! that write them.

mod args;
mod backend;
mod routes;

pub(crate) use args::InitArgs;

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use weft_capture::{CaptureSpec, Family, RuleSet};

use backend::Backend;

pub(crate) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let spec = args.spec()?.with_group_numbers(group_number)?;
    let families = args.families();
    if spec.dns.is_some() {
        eprintln!("weft: DNS goes to port 15053: a resolver of your own must listen there");
    }
    if args.dry_run {
        return crate::print(&dry_run(args, &spec, &families));
    }
    if args.cleanup {
        return cleanup(args, &spec, &families);
    }
    let backend = backend::choose(args.backend, &families)?;
    let mut done = Vec::new();
    for family in &families {
        let written = write(backend, &spec, *family)?;
        routes::set(&spec, *family).context("routing of captured packets")?;
        done.push(format!("{} {written}", name(*family)));
    }
    crate::print(&format!("capture by {}: {}\n", backend.name(), done.join("; ")))
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Puts the rules of one IP version in place unless they are there, and reads them back.
fn write(backend: Backend, spec: &CaptureSpec, family: Family) -> anyhow::Result<String> {
    let (rules, marks) = (RuleSet::new(spec, family), RuleSet::marks(spec));
    let count: usize = rules.chains.values().map(Vec::len).sum();
    if backend.differences(&rules, &marks)?.is_empty() {
        return Ok(format!("{count} rules were in place"));
    }
    backend.remove(&rules, &marks)?;
    backend.write(&rules)?;
    let differences = backend.differences(&rules, &marks)?;
    if !differences.is_empty() {
        let mut text = format!(
            "the {} rules that stand are not those that {} was given; traffic would go astray:",
            name(family),
            backend.name(),
        );
        for difference in differences {
            let _ = write!(text, "\n  {difference}");
        }
        bail!(text);
    }
    Ok(format!("{count} rules written and read back"))
}

/// Removes what any back end has of ours.
fn cleanup(args: &InitArgs, spec: &CaptureSpec, families: &[Family]) -> anyhow::Result<()> {
    let mut removed = Vec::new();
    for family in families {
        let (rules, marks) = (RuleSet::new(spec, *family), RuleSet::marks(spec));
        for backend in backend::all(args.backend) {
            if backend.remove_if_there(&rules, &marks)? {
                removed.push(format!("{} from {}", name(*family), backend.name()));
            }
        }
        routes::remove(spec, *family)?;
    }
    match removed.is_empty() {
        true => crate::print("no capture rules were there\n"),
        false => crate::print(&format!("removed: {}\n", removed.join("; "))),
    }
}

fn dry_run(args: &InitArgs, spec: &CaptureSpec, families: &[Family]) -> String {
    let backend = backend::all(args.backend).first().copied().unwrap_or(Backend::Nft);
    let mut text = String::new();
    for family in families {
        let rules = RuleSet::new(spec, *family);
        let _ = write!(text, "# {}\n{}", backend.command(*family), backend.text(&rules));
        for command in routes::commands(spec, *family) {
            let _ = writeln!(text, "# {}", command.join(" "));
        }
    }
    text
}

/// A group's number in this container.
fn group_number(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}
