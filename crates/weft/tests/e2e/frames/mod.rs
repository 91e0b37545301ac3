//! HTTP/2 frames as they are to Weft and to stock Envoy, each before an application that records:
//! sound connections, those with one named oddity, and sound ones of which one frame was changed at
//! random. What Envoy refuses may not reach the application through Weft, and what both take must
//! arrive as the same; where the two differ on purpose, [`DIFFERENT`] says why.
//!
//! `WEFT_FRAMES_CASES` and `WEFT_FRAMES_SEED` choose another number of connections and another
//! first seed, which are printed.

#[path = "../../../../weft-http/tests/it/h2_client_frames.rs"]
mod client;
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use weft_http::h2::{FrameHead, FrameType};
use weft_testkit::{free_port, peer, process::Process, relay};

use crate::smuggling::{
    backend::{Backend, Seen},
    sidecar,
};
use client::{Random, Sent, connection};
use talk::{Answer, Talk};

/// Connections that run side by side, each through its own port of either proxy.
const LANES: usize = 16;
/// Connections of an ordinary run: every oddity once with a sound beginning.
const CASES: u64 = 360;
/// A proxy that says nothing for so long waits for more.
const QUIET: Duration = Duration::from_millis(60);
/// The same when a connection is judged again, alone, and once more.
const QUIET_ALONE: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(2)];

/// How the two may differ on one kind of connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    /// Weft lets through what Envoy does not.
    Laxer,
    /// Envoy lets through what Weft does not.
    Stricter,
    /// Both refuse, or both take; what becomes of the stream or the connection differs.
    Otherwise,
}

/// Where they differ on purpose, and why. Not listed: a malformed request, or another error of one
/// stream, ends the connection in Envoy and the stream in Weft (RFC 9113 §§5.4.2, 8.1.1).
const DIFFERENT: &[(&str, Difference, &[&str])] = &[
    (
        "who has no authority to convey sends none (RFC 9113 §8.3.1), as for clients of HTTP/1.0 \
         without Host; it is an empty Host in HTTP/1 (RFC 9112 §3.2), and an empty one is none",
        Difference::Laxer,
        &["no authority", "empty authority"],
    ),
    (
        "extended CONNECT (RFC 8441) is offered, as Istio has it; this Envoy was not told to",
        Difference::Laxer,
        &["protocol nobody offered"],
    ),
    ("an answer too many harms nobody", Difference::Laxer, &["acknowledgement of nothing"]),
    (
        "fields that could be read in two ways (RFC 9113 §§8.2.1, 8.3.1)",
        Difference::Stricter,
        &["blanks around a value", "host says otherwise"],
    ),
    (
        "a stream below the last one (RFC 9113 §5.1.1)",
        Difference::Stricter,
        &["HEADERS on a lower stream"],
    ),
    (
        "frames on a stream that has ended are its error (RFC 9113 §5.1)",
        Difference::Stricter,
        &["DATA after the end", "HEADERS after the end"],
    ),
    (
        "PRIORITY that is wrong (RFC 9113 §§5.3.1, 6.3)",
        Difference::Otherwise,
        &[
            "PRIORITY of a stream on itself",
            "PRIORITY on stream 0",
            "PRIORITY too short",
            "stream depends on itself",
        ],
    ),
    (
        "who sends half as much again as is allowed is not listened to until the end",
        Difference::Otherwise,
        &["huge head"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_reach_http1_as_through_envoy() {
    compare("frames_reach_http1_as_through_envoy", Version::H1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_reach_http2_as_through_envoy() {
    compare("frames_reach_http2_as_through_envoy", Version::H2).await;
}

/// What the application speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    H1,
    H2,
}

/// A port of each proxy, and the application behind it: Weft, then Envoy.
type Lane = [(SocketAddr, Backend); 2];

async fn compare(test: &str, version: Version) {
    let Some(envoy) = peer::envoy(test) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut weft, mut other) = (Vec::new(), Vec::new());
    for backends in [&mut weft, &mut other] {
        for _ in 0..LANES {
            backends.push(match version {
                Version::H1 => Backend::start().await,
                Version::H2 => Backend::start_http2().await,
            });
        }
    }
    let addresses: Vec<_> = weft.iter().map(|backend| backend.address).collect();
    let protocol = if version == Version::H1 { "HTTP" } else { "HTTP2" };
    let (listen, _mesh, _proxy) = sidecar(protocol, &addresses).await;
    let relayed: Vec<relay::Lane> = other
        .iter()
        .map(|backend| ((Ipv4Addr::LOCALHOST, free_port()).into(), backend.address))
        .collect();
    let _envoy: Process = match version {
        Version::H1 => relay::envoy_http2(&envoy, folder.path(), &relayed),
        Version::H2 => relay::envoy_http2_to_http2(&envoy, folder.path(), &relayed),
    };
    let weft = listen.into_iter().zip(weft);
    let other = relayed.into_iter().map(|(listen, _)| listen).zip(other);
    let lanes: Vec<Lane> = weft.zip(other).map(|(ours, theirs)| [ours, theirs]).collect();

    let (seed, count) = (number("WEFT_FRAMES_SEED", 0), number("WEFT_FRAMES_CASES", CASES));
    let wrong = judge_all(lanes, seed..seed + count).await;
    println!("{count} connections from seed {seed}");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n\n"));
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs every seed, then those that look wrong again with patience. What remains is wrong: one
/// report for each kind.
async fn judge_all(lanes: Vec<Lane>, seeds: std::ops::Range<u64>) -> Vec<String> {
    let (lanes, next) = (Arc::new(lanes), Arc::new(AtomicU64::new(seeds.start)));
    let tasks: Vec<_> = (0..LANES)
        .map(|lane| {
            let (lanes, next, end) = (lanes.clone(), next.clone(), seeds.end);
            tokio::spawn(async move {
                let mut suspects = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return suspects;
                    }
                    let case = Case::new(seed);
                    if case.run(&lanes[lane], QUIET).await.is_err() {
                        suspects.push(case);
                    }
                }
            })
        })
        .collect();
    let mut wrong = BTreeMap::new();
    for task in tasks {
        for case in task.await.expect("a lane does not panic") {
            if wrong.contains_key(case.what()) && case.what() != CHANGED {
                continue;
            }
            let mut verdict = Ok(());
            for quiet in QUIET_ALONE {
                verdict = case.run(&lanes[0], quiet).await;
                if verdict.is_ok() {
                    break;
                }
            }
            if let Err(why) = verdict {
                let log = case.sent.log.join("\n");
                let key = if case.what() == CHANGED {
                    format!("{CHANGED}{}", case.seed)
                } else {
                    case.what().to_owned()
                };
                wrong.insert(
                    key,
                    format!("{}: {why}\nWEFT_FRAMES_SEED={}\n{log}", case.what(), case.seed),
                );
            }
        }
    }
    wrong.into_values().collect()
}

const CHANGED: &str = "a frame changed at random";

/// One connection: what comes before its oddity, the oddity, and what comes after.
struct Case {
    seed: u64,
    sent: Sent,
    stages: [Vec<u8>; 3],
    changed: bool,
}

/// What one stage came to.
struct Stage {
    /// Whole requests, as texts in order.
    whole: Vec<String>,
    doubtful: Vec<String>,
    gone: bool,
    answers: BTreeMap<u32, Answer>,
}

impl Case {
    /// Every other one is a sound connection that is then changed at random.
    fn new(seed: u64) -> Case {
        let changed = seed % 2 == 1;
        let mut sent = connection(if changed { seed * 4 } else { seed / 2 });
        if changed {
            change(&mut sent, seed);
        }
        let (before, rest) = sent.bytes.split_at(sent.odd.start);
        let (odd, after) = rest.split_at(sent.odd.len());
        let stages = [before.to_vec(), odd.to_vec(), after.to_vec()];
        Case { seed, sent, stages, changed }
    }

    fn what(&self) -> &'static str {
        if self.changed { CHANGED } else { self.sent.oddity.unwrap_or("sound") }
    }

    async fn run(&self, lane: &Lane, quiet: Duration) -> Result<(), String> {
        let [ours, theirs] = lane;
        let (ours, theirs) = tokio::join!(self.stages(ours, quiet), self.stages(theirs, quiet));
        self.judge(&ours, &theirs)
    }

    async fn stages(
        &self,
        (address, backend): &(SocketAddr, Backend),
        quiet: Duration,
    ) -> Vec<Stage> {
        backend.forget();
        let mut talk = Talk::connect(*address).await;
        let mut stages = Vec::new();
        for bytes in &self.stages {
            talk.say(bytes, quiet).await;
            let mut stage = Stage {
                whole: Vec::new(),
                doubtful: Vec::new(),
                gone: talk.gone,
                answers: talk.answers.clone(),
            };
            // A request may be whole in a later stage than it began.
            let (whole, open): (Vec<_>, Vec<_>) =
                backend.all().into_iter().partition(|seen| seen.whole);
            stage.doubtful.extend(
                open.iter().chain(&whole).filter_map(|seen| seen.doubtful).map(str::to_owned),
            );
            stage.whole = whole.iter().map(text).collect();
            stage.whole.sort();
            stages.push(stage);
        }
        stages
    }

    fn says_goaway(&self) -> bool {
        FrameHead::peek(&self.stages[1]).is_some_and(|head| head.kind == FrameType::GoAway)
    }

    /// What is wrong, if anything is.
    fn judge(&self, ours: &[Stage], theirs: &[Stage]) -> Result<(), String> {
        let allowed = DIFFERENT.iter().find(|(_, _, names)| names.contains(&self.what()));
        let allowed = allowed.map(|(_, difference, _)| *difference);
        for (number, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let report = |why: &str| {
                let only = |one: &Stage, other: &Stage| {
                    let there: BTreeSet<_> = other.whole.iter().collect();
                    one.whole
                        .iter()
                        .filter(|text| !there.contains(text))
                        .cloned()
                        .collect::<Vec<_>>()
                };
                Err(format!(
                    "{why} in stage {number}\nWeft: {} requests, gone {}, {:?}\nonly here {:#?}\n\
                     Envoy: {} requests, gone {}, {:?}\nonly there {:#?}",
                    ours.whole.len(),
                    ours.gone,
                    ours.answers,
                    only(ours, theirs),
                    theirs.whole.len(),
                    theirs.gone,
                    theirs.answers,
                    only(theirs, ours),
                ))
            };
            if let Some(why) = ours.doubtful.first() {
                return report(&format!("the application got {why}"));
            }
            // Where both give the connection up, how much came through before is a matter of turns.
            if ours.gone && theirs.gone {
                return Ok(());
            }
            // Who says GOAWAY takes no new streams, and may open some (RFC 9113 §6.8); Envoy takes none.
            // And where Envoy has given the connection up over what is one stream's error here, what
            // follows is refused there.
            let hears_less = self.says_goaway() || (self.changed && theirs.gone);
            if number == 2 && hears_less {
                return Ok(());
            }
            // A change may leave out the authority, too, which is listed above.
            let is_listed = |text: &String| self.changed && text.contains("\"host: \"");
            let unlisted: Vec<_> =
                ours.whole.iter().filter(|text| !is_listed(text)).cloned().collect();
            let (more, fewer) =
                (exceeds(&unlisted, &theirs.whole), exceeds(&theirs.whole, &ours.whole));
            let otherwise = ours.gone != theirs.gone || class(ours) != class(theirs);
            // An error of the stream here, of the connection there.
            let stream_only = theirs.gone && !ours.gone && refuses(ours);
            match (number, allowed) {
                _ if !more && !fewer && !otherwise => {}
                (1, Some(Difference::Laxer)) => return Ok(()),
                _ if more => return report("more reached the application"),
                // What both make of the rest depends on what they made of that frame.
                (1.., _) if self.changed => return Ok(()),
                (1, Some(Difference::Stricter)) => return Ok(()),
                _ if fewer => return report("less reached the application"),
                (1, Some(Difference::Otherwise)) => return Ok(()),
                (1, _) if stream_only => return Ok(()),
                _ => return report("the client was told something else"),
            }
        }
        Ok(())
    }
}

/// Whether something of `one` is not in `other`; both are sorted.
fn exceeds(one: &[String], other: &[String]) -> bool {
    let mut rest = other.iter();
    one.iter().any(|text| rest.by_ref().find(|there| *there >= text) != Some(text))
}

fn refuses(stage: &Stage) -> bool {
    class(stage).values().any(|class| matches!(*class, "refused" | "cut"))
}

/// What became of each stream: answered, refused or neither.
fn class(stage: &Stage) -> BTreeMap<u32, &'static str> {
    let kind = |answer: &Answer| match (answer.reset, answer.status) {
        (Some(code), 0) if code != 0 => "refused",
        (_, 400..500) => "refused",
        (Some(code), _) if code != 0 => "cut",
        (_, status) if answer.ended => {
            if status == 200 {
                "answered"
            } else {
                "failed"
            }
        }
        _ => "open",
    };
    stage.answers.iter().map(|(id, answer)| (*id, kind(answer))).collect()
}

/// A request without what proxies add on their own, and what only says how it is framed.
fn text(seen: &Seen) -> String {
    const OURS: [&str; 8] = [
        "x-forwarded-",
        "x-request-id",
        "x-envoy-",
        "x-b3-",
        "traceparent",
        "transfer-encoding",
        "content-length: 0",
        // Goes with `TE` (RFC 9110 §10.1.4).
        "connection: te",
    ];
    let mut fields: Vec<_> = seen
        .fields
        .iter()
        .filter(|field| !OURS.iter().any(|start| field.to_ascii_lowercase().starts_with(start)))
        .collect();
    fields.sort();
    format!(
        "{} {fields:?} {} bytes {:?}",
        seen.line,
        seen.body.len(),
        &seen.body[..seen.body.len().min(20)]
    )
}

/// Changes one frame after the handshake and makes it the oddity.
fn change(sent: &mut Sent, seed: u64) {
    let mut random = Random(seed ^ 0xc4a6);
    let mut starts = Vec::new();
    let mut at = weft_http::h2::frame::PREFACE.len();
    while let Some(head) = FrameHead::peek(&sent.bytes[at..]) {
        starts.push(at);
        at += head.frame_len();
    }
    if starts.len() < 3 {
        return;
    }
    let at = starts[2 + random.below(starts.len() - 2)];
    let head = FrameHead::peek(&sent.bytes[at..]).expect("it starts there");
    let mut frame: Vec<u8> = sent.bytes[at..at + head.frame_len()].to_vec();
    let what = match random.below(8) {
        0 => {
            frame[4] ^= 1 << random.below(8);
            "flags"
        }
        1 => {
            frame[3] = random.below(11) as u8;
            "kind"
        }
        2 => {
            frame[8] = random.below(30) as u8;
            "stream"
        }
        3 if head.length > 0 => {
            let end = 9 + random.below(head.length as usize);
            frame.truncate(end);
            "shorter"
        }
        4 => {
            frame.extend((0..=random.below(4)).map(|_| 0x82));
            "longer"
        }
        5 => {
            frame = frame.repeat(2);
            "twice"
        }
        _ if head.length > 0 => {
            for _ in 0..=random.below(3) {
                let place = 9 + random.below(head.length as usize);
                frame[place] = random.next() as u8;
            }
            "payload"
        }
        _ => {
            frame.clear();
            "left out"
        }
    };
    if matches!(what, "shorter" | "longer") {
        let length = (frame.len() - 9) as u32;
        frame[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    }
    sent.log.push(format!("-- {what} of the frame at {at}: {}", frame.escape_ascii()));
    sent.bytes.splice(at..at + head.frame_len(), frame.iter().copied());
    sent.odd = at..at + frame.len();
}
