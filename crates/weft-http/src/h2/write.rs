//! Frames written to the end of a buffer. Values must be in range: they are ours. For the vectored
//! queue, [`OutBuf`] stages what these append and takes large content by reference.

use bytes::Bytes;

use super::error::ErrorCode;
use super::frame::{Flags, FrameHead, FrameType, HEAD_LEN, MAX_31};
use super::settings::Setting;
use crate::h1::OutBuf;

/// Appends a frame's nine bytes.
pub fn head(out: &mut Vec<u8>, kind: FrameType, flags: u8, stream: u32, length: usize) {
    debug_assert!(length < 1 << 24 && stream <= MAX_31);
    let head = FrameHead { length: length as u32, kind, flags: Flags(flags), stream };
    out.extend_from_slice(&head.to_bytes());
}

/// Queues one DATA frame; large content goes out by reference. The caller keeps to windows and to
/// the peer's SETTINGS_MAX_FRAME_SIZE.
pub fn data(out: &mut OutBuf, stream: u32, content: Bytes, end_stream: bool) {
    let flags = if end_stream { Flags::END_STREAM } else { 0 };
    out.stage_with(|staging| head(staging, FrameType::Data, flags, stream, content.len()));
    out.push(content);
}

/// Appends a HEADERS frame whose field block `encode` appends, and as many CONTINUATION frames as
/// the peer's SETTINGS_MAX_FRAME_SIZE asks for.
pub fn headers(
    out: &mut Vec<u8>,
    stream: u32,
    end_stream: bool,
    frame_size_max: u32,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_LEN]);
    encode(out);
    let block_len = out.len() - start - HEAD_LEN;
    let frame_max = frame_size_max as usize;
    let end = if end_stream { Flags::END_STREAM } else { 0 };
    if block_len <= frame_max {
        let flags = Flags(end | Flags::END_HEADERS);
        let head = FrameHead { length: block_len as u32, kind: FrameType::Headers, flags, stream };
        out[start..start + HEAD_LEN].copy_from_slice(&head.to_bytes());
        return;
    }
    split_block(out, start, end, stream, frame_max);
}

/// The rare block that needs CONTINUATION: written again in pieces.
#[cold]
fn split_block(out: &mut Vec<u8>, start: usize, end_stream: u8, stream: u32, frame_max: usize) {
    let block = out.split_off(start + HEAD_LEN);
    out.truncate(start);
    let mut pieces = block.chunks(frame_max).enumerate().peekable();
    while let Some((index, piece)) = pieces.next() {
        let (kind, flags) = match index {
            0 => (FrameType::Headers, end_stream),
            _ => (FrameType::Continuation, 0),
        };
        let last = if pieces.peek().is_none() { Flags::END_HEADERS } else { 0 };
        head(out, kind, flags | last, stream, piece.len());
        out.extend_from_slice(piece);
    }
}

/// Appends a RST_STREAM.
pub fn rst_stream(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    head(out, FrameType::RstStream, 0, stream, 4);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Appends a SETTINGS frame.
pub fn settings(out: &mut Vec<u8>, settings: impl Iterator<Item = Setting>) {
    let start = out.len();
    head(out, FrameType::Settings, 0, 0, 0);
    for setting in settings {
        let (id, value) = setting.as_pair();
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
    let length = (out.len() - start - HEAD_LEN) as u32;
    out[start..start + 3].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// Appends the acknowledgement of the peer's SETTINGS.
pub fn settings_ack(out: &mut Vec<u8>) {
    head(out, FrameType::Settings, Flags::ACK, 0, 0);
}

/// Appends a PING, or the answer to one.
pub fn ping(out: &mut Vec<u8>, ack: bool, opaque: [u8; 8]) {
    head(out, FrameType::Ping, if ack { Flags::ACK } else { 0 }, 0, 8);
    out.extend_from_slice(&opaque);
}

/// Appends a GOAWAY with debug data for whoever reads a capture.
pub fn goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    head(out, FrameType::GoAway, 0, 0, 8 + debug.len());
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Appends a WINDOW_UPDATE; stream 0 is the connection. `increment` is 1 to 2^31 − 1.
pub fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    debug_assert!((1..=MAX_31).contains(&increment));
    head(out, FrameType::WindowUpdate, 0, stream, 4);
    out.extend_from_slice(&increment.to_be_bytes());
}
