//! Two HTTP/2 engines back to back over links that split, stall and add what the protocol allows,
//! with tasks on both sides that are slow, give up and reset. Every response must be the one to its
//! own request, whole, once, or end as one side decided; nobody may wait for ever; nothing may be
//! left over. Tasks run only when woken, so a lost wake-up shows as a standstill.
//!
//! `WEFT_H2_STREAMS=10000000 cargo test --release -p weft-http --test simulation` is the full size;
//! `WEFT_H2_SEED` repeats one connection.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod link;
mod plan;
mod task;
mod world;

use plan::Random;
use world::{Totals, World};

/// Streams of a run that is not told otherwise; a few seconds without optimisation.
const STREAMS: u64 = 8_000;

#[test]
fn no_response_is_lost_duplicated_or_swapped() {
    let env = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let mut totals = Totals::default();
    if let Some(seed) = env("WEFT_H2_SEED") {
        one(seed, &mut totals);
        return eprintln!("{totals:?}");
    }
    let streams = env("WEFT_H2_STREAMS").unwrap_or(STREAMS);
    let mut seeds = Random::new(env("WEFT_H2_START").unwrap_or(1));
    while totals.streams < streams {
        one(seeds.next(), &mut totals);
    }
    eprintln!("{totals:?}");
    assert!(totals.complete > totals.streams / 2, "most streams are left alone");
    for (what, count) in [
        ("cancelled", totals.cancelled),
        ("reset by the server", totals.reset),
        ("refused", totals.refused),
        ("lost", totals.lost),
    ] {
        assert!(count > 0, "no stream was {what}");
    }
}

/// One connection, whose seed is said should it fail.
fn one(seed: u64, totals: &mut Totals) {
    struct Blame(u64);
    impl Drop for Blame {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("repeat with WEFT_H2_SEED={}", self.0);
            }
        }
    }
    let _blame = Blame(seed);
    World::new(seed).run(totals);
}
