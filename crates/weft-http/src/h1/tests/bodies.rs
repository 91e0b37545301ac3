use bytes::BytesMut;

use super::super::{BodyDecoder, BodyEncoder, Decoded, EncodeError, Limits, OutBuf, ParseError};
use crate::headers::HeaderList;
use crate::message::{BodyLength, Frame};

/// Content, trailers and what is left of `wire` after it.
type Whole = (Vec<u8>, Option<HeaderList>, Vec<u8>);

fn decode_with(length: BodyLength, wire: &str, limits: &Limits) -> Result<Whole, ParseError> {
    let mut decoder = BodyDecoder::with_limits(length, limits);
    let mut buf = BytesMut::from(wire);
    let (mut content, mut trailers) = (Vec::new(), None);
    loop {
        match decoder.decode(&mut buf)? {
            Decoded::Frame(Frame::Data(data)) => content.extend_from_slice(&data),
            Decoded::Frame(Frame::Trailers(list)) => trailers = Some(list),
            Decoded::NeedMore => decoder.eof()?,
            Decoded::End => return Ok((content, trailers, buf.to_vec())),
        }
    }
}

fn chunked(wire: &str) -> Result<Whole, ParseError> {
    decode_with(BodyLength::Chunked, wire, &Limits::DEFAULT)
}

#[test]
fn a_body_that_failed_never_ends() {
    for bad in ["3\r\nabc\r\n0\r\n\n\r\n", "0\r\nX: y\n\r\n", "x\r\n", "1\r\nab\r\n"] {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut buf = BytesMut::from(format!("{bad}GET /next HTTP/1.1\r\n\r\n").as_bytes());
        let error = loop {
            match decoder.decode(&mut buf) {
                Ok(Decoded::Frame(_)) => {}
                Ok(other) => panic!("{bad:?} was taken: {other:?}"),
                Err(error) => break error,
            }
        };
        assert!(!decoder.is_end(), "{bad:?}");
        assert_eq!(decoder.decode(&mut buf), Err(error), "{bad:?}");
        assert_eq!(decoder.eof(), Err(error), "{bad:?}");
    }
}

#[test]
fn chunked_bodies_end_where_they_say() {
    let check = |wire: &str, content: &str, rest: &str| {
        let (got, trailers, left) = chunked(wire).unwrap();
        assert_eq!((got, left), (content.into(), rest.into()), "{wire:?}");
        assert_eq!(trailers, None);
    };
    check("0\r\n\r\nGET", "", "GET");
    check("5\r\nhello\r\n0\r\n\r\n", "hello", "");
    check("0005\r\nhello\r\n6\r\n world\r\n000\r\n\r\nX", "hello world", "X");
    check("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", "");
    check("5;x=y;z=\"q\"\r\nhello\r\n0;last\r\n\r\n", "hello", "");
    check("5 \t;x\r\nhello\r\n0\r\n\r\n", "hello", "");
}

#[test]
fn ambiguous_chunks_are_refused() {
    let check = |wire: &str, expect: ParseError| {
        assert_eq!(chunked(wire).map(|_| ()), Err(expect), "{wire:?}");
    };
    for size in
        ["", "-1", "+5", "0x5", " 5", "5 ", "g", "5g", "10000000000000000", "ffffffffffffffff"]
    {
        check(&format!("{size}\r\nhello\r\n0\r\n\r\n"), ParseError::ChunkSize);
    }
    check("00000000000000005\r\nhello\r\n0\r\n\r\n", ParseError::ChunkSize);
    check("5\nhello\r\n0\r\n\r\n", ParseError::LineEnding);
    check("5\r\nhello\n0\r\n\r\n", ParseError::ChunkEnd);
    check("5\r\nhelloo\r\n0\r\n\r\n", ParseError::ChunkEnd);
    check("5\r\nhell\r\n0\r\n\r\n", ParseError::ChunkEnd);
    check("5\r\nhello0\r\n\r\n", ParseError::ChunkEnd);
    check("5;\rx\r\nhello\r\n0\r\n\r\n", ParseError::ChunkExtension);
    check("5;\0\r\nhello\r\n0\r\n\r\n", ParseError::ChunkExtension);
    check("5;a\nb\r\nhello\r\n0\r\n\r\n", ParseError::LineEnding);
    check("0\r\n\n", ParseError::LineEnding);
    check("0\r\nA: b\n\r\n", ParseError::LineEnding);
    check("0\r\nA : b\r\n\r\n", ParseError::Trailer);
    check("0\r\nA: b\r\n c\r\n\r\n", ParseError::Trailer);
    check("5\r\nhello", ParseError::Truncated);
    check("5\r\nhello\r\n0\r\n", ParseError::Truncated);
    check("5\r\nhello\r\n0\r\nA: b\r\n", ParseError::Truncated);
    check("", ParseError::Truncated);
}

#[test]
fn trailers_are_kept_without_framing_fields() {
    let (_, trailers, rest) =
        chunked("0\r\nGrpc-Status: 0\r\nContent-Length: 9\r\nX: 1\r\nhost: a\r\n\r\nrest").unwrap();
    let expect: HeaderList = [("Grpc-Status", "0"), ("X", "1")].into_iter().collect();
    assert_eq!(trailers, Some(expect));
    assert_eq!(rest, b"rest");
}

#[test]
fn chunk_and_trailer_limits() {
    let limits = Limits {
        chunk_line_bytes_max: 20,
        chunk_extension_bytes_max: 30,
        trailer_bytes_max: 40,
        trailers_max: 2,
        ..Limits::DEFAULT
    };
    let check = |wire: String, expect: Result<(), ParseError>| {
        let got = decode_with(BodyLength::Chunked, &wire, &limits).map(|_| ());
        assert_eq!(got, expect, "{wire:?}");
    };
    check(format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(10)), Ok(()));
    let long = Err(ParseError::ChunkLineTooLong);
    check(format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(20)), long);
    check(format!("{}0\r\n\r\n", "1;12345678901\r\nx\r\n".repeat(3)), long);
    let large = Err(ParseError::TrailersTooLarge);
    check(format!("0\r\nA: {}\r\n\r\n", "e".repeat(40)), large);
    check("0\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n".into(), large);
    check("0\r\nA: 1\r\nB: 2\r\n\r\n".into(), Ok(()));
}

#[test]
fn exact_and_close_delimited_bodies() {
    let check = |length, wire: &str, expect: Result<(&str, &str), ParseError>| {
        let got = decode_with(length, wire, &Limits::DEFAULT).map(|(body, _, rest)| (body, rest));
        assert_eq!(got, expect.map(|(body, rest)| (body.into(), rest.into())), "{wire:?}");
    };
    check(BodyLength::None, "GET", Ok(("", "GET")));
    check(BodyLength::Exact(0), "GET", Ok(("", "GET")));
    check(BodyLength::Exact(3), "abcGET", Ok(("abc", "GET")));
    check(BodyLength::Exact(3), "ab", Err(ParseError::Truncated));
    check(BodyLength::UntilClose, "abc", Ok(("abc", "")));
    check(BodyLength::UntilClose, "", Ok(("", "")));
}

fn encode(framing: BodyLength, frames: &[Frame]) -> Result<String, EncodeError> {
    let (mut encoder, mut out) = (BodyEncoder::new(framing), OutBuf::new());
    for frame in frames {
        encoder.encode(frame.clone(), &mut out)?;
    }
    encoder.finish(&mut out)?;
    encoder.finish(&mut out)?;
    Ok(String::from_utf8(super::writing::drain(&mut out)).unwrap())
}

#[test]
fn encoding_frames_as_decided() {
    let data = |text: &'static str| Frame::Data(text.as_bytes().into());
    let trailers = Frame::Trailers([("Grpc-Status", "0")].into_iter().collect());
    let check = |framing, frames: &[Frame], expect: Result<&str, EncodeError>| {
        assert_eq!(encode(framing, frames), expect.map(str::to_owned), "{framing:?} {frames:?}");
    };
    let hello = [data("hello"), data(""), data(" 0123456789abcdef")];
    check(BodyLength::Chunked, &hello, Ok("5\r\nhello\r\n11\r\n 0123456789abcdef\r\n0\r\n\r\n"));
    check(BodyLength::Chunked, &[], Ok("0\r\n\r\n"));
    check(
        BodyLength::Chunked,
        &[data("x"), trailers.clone()],
        Ok("1\r\nx\r\n0\r\nGrpc-Status: 0\r\n\r\n"),
    );
    check(BodyLength::UntilClose, &hello, Ok("hello 0123456789abcdef"));
    check(BodyLength::Exact(22), &hello, Ok("hello 0123456789abcdef"));
    check(BodyLength::Exact(5), &[data("hello"), trailers.clone()], Ok("hello"));
    check(BodyLength::Exact(4), &hello, Err(EncodeError::TooLong));
    check(BodyLength::Exact(99), &hello, Err(EncodeError::TooShort));
    check(BodyLength::Exact(9), &[data("hello"), trailers], Err(EncodeError::TooShort));
    check(BodyLength::None, &[data("x")], Err(EncodeError::TooLong));
    check(BodyLength::None, &[], Ok(""));
}
