//! Single frames taken apart (RFC 9113 §§4, 6). [`FrameHead::check`] holds every rule that needs
//! nothing but the nine bytes; the payload readers hold those that need the payload. Rules about
//! the order of frames belong to the connection.

use std::ops::Range;

use super::error::{ErrorCode, FrameError};

/// Bytes before every payload.
pub const HEAD_LEN: usize = 9;
/// What every client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest stream identifier and largest window.
pub const MAX_31: u32 = (1 << 31) - 1;

/// The nine bytes before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Of the payload, in bytes; below 2^24.
    pub length: u32,
    pub kind: FrameType,
    pub flags: Flags,
    /// Without the reserved bit.
    pub stream: u32,
}

/// The types of RFC 9113 §6. Others are to be ignored (§5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown(u8),
}

/// Flags as sent; which bits mean something depends on the type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// DATA, HEADERS: the last frame of this side.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS, PING.
    pub const ACK: u8 = 0x1;
    /// HEADERS, PUSH_PROMISE, CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS, PUSH_PROMISE.
    pub const PADDED: u8 = 0x8;
    /// HEADERS.
    pub const PRIORITY: u8 = 0x20;

    /// Whether `bit` is set.
    pub fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

impl FrameType {
    /// The type with this number.
    pub fn from_byte(byte: u8) -> FrameType {
        match byte {
            0x0 => FrameType::Data,
            0x1 => FrameType::Headers,
            0x2 => FrameType::Priority,
            0x3 => FrameType::RstStream,
            0x4 => FrameType::Settings,
            0x5 => FrameType::PushPromise,
            0x6 => FrameType::Ping,
            0x7 => FrameType::GoAway,
            0x8 => FrameType::WindowUpdate,
            0x9 => FrameType::Continuation,
            other => FrameType::Unknown(other),
        }
    }

    /// Its number on the wire.
    pub fn as_byte(self) -> u8 {
        match self {
            FrameType::Data => 0x0,
            FrameType::Headers => 0x1,
            FrameType::Priority => 0x2,
            FrameType::RstStream => 0x3,
            FrameType::Settings => 0x4,
            FrameType::PushPromise => 0x5,
            FrameType::Ping => 0x6,
            FrameType::GoAway => 0x7,
            FrameType::WindowUpdate => 0x8,
            FrameType::Continuation => 0x9,
            FrameType::Unknown(byte) => byte,
        }
    }
}

impl FrameHead {
    /// Reads the nine bytes. Every value of them is a frame head.
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> FrameHead {
        let [l2, l1, l0, kind, flags, stream @ ..] = *bytes;
        FrameHead {
            length: u32::from_be_bytes([0, l2, l1, l0]),
            kind: FrameType::from_byte(kind),
            flags: Flags(flags),
            stream: u32::from_be_bytes(stream) & MAX_31,
        }
    }

    /// The nine bytes.
    pub fn to_bytes(self) -> [u8; HEAD_LEN] {
        let [_, l2, l1, l0] = self.length.to_be_bytes();
        let [s3, s2, s1, s0] = self.stream.to_be_bytes();
        [l2, l1, l0, self.kind.as_byte(), self.flags.0, s3, s2, s1, s0]
    }

    /// The head at the front of `buf`, once it is there.
    pub fn peek(buf: &[u8]) -> Option<FrameHead> {
        buf.first_chunk().map(FrameHead::parse)
    }

    /// Head and payload, in bytes.
    pub fn frame_len(&self) -> usize {
        HEAD_LEN + self.length as usize
    }

    /// DATA and HEADERS only.
    pub fn end_stream(&self) -> bool {
        matches!(self.kind, FrameType::Data | FrameType::Headers)
            && self.flags.has(Flags::END_STREAM)
    }

    /// HEADERS, PUSH_PROMISE and CONTINUATION only.
    pub fn end_headers(&self) -> bool {
        self.flags.has(Flags::END_HEADERS)
    }

    /// SETTINGS and PING only.
    pub fn is_ack(&self) -> bool {
        self.flags.has(Flags::ACK)
    }

    /// What can be said before the payload is there: size against our SETTINGS_MAX_FRAME_SIZE,
    /// fixed sizes, and whether the frame may name a stream or the connection.
    ///
    /// # Errors
    /// [`FrameError`] with the code of RFC 9113 §6. Too large frames always end the connection,
    /// which §4.2 allows: nobody reads on to find the next frame.
    pub fn check(&self, frame_size_max: u32) -> Result<(), FrameError> {
        if self.length > frame_size_max {
            return Err(SIZE);
        }
        let on_stream = self.stream != 0;
        match (self.kind, self.length, on_stream) {
            (FrameType::Unknown(_) | FrameType::WindowUpdate, _, _) => {}
            (FrameType::Settings | FrameType::Ping | FrameType::GoAway, _, on_stream) => {
                if on_stream {
                    return Err(STREAM_ID);
                }
            }
            (_, _, false) => return Err(STREAM_ID),
            (_, _, true) => {}
        }
        let size_is_right = match self.kind {
            FrameType::RstStream | FrameType::WindowUpdate => self.length == 4,
            FrameType::Priority if self.length != 5 => {
                return Err(FrameError::stream(ErrorCode::FRAME_SIZE_ERROR, "frame_size"));
            }
            FrameType::Settings if self.is_ack() => self.length == 0,
            FrameType::Settings => self.length.is_multiple_of(6),
            FrameType::Ping => self.length == 8,
            FrameType::GoAway => self.length >= 8,
            _ => true,
        };
        if size_is_right { Ok(()) } else { Err(SIZE) }
    }
}

const SIZE: FrameError = FrameError::connection(ErrorCode::FRAME_SIZE_ERROR, "frame_size");
const STREAM_ID: FrameError = FrameError::connection(ErrorCode::PROTOCOL_ERROR, "stream_id");
const PADDING: FrameError = FrameError::connection(ErrorCode::PROTOCOL_ERROR, "padding");

/// Where the content of a DATA payload is; the rest is padding (which flow control counts, too).
///
/// # Errors
/// When the padding is longer than the payload.
pub fn data_content(head: &FrameHead, payload: &[u8]) -> Result<Range<usize>, FrameError> {
    unpadded(head, payload)
}

/// A HEADERS payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadersPayload {
    /// Where the field block fragment is.
    pub fragment: Range<usize>,
    /// The priority names the stream itself. The block must be decoded all the same; then the
    /// stream is to be reset with PROTOCOL_ERROR (RFC 7540 §5.3.1).
    pub self_dependent: bool,
}

/// Strips padding and the deprecated priority (RFC 9113 §6.2).
///
/// # Errors
/// When padding or priority are longer than the payload.
pub fn headers_payload(head: &FrameHead, payload: &[u8]) -> Result<HeadersPayload, FrameError> {
    let mut fragment = unpadded(head, payload)?;
    let mut self_dependent = false;
    if head.flags.has(Flags::PRIORITY) {
        let Some((dependency, _)) = payload[fragment.clone()].split_first_chunk() else {
            return Err(SIZE);
        };
        if fragment.len() < 5 {
            return Err(SIZE);
        }
        self_dependent = u32::from_be_bytes(*dependency) & MAX_31 == head.stream;
        fragment.start += 5;
    }
    Ok(HeadersPayload { fragment, self_dependent })
}

/// Whether a PRIORITY payload is fit to be ignored (RFC 9113 §5.3.2, 6.3).
///
/// # Errors
/// On the stream, when it depends on itself (RFC 7540 §5.3.1).
pub fn check_priority(head: &FrameHead, payload: &[u8]) -> Result<(), FrameError> {
    match payload.first_chunk() {
        Some(dependency) if u32::from_be_bytes(*dependency) & MAX_31 != head.stream => Ok(()),
        Some(_) => Err(FrameError::stream(ErrorCode::PROTOCOL_ERROR, "self_dependency")),
        None => Err(SIZE),
    }
}

/// The code of a RST_STREAM.
///
/// # Errors
/// When the payload is not four bytes.
pub fn rst_stream(payload: &[u8]) -> Result<ErrorCode, FrameError> {
    match payload.try_into() {
        Ok(bytes) => Ok(ErrorCode(u32::from_be_bytes(bytes))),
        Err(_) => Err(SIZE),
    }
}

/// The opaque bytes of a PING.
///
/// # Errors
/// When the payload is not eight bytes.
pub fn ping(payload: &[u8]) -> Result<[u8; 8], FrameError> {
    payload.try_into().map_err(|_| SIZE)
}

/// A GOAWAY; what follows the eight bytes is debug data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway {
    pub last_stream: u32,
    pub code: ErrorCode,
}

/// Reads a GOAWAY.
///
/// # Errors
/// When the payload is shorter than eight bytes.
pub fn goaway(payload: &[u8]) -> Result<GoAway, FrameError> {
    let Some(([l3, l2, l1, l0, code @ ..], _)) = payload.split_first_chunk::<8>() else {
        return Err(SIZE);
    };
    Ok(GoAway {
        last_stream: u32::from_be_bytes([*l3, *l2, *l1, *l0]) & MAX_31,
        code: ErrorCode(u32::from_be_bytes(*code)),
    })
}

/// The increment of a WINDOW_UPDATE, 1 to 2^31 − 1.
///
/// # Errors
/// When it is zero: of the stream, or of the connection on stream 0 (RFC 9113 §6.9).
pub fn window_update(head: &FrameHead, payload: &[u8]) -> Result<u32, FrameError> {
    let bytes = payload.try_into().map_err(|_| SIZE)?;
    match (u32::from_be_bytes(bytes) & MAX_31, head.stream) {
        (0, 0) => Err(FrameError::connection(ErrorCode::PROTOCOL_ERROR, "zero_increment")),
        (0, _) => Err(FrameError::stream(ErrorCode::PROTOCOL_ERROR, "zero_increment")),
        (increment, _) => Ok(increment),
    }
}

fn unpadded(head: &FrameHead, payload: &[u8]) -> Result<Range<usize>, FrameError> {
    if !head.flags.has(Flags::PADDED) {
        return Ok(0..payload.len());
    }
    match payload {
        [] => Err(SIZE),
        [padding, rest @ ..] if usize::from(*padding) <= rest.len() => {
            Ok(1..payload.len() - usize::from(*padding))
        }
        [..] => Err(PADDING),
    }
}

#[cfg(test)]
mod tests;
