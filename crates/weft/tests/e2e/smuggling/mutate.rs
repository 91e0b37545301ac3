//! Mutations of the chosen inputs, the same for the same seed.

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};

use super::Case;

/// What implementations disagree on.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\r\n ",
    b"\r\n\t",
    b" ",
    b"\t",
    b"\0",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\x80",
    b"0",
    b"3",
    b"-",
    b"+",
    b"0x",
    b"a",
    b"ffffffff",
    b"/",
    b"?",
    b"#",
    b"%",
    b"\"",
    b"\\",
    b"@",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Host: other\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"X: y\r\n",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"GET /hidden HTTP/1.1\r\nHost: app\r\n\r\n",
    b" HTTP/1.1",
    b" HTTP/1.0",
];
/// Longer inputs say nothing more.
const BYTES_MAX: usize = 4096;

/// `count` mutations of `chosen`.
pub fn all(chosen: &[Case], seed: u64, count: usize) -> Vec<Case> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let small: Vec<&Case> = chosen.iter().filter(|case| case.bytes.len() <= BYTES_MAX).collect();
    (0..count)
        .map(|index| {
            let from = small.choose(&mut rng).expect("the corpus is not empty");
            let mut bytes = from.bytes.clone();
            for _ in 0..rng.random_range(1..=3) {
                mutate(&mut bytes, &small, &mut rng);
            }
            Case { name: format!("mutation {index} of {}", from.name), bytes }
        })
        .collect()
}

fn mutate(bytes: &mut Vec<u8>, others: &[&Case], rng: &mut SmallRng) {
    let at = place(bytes, rng);
    let piece = *PIECES.choose(rng).expect("the list is not empty");
    match rng.random_range(0..9) {
        0..=2 => drop(bytes.splice(at..at, piece.iter().copied())),
        3 => {
            let end = (at + rng.random_range(1..=3)).min(bytes.len());
            bytes.splice(at..end, piece.iter().copied());
        }
        4 => {
            let end = (at + rng.random_range(1..=2)).min(bytes.len());
            bytes.drain(at..end);
        }
        5 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.random();
            }
        }
        // A line twice, or in another place.
        6 | 7 => {
            let mut lines: Vec<Vec<u8>> =
                bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if lines.len() > 1 {
                let line = lines[rng.random_range(0..lines.len())].clone();
                lines.insert(rng.random_range(1..=lines.len()), line);
                *bytes = lines.concat();
            }
        }
        _ => {
            let other = &others.choose(rng).expect("the corpus is not empty").bytes;
            let from = place(other, rng);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
    bytes.truncate(BYTES_MAX * 2);
}

/// A position, mostly next to something that means something.
fn place(bytes: &[u8], rng: &mut SmallRng) -> usize {
    let at = rng.random_range(0..=bytes.len());
    if rng.random_range(0..3) == 0 {
        return at;
    }
    let meaning = |byte: &u8| matches!(byte, b'\r' | b'\n' | b':' | b' ' | b';' | b',');
    bytes[at..].iter().position(meaning).map_or(at, |next| at + next + rng.random_range(0..=1))
}
