//! Generated frames and field blocks: sound ones, damaged ones and noise.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::h2_checks;

/// Lines a client might send, so that blocks are often sound heads.
const FIELDS: &[(&str, &str)] = &[
    (":method", "GET"),
    (":method", "PATCH"),
    (":scheme", "https"),
    (":path", "/"),
    (":path", "/a/b?c=d"),
    (":authority", "a.b:80"),
    (":status", "200"),
    (":status", "418"),
    ("host", "a.b:80"),
    ("te", "trailers"),
    ("connection", "close"),
    ("content-length", "17"),
    ("x-a", ""),
    ("x-a", "some value of some length, to fill tables"),
    ("X-A", "1"),
    ("x-b", "\u{80}\n"),
];

#[derive(Clone, Debug)]
enum Step {
    Field(usize, u8, bool),
    Index(u8),
    Resize(u8),
    Noise(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..FIELDS.len(), select(&[0x40_u8, 0x00, 0x10][..]), any::<bool>())
            .prop_map(|(field, pattern, coded)| Step::Field(field, pattern, coded)),
        4 => (1_u8..80).prop_map(Step::Index),
        1 => any::<u8>().prop_map(Step::Resize),
        1 => vec(any::<u8>(), 0..4).prop_map(Step::Noise),
    ]
}

fn block(steps: Vec<Step>) -> Vec<u8> {
    let mut block = Vec::new();
    for step in steps {
        match step {
            Step::Field(field, pattern, coded) => {
                block.push(pattern);
                for text in [FIELDS[field].0, FIELDS[field].1] {
                    string(&mut block, text, coded);
                }
            }
            Step::Index(index) => block.push(0x80 | index),
            Step::Resize(size) => block.extend_from_slice(&[0x3f, size & 0x7f]),
            Step::Noise(bytes) => block.extend_from_slice(&bytes),
        }
    }
    block.truncate(255);
    block
}

fn string(block: &mut Vec<u8>, text: &str, coded: bool) {
    match (coded, text) {
        // The one string short enough to code by hand: five bits and padding.
        (true, "1") => block.extend_from_slice(&[0x81, 0b0000_1111]),
        _ => {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
}

/// The payload of a frame: a sound request or response, or anything.
fn block_or_noise() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(b"\x82\x86\x84\x41\x01a".to_vec()),
        1 => Just(b"\x83\x86\x84\x41\x01a\x0f\x0d\x013".to_vec()),
        2 => Just(b"\x88".to_vec()),
        1 => Just(b"\x08\x03103".to_vec()),
        1 => Just(b"\x40\x01x\x01y".to_vec()),
        3 => vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoders_agree(choice in any::<u8>(), blocks in vec(vec(step(), 0..12), 0..6)) {
        let mut data = vec![choice];
        for steps in blocks {
            let block = block(steps);
            data.push(block.len() as u8);
            data.extend_from_slice(&block);
        }
        h2_checks::hpack_decode(&data);
    }

    #[test]
    fn blocks_survive_both_ways(
        sections in vec((any::<[u8; 3]>(), vec(("[a-z]{1,12}", "[!-~]{0,40}"), 0..8)), 0..12)
    ) {
        let mut data = Vec::new();
        for (control, fields) in sections {
            data.extend_from_slice(&control);
            for (name, value) in fields {
                for text in [name, value] {
                    data.push(text.len() as u8);
                    data.extend_from_slice(text.as_bytes());
                }
            }
            data.push(b'\n');
        }
        h2_checks::hpack_roundtrip(&data);
    }

    #[test]
    fn frames_read_and_write(
        frames in vec((0_u8..12, any::<u8>(), 0_u8..3, vec(any::<u8>(), 0..20)), 0..6)
    ) {
        let mut data = Vec::new();
        for (kind, flags, stream, payload) in frames {
            data.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream]);
            data.extend_from_slice(&payload);
        }
        h2_checks::frames(&data);
    }

    #[test]
    fn connections_take_any_frames(
        choice in any::<u8>(),
        frames in vec(
            (0_u8..11, select(&[0_u8, 1, 4, 5, 9, 0x2d, 255][..]), 0_u8..8, block_or_noise()),
            0..12,
        )
    ) {
        let mut data = vec![choice];
        for (kind, flags, stream, payload) in frames {
            // Mostly with the length that the type asks for.
            let len = match kind {
                2 => 5,
                3 | 8 => 4,
                6 => 8,
                4 => payload.len() / 6 * 6,
                _ => payload.len(),
            };
            let payload: Vec<u8> = payload.into_iter().chain([0; 8]).take(len).collect();
            data.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream]);
            data.extend_from_slice(&payload);
        }
        h2_checks::connection(&data);
    }

    #[test]
    fn noise_breaks_nothing(data in vec(any::<u8>(), 0..300)) {
        h2_checks::frames(&data);
        h2_checks::hpack_decode(&data);
        h2_checks::hpack_roundtrip(&data);
        h2_checks::connection(&data);
    }
}
