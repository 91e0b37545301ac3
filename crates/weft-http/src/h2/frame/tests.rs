use bytes::{Buf, Bytes};

use super::super::error::{ErrorCode, FrameError, Scope};
use super::super::settings::{Setting, Settings, parse_settings};
use super::super::write;
use super::{
    Flags, FrameHead, FrameType, GoAway, HEAD_LEN, check_priority, data_content, goaway,
    headers_payload, ping, rst_stream, window_update,
};
use crate::h1::OutBuf;

fn frames(mut bytes: &[u8]) -> Vec<(FrameHead, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(head) = FrameHead::peek(bytes) {
        assert_eq!(head.check(1 << 14), Ok(()), "{head:?}");
        frames.push((head, bytes[HEAD_LEN..head.frame_len()].to_vec()));
        bytes = &bytes[head.frame_len()..];
    }
    assert!(bytes.is_empty());
    frames
}

#[test]
fn what_is_written_reads_back() {
    let mut out = Vec::new();
    write::rst_stream(&mut out, 5, ErrorCode::CANCEL);
    write::ping(&mut out, true, *b"12345678");
    write::goaway(&mut out, 7, ErrorCode(99), b"why");
    write::window_update(&mut out, 3, 1000);
    let changed = Settings { max_frame_size: 1 << 20, enable_push: false, ..Settings::default() };
    write::settings(&mut out, changed.changes_from(&Settings::default()));
    write::settings_ack(&mut out);
    let frames = frames(&out);
    assert_eq!(rst_stream(&frames[0].1), Ok(ErrorCode::CANCEL));
    assert!(frames[1].0.is_ack());
    assert_eq!(ping(&frames[1].1), Ok(*b"12345678"));
    assert_eq!(goaway(&frames[2].1), Ok(GoAway { last_stream: 7, code: ErrorCode(99) }));
    assert_eq!(window_update(&frames[3].0, &frames[3].1), Ok(1000));
    let mut settings = Settings::default();
    for setting in parse_settings(&frames[4].1) {
        settings.apply(setting.unwrap());
    }
    assert_eq!(settings, changed);
    assert!(frames[5].0.is_ack() && frames[5].1.is_empty());
}

#[test]
fn a_block_larger_than_a_frame_goes_on_in_continuations() {
    for (len, count) in [(0, 1), (10, 1), (11, 2), (20, 2), (25, 3)] {
        let block: Vec<u8> = (0..len).collect();
        let mut out = b"before".to_vec();
        write::headers(&mut out, 1, true, 10, |out| out.extend_from_slice(&block));
        let frames = frames(&out[6..]);
        assert_eq!(frames.len(), count);
        assert!(frames[0].0.end_stream());
        let back: Vec<u8> = frames.iter().flat_map(|(_, payload)| payload.clone()).collect();
        assert_eq!(back, block);
        for (index, (head, _)) in frames.iter().enumerate() {
            assert_eq!(head.end_headers(), index + 1 == count);
            assert_eq!(head.kind == FrameType::Headers, index == 0);
        }
    }
}

#[test]
fn large_content_is_not_copied() {
    let content = Bytes::from(vec![7; 10_000]);
    let mut out = OutBuf::new();
    write::data(&mut out, 1, content.clone(), true);
    assert_eq!(out.len(), HEAD_LEN + 10_000);
    out.advance(HEAD_LEN);
    assert_eq!(out.chunk().as_ptr(), content.as_ptr());
}

#[track_caller]
fn refused(kind: FrameType, flags: u8, stream: u32, length: u32, code: ErrorCode, scope: Scope) {
    let error = FrameHead { length, kind, flags: Flags(flags), stream }.check(1 << 14).unwrap_err();
    assert_eq!((error.code, error.scope), (code, scope), "{kind:?}");
}

#[test]
fn heads_keep_to_sizes_and_streams() {
    use FrameType::{
        Continuation, Data, GoAway, Headers, Ping, Priority, PushPromise, RstStream, Settings,
        Unknown, WindowUpdate,
    };
    let (size, protocol) = (ErrorCode::FRAME_SIZE_ERROR, ErrorCode::PROTOCOL_ERROR);
    for kind in [Data, Headers, Continuation, PushPromise, RstStream, Priority] {
        let length = if kind == Priority { 5 } else { 4 };
        refused(kind, 0, 0, length, protocol, Scope::Connection);
    }
    for (kind, length) in [(Settings, 6), (Ping, 8), (GoAway, 8)] {
        refused(kind, 0, 1, length, protocol, Scope::Connection);
    }
    for (kind, length) in [(Settings, 7), (Ping, 9), (GoAway, 7), (WindowUpdate, 5)] {
        refused(kind, 0, 0, length, size, Scope::Connection);
    }
    refused(Settings, Flags::ACK, 0, 6, size, Scope::Connection);
    refused(RstStream, 0, 1, 3, size, Scope::Connection);
    refused(Priority, 0, 1, 4, size, Scope::Stream);
    refused(Data, 0, 1, (1 << 14) + 1, size, Scope::Connection);
    refused(Unknown(77), 0, 0, (1 << 14) + 1, size, Scope::Connection);
    let unknown = FrameHead { length: 3, kind: Unknown(77), flags: Flags(255), stream: 0 };
    assert_eq!(unknown.check(1 << 14), Ok(()));
    let reserved_bit = FrameHead::parse(&[0, 0, 0, 0, 1, 0x80, 0, 0, 1]);
    assert_eq!((reserved_bit.stream, reserved_bit.end_stream()), (1, true));
}

fn head(kind: FrameType, flags: u8, payload: &[u8]) -> FrameHead {
    FrameHead { length: payload.len() as u32, kind, flags: Flags(flags), stream: 1 }
}

#[test]
fn padding_and_priority_are_taken_off() {
    let data = |payload: &[u8]| {
        data_content(&head(FrameType::Data, Flags::PADDED, payload), payload).map_err(|e| e.code)
    };
    assert_eq!(data(&[0]), Ok(1..1));
    assert_eq!(data(&[2, 9, 0, 0]), Ok(1..2));
    assert_eq!(data(&[3, 0, 0, 0]), Ok(1..1));
    assert_eq!(data(&[4, 0, 0, 0]), Err(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(data(&[]), Err(ErrorCode::FRAME_SIZE_ERROR));
    let headers = |flags: u8, payload: &[u8]| {
        headers_payload(&head(FrameType::Headers, flags, payload), payload)
            .map(|got| (got.fragment, got.self_dependent))
            .map_err(|error| error.code)
    };
    assert_eq!(headers(0, &[1, 2]), Ok((0..2, false)));
    assert_eq!(headers(Flags::PRIORITY, &[0, 0, 0, 3, 9, 1]), Ok((5..6, false)));
    assert_eq!(headers(Flags::PRIORITY, &[0x80, 0, 0, 1, 9]), Ok((5..5, true)));
    assert_eq!(headers(Flags::PRIORITY, &[0, 0, 0, 3]), Err(ErrorCode::FRAME_SIZE_ERROR));
    let both = Flags::PRIORITY | Flags::PADDED;
    assert_eq!(headers(both, &[1, 0, 0, 0, 3, 9, 1, 0]), Ok((6..7, false)));
    assert_eq!(headers(both, &[2, 0, 0, 0, 3, 9, 0]), Err(ErrorCode::FRAME_SIZE_ERROR));
}

#[test]
fn payload_values_keep_to_their_ranges() {
    let on = |stream: u32| FrameHead {
        length: 4,
        kind: FrameType::WindowUpdate,
        flags: Flags(0),
        stream,
    };
    let scope = |error: FrameError| (error.code, error.scope);
    assert_eq!(window_update(&on(1), &[0x80, 0, 0, 1]), Ok(1));
    assert_eq!(
        window_update(&on(1), &[0x80, 0, 0, 0]).map_err(scope),
        Err((ErrorCode::PROTOCOL_ERROR, Scope::Stream))
    );
    assert_eq!(
        window_update(&on(0), &[0, 0, 0, 0]).map_err(scope),
        Err((ErrorCode::PROTOCOL_ERROR, Scope::Connection))
    );
    assert!(check_priority(&on(1), &[0, 0, 0, 1, 0]).is_err());
    assert_eq!(check_priority(&on(1), &[0, 0, 0, 3, 0]), Ok(()));
    let setting = |id, value| Setting::parse(id, value).map_err(|error| error.code);
    assert_eq!(setting(2, 2), Err(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(setting(4, 1 << 31), Err(ErrorCode::FLOW_CONTROL_ERROR));
    assert_eq!(setting(5, (1 << 14) - 1), Err(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(setting(5, 1 << 24), Err(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(setting(8, 2), Err(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(setting(99, 2), Ok(Setting::Unknown(99, 2)));
}
