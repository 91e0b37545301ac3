//! What attackers send: an opening, then rounds without end.

use super::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, NEW_WINDOW, PRIORITY, RST_STREAM, SETTINGS, WHOLE,
    WINDOW_UPDATE, frame, get, open, opening, ping, request, setting,
};

/// One attack.
#[derive(Clone)]
pub struct Attack {
    pub name: &'static str,
    pub opening: Vec<u8>,
    /// The bytes of each round.
    pub round: fn(u32) -> Vec<u8>,
    /// The attacker takes what the proxy sends.
    pub reads: bool,
    /// It must end with the attacker thrown out; else it only must cost little.
    pub ends: bool,
}

/// Frames in one round.
const BATCH: u32 = 200;

fn batch(round: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (round * BATCH..(round + 1) * BATCH).flat_map(each).collect()
}

/// The stream of the `index`th request; they start behind the one of the opening.
fn stream(index: u32) -> u32 {
    3 + 2 * index
}

fn rapid_reset(round: u32) -> Vec<u8> {
    batch(round, |index| {
        [get(stream(index)), frame(RST_STREAM, 0, stream(index), &[0, 0, 0, 8])].concat()
    })
}

fn made_you_reset(round: u32) -> Vec<u8> {
    batch(round, |index| {
        let id = stream(index);
        [open(id), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat()
    })
}

fn continuation(round: u32) -> Vec<u8> {
    let first = match round {
        0 => frame(HEADERS, 0, 3, &request()),
        _ => Vec::new(),
    };
    [first, batch(round, |_| frame(CONTINUATION, 0, 3, &[0x00, 1, b'x', 1, b'y']))].concat()
}

fn settings(round: u32) -> Vec<u8> {
    batch(round, |index| setting(NEW_WINDOW, 65_535 + index % 2))
}

fn pings(round: u32) -> Vec<u8> {
    batch(round, |_| ping([1; 8]))
}

fn empty_data(round: u32) -> Vec<u8> {
    batch(round, |_| frame(DATA, 0, 1, &[]))
}

fn window_updates(round: u32) -> Vec<u8> {
    batch(round, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))
}

/// A tree that turns in circles.
fn cycles(round: u32) -> Vec<u8> {
    batch(round, |index| {
        let on = (stream((index + 1) % 50) | 1 << 31).to_be_bytes();
        frame(PRIORITY, 0, stream(index % 50), &[&on[..], &[index as u8]].concat())
    })
}

fn tiny_windows(round: u32) -> Vec<u8> {
    let id = 3 + 2 * round;
    let crumbs = (0..20).flat_map(|_| frame(WINDOW_UPDATE, 0, id, &[0, 0, 0, 1]));
    get(id).into_iter().chain(crumbs).collect()
}

fn requests(round: u32) -> Vec<u8> {
    batch(round, |index| get(stream(index)))
}

/// A large entry into the table, then named thousands of times.
fn hpack_bomb(round: u32) -> Vec<u8> {
    let mut entry = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    entry.resize(entry.len() + 4000, b'x');
    let mut block = request();
    block.extend(entry);
    block.resize(16_000, 0xbe);
    frame(HEADERS, WHOLE, 3 + 2 * round, &block)
}

/// A head over every proxy's limit, in many frames.
fn large_heads(round: u32) -> Vec<u8> {
    let mut line = vec![0x00, 1, b'b', 0x7f, 0xe1, 0x7b];
    line.resize(line.len() + 127 + 0x61 + (0x7b << 7), b'x');
    let id = 3 + 2 * round;
    let mut out = frame(HEADERS, 1, id, &request());
    for part in 0..5 {
        let flags = if part == 4 { END_HEADERS } else { 0 };
        out.extend(frame(CONTINUATION, flags, id, &line[..line.len().min(16_384)]));
    }
    out
}

/// The last stream there is, at once.
fn last_stream(round: u32) -> Vec<u8> {
    match round {
        0 => get((1 << 31) - 1),
        _ => get((1 << 31) - 1 - 2 * round),
    }
}

/// All attacks.
pub fn all() -> Vec<Attack> {
    let usual = opening(&[]);
    let attack =
        |name, round, ends| Attack { name, opening: usual.clone(), round, reads: true, ends };
    let with_stream = [usual.clone(), open(1)].concat();
    let small = [opening(&[0, 4, 0, 0, 0, 1]), frame(SETTINGS, 0, 0, &[])].concat();
    vec![
        attack("rapid reset", rapid_reset, true),
        attack("made you reset", made_you_reset, true),
        attack("CONTINUATION flood", continuation, true),
        attack("SETTINGS flood", settings, true),
        attack("PING flood", pings, true),
        Attack { opening: with_stream, ..attack("empty DATA flood", empty_data, true) },
        attack("WINDOW_UPDATE flood", window_updates, true),
        attack("PRIORITY cycles", cycles, true),
        Attack { opening: small, ..attack("1-byte windows", tiny_windows, false) },
        Attack { reads: false, ..attack("never reads", requests, false) },
        attack("HPACK bomb", hpack_bomb, false),
        attack("large heads", large_heads, false),
        attack("stream-id exhaustion", last_stream, true),
    ]
}
