//! The twins with every other kind of resource: DestinationRules, ServiceEntries, Gateways, TCP and
//! TLS routes, PeerAuthentications and a Sidecar's ingress; `super` has the VirtualServices' HTTP.

mod probe;
mod stage;
mod write;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_testkit::peer;

use super::dice::Dice;
use super::world::TWINS;
use super::{SHOWN, apart, number};
use probe::Probe;
use stage::Stage;

const ROUNDS: u64 = 2;
/// How long the twins may still be bringing a round's listeners and clusters into use.
const SETTLE: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_millis(100);

/// Resources that belong together, and what to ask because of them.
struct Part {
    resources: Vec<Value>,
    probes: Vec<Probe>,
}

#[tokio::test(flavor = "multi_thread")]
async fn weft_and_envoy_do_the_same_with_every_kind() {
    if peer::envoy("weft_and_envoy_do_the_same_with_every_kind").is_none() {
        return;
    }
    let first = number("WEFT_TWINS_SEED").unwrap_or(1);
    let rounds = number("WEFT_TWINS_ROUNDS").unwrap_or(ROUNDS);
    let stage = Stage::start().await;
    let (mut asked, mut differences) = (0, Vec::new());
    for seed in first..first + rounds {
        let parts = write::parts(&mut Dice::new(seed));
        let resources: Vec<Value> = parts.iter().flat_map(|part| part.resources.clone()).collect();
        for refused in stage.apply(seed, &resources).await {
            let texts = resources.iter().map(|one| format!("{} {}\n", one["kind"], one["spec"]));
            let texts = texts.collect::<String>();
            differences.push(format!("\n=== seed {seed}: refused: {refused}\n{texts}"));
        }
        for (at, part) in parts.iter().enumerate() {
            for (index, probe) in part.probes.iter().enumerate() {
                asked += 1;
                let id = format!("{seed}-{at}-{index}");
                let Some(difference) = compare(&stage, probe, &id).await else { continue };
                let mut text = format!("\n=== seed {seed}: {probe:?}\n{difference}\n");
                for resource in &part.resources {
                    let _ = writeln!(text, "{} {}", resource["kind"], resource["spec"]);
                }
                differences.push(text);
                // The others of this part differ for the same reason.
                break;
            }
        }
    }
    let shown = differences.iter().take(SHOWN).cloned().collect::<String>();
    assert!(differences.is_empty(), "of {asked} probes, {} differ:\n{shown}", differences.len());
}

/// What the twins do, where it still differs after a while.
async fn compare(stage: &Stage, probe: &Probe, id: &str) -> Option<String> {
    let begun = Instant::now();
    for attempt in 0.. {
        let id = format!("{id}-{attempt}");
        let (weft, envoy) = tokio::join!(probe.run(stage, 0, &id), probe.run(stage, 1, &id));
        if weft == envoy {
            return None;
        }
        if begun.elapsed() > SETTLE {
            return Some(apart("seen", &weft, &envoy));
        }
        tokio::time::sleep(AGAIN).await;
    }
    unreachable!("attempts end with their time")
}

/// Listeners of a twin, by the port of its sidecar or gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Sidecar(u16),
    Gateway(u16),
}

/// A sidecar's listeners: as an HTTP proxy, TLS by SNI, bytes; and its application's.
pub(super) const HTTP: At = At::Sidecar(15080);
pub(super) const SNI: At = At::Sidecar(15443);
pub(super) const BYTES: At = At::Sidecar(15700);
pub(super) const OWN_HTTP: At = At::Sidecar(15090);
pub(super) const OWN_BYTES: At = At::Sidecar(15091);

/// The gateway's pod port behind a port of its Service.
pub(super) fn behind(port: u16) -> At {
    At::Gateway(match port {
        80 => 10080,
        8080 => 10081,
        31400 => 10090,
        31401 => 10091,
        _ => 10443,
    })
}

impl At {
    fn twin(self, stage: &Stage, twin: usize) -> std::net::SocketAddr {
        debug_assert!(twin < TWINS.len());
        match self {
            At::Sidecar(port) => (stage.sidecars[twin], port).into(),
            At::Gateway(port) => (stage.gateways[twin], port).into(),
        }
    }
}
