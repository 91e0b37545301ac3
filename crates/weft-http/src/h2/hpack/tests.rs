//! The examples of RFC 7541, Appendix C, and the rules at the edges.

use bytes::BytesMut;

use super::{Decoder, Encoder, FieldSink, HeadError, HeadLimits, HpackError, Indexing, huffman};
use crate::rules::H2Error;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<FieldSink, HpackError> {
    let mut sink = FieldSink::new();
    decoder.decode(block, &HeadLimits::DEFAULT, &mut sink).map(|()| sink)
}

/// The lines of a request or response, pseudo fields first.
fn lines(mut sink: FieldSink) -> String {
    String::from_utf8(std::mem::take(&mut sink.block).to_vec()).unwrap().replace("\r\n", "\n")
}

#[track_caller]
fn check(decoder: &mut Decoder, block: &str, expect: &str) {
    let got = lines(decode(decoder, &hex(block)).unwrap());
    assert_eq!(got.trim_end(), expect.trim());
}

#[test]
fn c2_single_fields() {
    let mut decoder = Decoder::new(4096);
    check(
        &mut decoder,
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "custom-key: custom-header",
    );
    check(&mut decoder, "040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path");
    check(&mut decoder, "1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret");
    check(&mut decoder, "82", ":method: GET");
    check(&mut decoder, "be", "custom-key: custom-header");
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
];

#[test]
fn c3_requests_as_they_are() {
    let mut decoder = Decoder::new(4096);
    check(&mut decoder, "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", REQUESTS[0]);
    check(&mut decoder, "8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1]);
    check(
        &mut decoder,
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        REQUESTS[2],
    );
}

#[test]
fn c4_requests_in_huffman_code() {
    let mut decoder = Decoder::new(4096);
    check(&mut decoder, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", REQUESTS[0]);
    check(&mut decoder, "8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1]);
    check(&mut decoder, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", REQUESTS[2]);
}

const RESPONSES: [&str; 3] = [
    ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
    ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
    ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\ncontent-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
];

#[test]
fn c5_responses_with_eviction() {
    let mut decoder = Decoder::new(256);
    check(
        &mut decoder,
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a
         3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        RESPONSES[0],
    );
    check(&mut decoder, "4803 3330 37c1 c0bf", RESPONSES[1]);
    check(
        &mut decoder,
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04
         677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49
         553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        RESPONSES[2],
    );
}

#[test]
fn c6_responses_with_eviction_in_huffman_code() {
    let mut decoder = Decoder::new(256);
    check(
        &mut decoder,
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e
         919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        RESPONSES[0],
    );
    check(&mut decoder, "4883 640e ffc1 c0bf", RESPONSES[1]);
    check(
        &mut decoder,
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7
         821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed
         4ee5 b106 3d50 07",
        RESPONSES[2],
    );
}

#[track_caller]
fn refused(block: &str, expect: HpackError) {
    assert_eq!(decode(&mut Decoder::new(4096), &hex(block)).err(), Some(expect), "{block}");
}

#[test]
fn blocks_that_mean_nothing_are_refused() {
    refused("80", HpackError::Index);
    refused("be", HpackError::Index);
    refused("ff8001", HpackError::Index);
    refused("7e 01 61", HpackError::Index);
    refused("ffffffffffff01", HpackError::Integer);
    refused("ff80808080 00", HpackError::Integer);
    refused("ff", HpackError::Truncated);
    refused("40", HpackError::Truncated);
    refused("4003 6162", HpackError::Truncated);
    refused("4001 61", HpackError::Truncated);
    refused("4001 61 0a 62", HpackError::Truncated);
    // EOS within a string, padding of zeros, padding of a whole byte.
    refused("4001 61 84 ffff ffff", HpackError::Huffman);
    refused("4001 61 81 18", HpackError::Huffman);
    refused("4001 61 82 1fff", HpackError::Huffman);
}

#[test]
fn a_size_update_stands_at_the_start_and_keeps_to_our_limit() {
    refused("82 20", HpackError::SizeUpdate);
    refused("3fe2 1f", HpackError::SizeUpdate);
    let mut decoder = Decoder::new(4096);
    check(&mut decoder, "20 3fe1 1f 82", ":method: GET");
    decoder.set_table_max(100);
    assert_eq!(decode(&mut decoder, &hex("82")).err(), Some(HpackError::SizeUpdate));
    check(&mut decoder, "3f45 82", ":method: GET");
    check(&mut decoder, "82", ":method: GET");
    decoder.set_table_max(4096);
    check(&mut decoder, "82", ":method: GET");
}

#[test]
fn a_smaller_table_forgets_the_oldest_and_an_entry_too_large_all() {
    let mut decoder = Decoder::new(4096);
    check(&mut decoder, "4001 6101 31 4001 6201 32", "a: 1\nb: 2");
    check(&mut decoder, "3f03 be", "b: 2");
    assert_eq!(decode(&mut decoder, &hex("bf")).err(), Some(HpackError::Index));
    check(&mut decoder, "4001 6301 33 be", "c: 3\nc: 3");
    check(&mut decoder, "4001 6402 3333", "d: 33");
    assert_eq!(decode(&mut decoder, &hex("be")).err(), Some(HpackError::Index));
}

#[test]
fn huffman_code_gives_back_every_byte_and_pair() {
    for first in 0..=255_u8 {
        for second in 0..=255 {
            for text in [&[first][..], &[first, second], &[first, second, first, b'a', second]] {
                let mut coded = Vec::new();
                huffman::encode(text, &mut coded);
                assert_eq!(coded.len(), huffman::encoded_len(text));
                let mut back = BytesMut::new();
                huffman::decode(&coded, &mut back).unwrap();
                assert_eq!(&back[..], text);
            }
        }
    }
}

#[test]
fn a_small_block_does_not_become_a_large_head() {
    let mut decoder = Decoder::new(4096);
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0xe0, 0x1e];
    bomb.extend_from_slice(&vec![b'x'; 0x7f + 0x60 + (0x1e << 7)]);
    decode(&mut decoder, &bomb).unwrap();
    let mut sink = FieldSink::new();
    decoder.decode(&vec![0xbe; 16_000], &HeadLimits::DEFAULT, &mut sink).unwrap();
    assert!(sink.block.capacity() < 4 * 65_536, "{}", sink.block.capacity());
    assert_eq!(sink.take_trailers(), Err(HeadError::TooLarge));
    // The table followed all the same.
    decoder.decode(&[0xbe], &HeadLimits::DEFAULT, &mut sink).unwrap();
    assert_eq!(sink.take_trailers().unwrap().len(), 1);
}

fn request(fields: &[(&str, &str)]) -> Result<(), HeadError> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x00);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    decode(&mut Decoder::new(4096), &block).unwrap().take_request().map(|_| ())
}

#[test]
fn heads_keep_the_rules_of_http2() {
    let good = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let with = |more: &[(&'static str, &'static str)]| {
        let all: Vec<_> = good.iter().chain(more).copied().collect();
        request(&all)
    };
    assert_eq!(with(&[]), Ok(()));
    assert_eq!(
        with(&[("te", "trailers"), ("content-length", "1"), ("content-length", "1")]),
        Ok(())
    );
    let malformed = |more: &[(&'static str, &'static str)], fault: H2Error| {
        assert_eq!(with(more), Err(HeadError::Malformed(fault)), "{more:?}");
    };
    malformed(&[(":path", "/")], H2Error::Pseudo);
    malformed(&[(":status", "200")], H2Error::Pseudo);
    malformed(&[(":other", "200")], H2Error::Pseudo);
    malformed(&[("X-upper", "1")], H2Error::Field);
    malformed(&[("", "1")], H2Error::Field);
    malformed(&[("a b", "1")], H2Error::Field);
    malformed(&[("a", "1\n2")], H2Error::Field);
    malformed(&[("a", " 1")], H2Error::Field);
    malformed(&[("a", "1\t")], H2Error::Field);
    malformed(&[("connection", "close")], H2Error::ConnectionField);
    malformed(&[("transfer-encoding", "chunked")], H2Error::ConnectionField);
    malformed(&[("te", "trailers, deflate")], H2Error::ConnectionField);
    malformed(&[("content-length", "1"), ("content-length", "2")], H2Error::ContentLength);
    malformed(&[("content-length", "x")], H2Error::ContentLength);
    malformed(&[("host", "b")], H2Error::Authority);
    assert_eq!(
        request(&[("a", "1"), (":method", "GET"), (":scheme", "http"), (":path", "/")]),
        Err(H2Error::Pseudo.into())
    );
    for missing in 0..3 {
        let mut fields = good.to_vec();
        fields.remove(missing);
        assert_eq!(request(&fields), Err(H2Error::Pseudo.into()), "{fields:?}");
    }
}

#[test]
fn never_indexed_fields_and_secrets_stay_so() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    for _ in 0..3 {
        let mut block = Vec::new();
        encoder.start(&mut block);
        encoder.encode(b"Authorization", b"Basic abc", Indexing::Auto, &mut block);
        encoder.encode(b"x-token", b"abc", Indexing::Never, &mut block);
        assert!(block.windows(3).any(|window| window == b"abc"), "as it is, not from a table");
        let trailers = decode(&mut decoder, &block).unwrap().take_trailers().unwrap();
        assert!(trailers.iter().all(|header| header.never_indexed), "{trailers:?}");
        let mut again = Vec::new();
        Encoder::new(4096).encode_trailers(&trailers, &mut again);
        assert!(again.starts_with(&[0x1f, 23 - 15]), "{again:x?}");
    }
}

#[test]
fn what_repeats_becomes_one_byte() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let mut lengths = Vec::new();
    for round in 0..4 {
        let mut block = Vec::new();
        encoder.start(&mut block);
        encoder.encode(b":path", b"/api/v1/items", Indexing::Auto, &mut block);
        encoder.encode(b"x-version", b"2", Indexing::Auto, &mut block);
        encoder.encode(
            b"x-request-id",
            format!("id-{round}").as_bytes(),
            Indexing::Auto,
            &mut block,
        );
        let sink = decode(&mut decoder, &block).unwrap();
        assert_eq!(
            lines(sink),
            format!(":path: /api/v1/items\nx-version: 2\nx-request-id: id-{round}\n")
        );
        lengths.push(block.len());
    }
    assert_eq!(lengths[2..], [2 + 7, 2 + 7], "two indexes and a literal with an indexed name");
}

#[test]
fn the_encoder_follows_the_peers_table_size() {
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    let turn = |encoder: &mut Encoder, decoder: &mut Decoder| {
        let mut block = Vec::new();
        encoder.start(&mut block);
        encoder.encode(b"x-a", b"1", Indexing::Auto, &mut block);
        assert_eq!(lines(decode(decoder, &block).unwrap()), "x-a: 1\n");
        block
    };
    turn(&mut encoder, &mut decoder);
    assert_eq!(turn(&mut encoder, &mut decoder), [0xbe]);
    encoder.peer_table_max(0);
    encoder.peer_table_max(1000);
    encoder.peer_table_max(500);
    decoder.set_table_max(500);
    assert_eq!(turn(&mut encoder, &mut decoder)[..4], [0x20, 0x3f, 0xd5, 0x03]);
    assert_eq!(turn(&mut encoder, &mut decoder), [0xbe]);
}
