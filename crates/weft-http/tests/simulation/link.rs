//! One direction of a transport. Frames are taken apart and put together again in other ways that
//! mean the same; frames that change nothing in the end are added. Acknowledgements of SETTINGS
//! that only the link knows of are taken out again on the way back.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use weft_http::h2::conn::{Config, Role};
use weft_http::h2::frame::{Flags, HEAD_LEN, PREFACE};
use weft_http::h2::{FrameHead, FrameType, Setting, write};

use crate::plan::Random;

/// What the transport holds before its writer has to wait. Bytes.
const CAPACITY: usize = 64 * 1024;

pub struct Link {
    /// As written by the sender, not yet whole frames.
    raw: BytesMut,
    /// On its way.
    wire: BytesMut,
    /// The preface of a client is still to pass.
    preface: bool,
    /// Nothing but CONTINUATION may follow.
    in_block: bool,
    frames: u64,
    /// For each SETTINGS sent this way and not acknowledged: whether the link added it.
    settings: VecDeque<bool>,
    /// What the sender allows: windows must come back to it, and streams stay below.
    stream_window: u32,
    streams_max: u32,
    from: Role,
}

impl Link {
    pub fn new(from: Role, sender: &Config) -> Link {
        Link {
            raw: BytesMut::new(),
            wire: BytesMut::new(),
            preface: from == Role::Client,
            in_block: false,
            frames: 0,
            settings: VecDeque::new(),
            stream_window: sender.stream_window_bytes,
            streams_max: sender.streams_max,
            from,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    pub fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.wire.len())
    }

    /// Bytes off the wire, of any number.
    pub fn take(&mut self, random: &mut Random) -> BytesMut {
        let most = match random.below(4) {
            0 => 1 + random.below(12),
            1 => 1 + random.below(2_000),
            _ => self.wire.len(),
        };
        self.wire.split_to(most.min(self.wire.len()))
    }

    /// Takes bytes of the sender. `back` is the other direction.
    pub fn put(&mut self, bytes: &[u8], back: &mut Link, random: &mut Random) {
        self.raw.extend_from_slice(bytes);
        if self.preface && self.raw.len() >= PREFACE.len() {
            self.preface = false;
            let preface = self.raw.split_to(PREFACE.len());
            self.wire.extend_from_slice(&preface);
        }
        while !self.preface
            && let Some(head) = FrameHead::peek(&self.raw)
            && self.raw.len() >= head.frame_len()
        {
            let mut frame = self.raw.split_to(head.frame_len());
            frame.advance(HEAD_LEN);
            self.pass(head, &frame, back, random);
        }
    }

    fn pass(&mut self, head: FrameHead, payload: &[u8], back: &mut Link, random: &mut Random) {
        let mut out = Vec::new();
        match head.kind {
            FrameType::Settings if head.is_ack() => {
                // The sender acknowledges what came from the other side.
                if back.settings.pop_front() != Some(true) {
                    write::settings_ack(&mut out);
                }
            }
            FrameType::Settings => {
                self.settings.push_back(false);
                plain(&mut out, head, payload);
            }
            FrameType::Data if payload.len() > 1 && random.one_in(4) => {
                let (first, second) = payload.split_at(1 + random.below(payload.len() - 1));
                plain(&mut out, FrameHead { flags: Flags(0), ..head }, first);
                plain(&mut out, head, second);
            }
            FrameType::Headers if random.one_in(4) => split_block(&mut out, head, payload, random),
            _ => plain(&mut out, head, payload),
        }
        if matches!(head.kind, FrameType::Headers | FrameType::Continuation) {
            self.in_block = !head.end_headers();
        }
        self.frames += 1;
        if self.frames > 1 && !self.in_block && random.one_in(50) {
            self.add(&mut out, random);
        }
        self.wire.extend_from_slice(&out);
    }

    /// A frame that the sender did not send and might have.
    fn add(&mut self, out: &mut Vec<u8>, random: &mut Random) {
        let some_stream = 1 + random.below(300) as u32;
        match random.below(5) {
            0 => write::head(out, FrameType::Unknown(0x21), 0xff, some_stream, 0),
            1 => {
                write::head(out, FrameType::Priority, 0, some_stream, 5);
                out.extend_from_slice(&[0x80, 0, 7, 0, 200]);
            }
            2 => {
                let size = Setting::HeaderTableSize(random.below(6_000) as u32);
                self.add_settings(out, &[size, Setting::Unknown(0x99, 1)]);
            }
            3 if self.from == Role::Server => {
                let most = Setting::MaxConcurrentStreams(
                    1 + random.below(self.streams_max as usize) as u32,
                );
                self.add_settings(out, &[most]);
            }
            _ => {
                // Windows may become negative, and come back.
                let lower = random.below(self.stream_window as usize) as u32;
                self.add_settings(out, &[Setting::InitialWindowSize(lower)]);
                self.add_settings(out, &[Setting::InitialWindowSize(self.stream_window)]);
            }
        }
    }

    fn add_settings(&mut self, out: &mut Vec<u8>, settings: &[Setting]) {
        self.settings.push_back(true);
        write::settings(out, settings.iter().copied());
    }
}

fn plain(out: &mut Vec<u8>, head: FrameHead, payload: &[u8]) {
    write::head(out, head.kind, head.flags.0, head.stream, payload.len());
    out.extend_from_slice(payload);
}

/// HEADERS with padding and priority, and some CONTINUATION.
fn split_block(out: &mut Vec<u8>, head: FrameHead, payload: &[u8], random: &mut Random) {
    let end_headers = head.flags.0 & Flags::END_HEADERS;
    let rest = head.flags.0 & Flags::END_STREAM;
    let mut cuts = [random.below(payload.len() + 1), random.below(payload.len() + 1)];
    cuts.sort_unstable();
    let padding = random.below(20);
    let mut first = vec![padding as u8, 0, 0, 0, 0, 15];
    first.extend_from_slice(&payload[..cuts[0]]);
    first.resize(first.len() + padding, 0);
    let flags = Flags(rest | Flags::PADDED | Flags::PRIORITY);
    plain(out, FrameHead { flags, ..head }, &first);
    let more = FrameHead { kind: FrameType::Continuation, flags: Flags(0), ..head };
    plain(out, more, &payload[cuts[0]..cuts[1]]);
    plain(out, FrameHead { flags: Flags(end_headers), ..more }, &payload[cuts[1]..]);
}
