//! Ours and stock Envoy as twins: the same resources from one control plane, the same seeded random
//! requests to both, and everything that can be seen of them compared: the answer, and each
//! arrival at the applications (destination, attempts, mirrors, headers, body).
//!
//! `WEFT_TWINS_ROUNDS` makes it longer, `WEFT_TWINS_SEED` starts it elsewhere; a difference prints
//! the seed of its round, which alone plays it again.

mod app;
mod ask;
mod dice;
mod generate;
mod kinds;
mod world;

use std::{fmt::Write as _, time::Duration};

use app::Arrival;
use ask::Ask;
use dice::Dice;
use serde_json::Value;
use weft_testkit::{client::Reply, peer, wait};
use world::{Edge, TWINS, World};

/// VirtualServices of a round, half of them for sidecars.
const HOSTS: usize = 24;
/// Requests to each of them.
const REQUESTS: usize = 12;
const ROUNDS: u64 = 5;
/// Differences printed.
const SHOWN: usize = 12;
/// How long mirrored copies and abandoned attempts may take to arrive.
const LATE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn weft_and_envoy_do_the_same() {
    if peer::envoy("weft_and_envoy_do_the_same").is_none() {
        return;
    }
    let first = number("WEFT_TWINS_SEED").unwrap_or(1);
    let rounds = number("WEFT_TWINS_ROUNDS").unwrap_or(ROUNDS);
    let world = World::start(&(0..HOSTS).step_by(2).map(host).collect::<Vec<_>>()).await;
    let mut differences = Vec::new();
    for seed in first..first + rounds {
        round(&world, seed, &mut differences).await;
    }
    let asked = rounds as usize * HOSTS * REQUESTS;
    let count = differences.len();
    let shown = differences.iter().take(SHOWN).cloned().collect::<String>();
    assert!(count == 0, "of {asked} requests, {count} kinds of difference:\n{shown}");
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A service's name for sidecars, a public one at the gateway.
fn host(index: usize) -> String {
    match edge(index) {
        Edge::Sidecar => format!("host-{index}"),
        Edge::Gateway => format!("host-{index}.test"),
    }
}

fn edge(index: usize) -> Edge {
    if index.is_multiple_of(2) { Edge::Sidecar } else { Edge::Gateway }
}

async fn round(world: &World, seed: u64, differences: &mut Vec<String>) {
    let mut dice = Dice::new(seed);
    let resources: Vec<Vec<Value>> = (0..HOSTS)
        .map(|i| {
            let name = format!("vs-{i}");
            generate::virtual_service(&mut dice, &name, &host(i), edge(i) == Edge::Gateway)
        })
        .collect();
    world.apply(seed, &resources.concat()).await;
    for (index, resources) in resources.iter().enumerate() {
        for request in 0..REQUESTS {
            let ask = ask::ask(&mut dice, &host(index));
            let id = format!("{seed}-{index}-{request}");
            if let Some(difference) = compare(world, edge(index), &ask, &id).await {
                // A rule that differs differs often: one is enough to see.
                if differences.iter().any(|one| one.contains(&difference)) {
                    continue;
                }
                let mut text =
                    format!("\n=== seed {seed}, {:?}: {ask:?}\n{difference}\n", edge(index));
                for resource in resources {
                    let _ = writeln!(text, "{}", resource["spec"]);
                }
                differences.push(text);
            }
        }
    }
}

/// Both twins' answers and arrivals, where they differ.
async fn compare(world: &World, edge: Edge, ask: &Ask, id: &str) -> Option<String> {
    let send = |twin: usize| ask.send(world.front(twin, edge), id, TWINS[twin]);
    let (weft, envoy) = tokio::join!(send(0), send(1));
    let (weft, envoy) = (seen(ask, weft), seen(ask, envoy));
    if weft != envoy {
        return Some(apart("the client got", &weft, &envoy));
    }
    if weft.last().is_some_and(|body| body == NOWHERE) {
        // Ours mirrors it all the same, Envoy does not.
        return None;
    }
    let arrivals = |twin: usize| plain(world.apps.arrivals(id, TWINS[twin]));
    let same = || async { (arrivals(0) == arrivals(1)).then_some(()) };
    if tokio::time::timeout(LATE, wait::until("arrivals", LATE * 2, same)).await.is_err() {
        let lines = |twin| arrivals(twin).iter().flat_map(Arrival::lines).collect::<Vec<_>>();
        return Some(apart("the applications got", &lines(0), &lines(1)));
    }
    None
}

/// The answer where no endpoint is left.
const NOWHERE: &str = "no healthy upstream";

/// Status, headers and body of an answer, a line each, without what is chance or time.
fn seen(ask: &Ask, reply: Result<Reply, String>) -> Vec<String> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return vec![error],
    };
    let mut lines: Vec<String> = reply
        .headers
        .iter()
        .chain(&reply.trailers)
        .filter(|(name, _)| !BY_CHANCE.contains(&name.as_str()))
        // Replies made by the proxy: Envoy's have none where applications' own are kept.
        .filter(|(name, value)| (name.as_str(), value.as_bytes()) != ("server", b"istio-envoy"))
        // Towards its application Envoy says the span's name in answers too (docs/headers.md).
        .filter(|(name, _)| name.as_str() != "x-envoy-decorator-operation")
        // Of an answer without a body, Envoy's says `transfer-encoding: chunked` to HEAD.
        .filter(|(name, _)| ask.method != "HEAD" || !FRAMING.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort_by(|one, other| one.split(':').next().cmp(&other.split(':').next()));
    lines.insert(0, reply.status.to_string());
    lines.push(reply.text());
    lines
}

const FRAMING: &[&str] = &["content-length", "transfer-encoding"];

/// The lines that only one of the twins has, or all when they only stand in another order.
fn apart(what: &str, weft: &[String], envoy: &[String]) -> String {
    let only = |one: &[String], other: &[String]| {
        let mut rest = other.to_vec();
        let own = one.iter().filter(|line| match rest.iter().position(|o| o == *line) {
            Some(at) => {
                rest.remove(at);
                false
            }
            None => true,
        });
        own.cloned().collect::<Vec<_>>()
    };
    let mut both = [only(weft, envoy), only(envoy, weft)];
    if both.iter().all(Vec::is_empty) {
        both = [weft.to_vec(), envoy.to_vec()];
    }
    format!("{what}\n  only weft:  {:?}\n  only envoy: {:?}", both[0], both[1])
}

/// Differ with every request, or between two clients.
const BY_CHANCE: &[&str] = &[
    "date",
    "x-envoy-upstream-service-time",
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "traceparent",
    "tracestate",
    "x-twin",
    // Which early answers end the connection.
    "connection",
];

/// What Envoy tells applications about itself, and ours does not (docs/headers.md): the other
/// proxy's span name, its time limit, the scheme between two sidecars; an empty body's length.
const ENVOY_ONLY: &[&str] = &[
    "x-envoy-decorator-operation",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-proto: http",
    "content-length: 0",
];
/// What Envoy says of itself in mirrored copies.
const OF_COPIES: &[&str] = &["x-envoy-internal", "x-envoy-attempt-count", "x-forwarded-for"];
/// `te` is hop by hop, and has to be named (RFC 9110 §10.1.4).
const WEFT_ONLY: &str = "connection: TE";

fn plain(mut arrivals: Vec<Arrival>) -> Vec<Arrival> {
    for arrival in &mut arrivals {
        let copy = arrival.line.contains("-shadow");
        for (_, value) in arrival.headers.iter_mut().filter(|(name, _)| name == "x-forwarded-for") {
            // Of a client on loopback Envoy says its own address.
            *value = value.rsplit_once(',').map_or("", |(others, _)| others).to_owned();
        }
        arrival.headers.retain(|(name, value)| {
            if copy && OF_COPIES.contains(&name.as_str()) {
                return false;
            }
            let line = format!("{name}: {value}");
            !BY_CHANCE.contains(&name.as_str())
                && !ENVOY_ONLY.iter().any(|one| line.starts_with(one))
                && line != WEFT_ONLY
        });
    }
    arrivals
}
