//! The same bytes of a client to this HTTP/2 engine and to the `h2` crate's server. Both must take
//! the same requests with the same content, refuse the same streams and give up the same
//! connections. Where they differ on purpose, [`DIFFERENT`] says why.
//!
//! `WEFT_H2_DIFFERENTIAL=1000000` makes it longer, `WEFT_H2_DIFFERENTIAL_SEED` repeats one
//! connection.

use std::collections::BTreeMap;

use crate::h2_both::{Outcome, ours, theirs};
use crate::h2_client_frames::connection;

/// How the two may differ on one kind of connection.
#[derive(Clone, Copy)]
enum Difference {
    /// Here one stream is refused; there the connection ends.
    StreamHere,
    /// Refused here, taken there.
    Stricter,
    /// Taken here, refused there or the end of the connection.
    Laxer,
}

/// Where they differ on purpose, and why.
const DIFFERENT: &[(&str, Difference, &[&str])] = &[
    (
        "a malformed head ends its stream (RFC 9113 §8.1.1); h2 takes it for a decoding error",
        Difference::StreamHere,
        &[
            "blank in a name",
            "colon in a name",
            "empty name",
            "capital letter in a name",
            "line end in a value",
            "NUL in a value",
            "control character in a value",
            "blank in a method",
            "empty method",
            "unknown pseudo field",
        ],
    ),
    (
        "errors of a stream by RFC 9113 §§5.1, 6.3, 6.9; h2 makes them errors of the connection",
        Difference::StreamHere,
        &[
            "DATA after the end",
            "HEADERS after the end",
            "PRIORITY too short",
            "WINDOW_UPDATE of 0 on a stream",
        ],
    ),
    (
        "no HTTP/1 message could say this, or it would say something else",
        Difference::Stricter,
        &[
            "blanks around a value",
            "asterisk with GET",
            "authority with user",
            "host says otherwise",
            "neither authority nor path",
            "pseudo field in trailers",
        ],
    ),
    ("an empty authority is none", Difference::Laxer, &["empty authority"]),
    ("an answer too many harms nobody", Difference::Laxer, &["acknowledgement of nothing"]),
];

/// Connections of a run that is not told otherwise.
const CONNECTIONS: u64 = 3_000;

#[test]
fn both_engines_take_and_refuse_the_same() {
    let env = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let run = |seed| local.block_on(&runtime, compare(seed));
    let seeds = match env("WEFT_H2_DIFFERENTIAL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env("WEFT_H2_DIFFERENTIAL").unwrap_or(CONNECTIONS),
    };
    let mut differences = BTreeMap::new();
    for seed in seeds {
        if let Err((what, difference)) = run(seed) {
            differences.entry(what).or_insert(difference);
        }
    }
    let all: Vec<String> = differences.into_values().collect();
    assert!(all.is_empty(), "{}", all.join("\n\n"));
}

/// The kind of connection it was, and how the two differ, if they do.
async fn compare(seed: u64) -> Result<(), (&'static str, String)> {
    let sent = connection(seed);
    let (mut ours, mut theirs) = (ours(&sent.bytes), theirs(&sent.bytes).await);
    let what = sent.oddity.unwrap_or("sound");
    for reset in &sent.reset {
        ours.streams.remove(reset);
        theirs.streams.remove(reset);
    }
    let because = |why: &str| {
        let log = sent.log.join("\n");
        let text = format!(
            "{what}: {why}; repeat with WEFT_H2_DIFFERENTIAL_SEED={seed}\n{log}\n\
             ours {ours:?}\nh2 {theirs:?}"
        );
        Err((what, text))
    };
    // What one of them gave up too early to see says nothing; what both read must be the same.
    for (id, outcome) in &ours.streams {
        match (outcome, theirs.streams.get(id)) {
            (Outcome::Complete(ours), Some(Outcome::Complete(theirs))) if ours != theirs => {
                return because("a request reads differently");
            }
            _ => {}
        }
    }
    let allowed = DIFFERENT.iter().find(|(_, _, names)| names.contains(&what));
    match (
        allowed.map(|(_, difference, _)| difference),
        ours.ended.is_some(),
        theirs.ended.is_some(),
    ) {
        (None, true, true) => return Ok(()),
        (None | Some(Difference::Stricter | Difference::Laxer), false, false) => {}
        (Some(Difference::StreamHere | Difference::Laxer), false, true) => return Ok(()),
        _ => return because("not the same gives up the connection"),
    }
    for id in ours.streams.keys().chain(theirs.streams.keys()) {
        match (ours.streams.get(id), theirs.streams.get(id), allowed) {
            (ours, theirs, _) if ours == theirs => {}
            (Some(Outcome::Refused), _, Some((_, Difference::Stricter, _))) => {}
            (_, Some(Outcome::Refused), Some((_, Difference::Laxer, _))) => {}
            _ => return because("a stream ends differently"),
        }
    }
    Ok(())
}
