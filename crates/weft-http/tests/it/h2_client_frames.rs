//! Frames of a client for the differential tests, from a seed: sound requests, and on many
//! connections one oddity somewhere among them. Each is logged, so that a failure can be read.
//! Shared with the tests beside stock Envoy, so it may use only `weft-http`.

use weft_http::h2::FrameType;
use weft_http::h2::frame::{Flags, PREFACE};
use weft_http::h2::write;

/// What a client says on one connection.
pub struct Sent {
    pub bytes: Vec<u8>,
    /// Where in `bytes` that oddity is; empty, and at the end, when there is none.
    pub odd: std::ops::Range<usize>,
    /// The one thing about it that is odd, if there is any.
    pub oddity: Option<&'static str>,
    /// Streams the client reset: how far they got is a matter of turns.
    pub reset: Vec<u32>,
    pub log: Vec<String>,
}

/// One way to leave the beaten track: its name, and what does it.
type Oddity = (&'static str, fn(&mut Client));

struct Client {
    random: Random,
    next: u32,
    /// Streams whose content goes on.
    open: Vec<u32>,
    ended: Vec<u32>,
    sent: Sent,
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The connection of a seed: three in four have an oddity, each in its turn.
pub fn connection(seed: u64) -> Sent {
    let bytes = PREFACE.to_vec();
    let sent = Sent { bytes, odd: 0..0, oddity: None, reset: Vec::new(), log: Vec::new() };
    let random = Random(seed);
    let mut client = Client { random, next: 1, open: Vec::new(), ended: Vec::new(), sent };
    client.frame(FrameType::Settings, 0, 0, &[]);
    client.frame(FrameType::Settings, Flags::ACK, 0, &[]);
    for _ in 0..client.random.below(12) {
        client.sound();
    }
    if !seed.is_multiple_of(4) {
        let (name, odd) = ODDITIES[(seed / 4 * 3 + seed % 4) as usize % ODDITIES.len()];
        client.sent.oddity = Some(name);
        client.sent.log.push(format!("-- {name}"));
        let start = client.sent.bytes.len();
        odd(&mut client);
        let end = client.sent.bytes.len();
        client.sent.odd = start..end;
        client.sent.log.push("--".to_owned());
        for _ in 0..client.random.below(6) {
            client.sound();
        }
        return client.sent;
    }
    let end = client.sent.bytes.len();
    client.sent.odd = end..end;
    client.sent
}

impl Client {
    fn frame(&mut self, kind: FrameType, flags: u8, stream: u32, payload: &[u8]) {
        let line = format!("{kind:?} {flags:#x} on {stream}: {}", payload.escape_ascii());
        self.sent.log.push(line);
        write::head(&mut self.sent.bytes, kind, flags, stream, payload.len());
        self.sent.bytes.extend_from_slice(payload);
    }

    fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// A request whose block is `block`; its stream.
    fn request(&mut self, block: &[u8], end: bool) -> u32 {
        let stream = self.stream();
        let end_flag = if end { Flags::END_STREAM } else { 0 };
        self.frame(FrameType::Headers, Flags::END_HEADERS | end_flag, stream, block);
        (if end { &mut self.ended } else { &mut self.open }).push(stream);
        stream
    }

    fn get(&mut self, more: &[(&str, &str)]) -> u32 {
        let block = [head("GET"), literals(more)].concat();
        self.request(&block, true)
    }

    fn post(&mut self, more: &[(&str, &str)]) -> u32 {
        let block = [head("POST"), literals(more)].concat();
        self.request(&block, false)
    }

    /// Some stream whose content goes on.
    fn some_open(&mut self) -> u32 {
        match self.open.is_empty() {
            true => self.post(&[]),
            false => self.open[self.random.below(self.open.len())],
        }
    }

    /// Some stream whose content has ended.
    fn some_ended(&mut self) -> u32 {
        match self.ended.is_empty() {
            true => self.get(&[]),
            false => self.ended[self.random.below(self.ended.len())],
        }
    }

    fn end(&mut self, stream: u32) {
        self.open.retain(|open| *open != stream);
        self.ended.push(stream);
    }

    /// Something every server takes.
    fn sound(&mut self) {
        match self.random.below(13) {
            0 => _ = self.get(&[("x-a", "1"), ("x-b", ""), ("x-a", "2")]),
            1 => _ = self.post(&[("x-long", &"v".repeat(300))]),
            2 => {
                let stream = self.post(&[("content-length", "5")]);
                self.frame(FrameType::Data, 0, stream, b"abc");
                self.frame(FrameType::Data, Flags::END_STREAM, stream, b"de");
                self.end(stream);
            }
            3 => {
                let stream = self.some_open();
                let content = vec![b'c'; self.random.below(200)];
                self.frame(FrameType::Data, 0, stream, &content);
            }
            4 => {
                let stream = self.some_open();
                self.frame(
                    FrameType::Data,
                    Flags::END_STREAM | Flags::PADDED,
                    stream,
                    b"\x03x\0\0\0",
                );
                self.end(stream);
            }
            5 => {
                let stream = self.some_open();
                let flags = Flags::END_STREAM | Flags::END_HEADERS;
                self.frame(FrameType::Headers, flags, stream, &literals(&[("x-trailer", "t")]));
                self.end(stream);
            }
            6 => self.frame(FrameType::Ping, 0, 0, b"12345678"),
            7 => self.settings(&[(3, 10), (4, 70_000), (5, 20_000), (6, 5_000), (99, 1)]),
            8 => {
                let stream = if self.random.below(2) == 0 { 0 } else { self.some_open() };
                self.frame(FrameType::WindowUpdate, 0, stream, &100_u32.to_be_bytes());
            }
            9 => {
                let stream = self.some_open();
                self.frame(FrameType::Priority, 0, stream, &[0, 0, 0, 0, 7]);
            }
            10 => self.frame(FrameType::Unknown(0x7f), 0xff, 0, b"whatever"),
            11 => self.in_pieces(),
            _ => self.indexed(),
        }
    }

    /// A head with padding and priority, in a HEADERS and two CONTINUATION frames.
    fn in_pieces(&mut self) {
        let stream = self.stream();
        let block = head("GET");
        let (first, rest) = block.split_at(3);
        let padded = [&[2, 0, 0, 0, 0, 9][..], first, &[0, 0]].concat();
        let flags = Flags::END_STREAM | Flags::PADDED | Flags::PRIORITY;
        self.frame(FrameType::Headers, flags, stream, &padded);
        self.frame(FrameType::Continuation, 0, stream, &rest[..1]);
        self.frame(FrameType::Continuation, Flags::END_HEADERS, stream, &rest[1..]);
        self.ended.push(stream);
    }

    /// A head that adds to the table, and one that uses what was added.
    fn indexed(&mut self) {
        let added = [&head("GET")[..], &[0x40], &string("x-table"), &string("value")].concat();
        self.request(&added, true);
        self.request(&[&head("GET")[..], &[0x80 | 62]].concat(), true);
    }

    fn settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(FrameType::Settings, 0, 0, &payload);
    }

    fn pseudo(&mut self, fields: &[(&str, &str)]) {
        self.request(&literals(fields), true);
    }
}

/// Method, scheme, authority and path.
fn head(method: &str) -> Vec<u8> {
    let method = match method {
        "GET" => vec![0x82],
        "POST" => vec![0x83],
        other => literals(&[(":method", other)]),
    };
    [&method[..], &[0x86, 0x84], &literals(&[(":authority", "a.example")])].concat()
}

/// Literals without indexing and without Huffman codes.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let field = |(name, value): &(&str, &str)| [&[0][..], &string(name), &string(value)].concat();
    fields.iter().flat_map(field).collect()
}

/// A string literal of up to 16 KiB.
fn string(text: &str) -> Vec<u8> {
    let length = match text.len() {
        short @ 0..127 => vec![short as u8],
        long => vec![127, ((long - 127) % 128) as u8 | 0x80, ((long - 127) / 128) as u8],
    };
    [&length[..], text.as_bytes()].concat()
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

const ODDITIES: &[Oddity] = &[
    // Heads (RFC 9113 §8).
    ("capital letter in a name", |c| _ = c.get(&[("X-Capital", "1")])),
    ("blank in a name", |c| _ = c.get(&[("x y", "1")])),
    ("colon in a name", |c| _ = c.get(&[("x:y", "1")])),
    ("empty name", |c| _ = c.get(&[("", "1")])),
    ("line end in a value", |c| _ = c.get(&[("x-a", "b\r\nx-c: d")])),
    ("NUL in a value", |c| _ = c.get(&[("x-a", "b\0c")])),
    ("control character in a value", |c| _ = c.get(&[("x-a", "b\x01c")])),
    ("blanks around a value", |c| _ = c.get(&[("x-a", " b ")])),
    ("tab in a value", |c| _ = c.get(&[("x-a", "b\tc")])),
    ("connection", |c| _ = c.get(&[("connection", "close")])),
    ("keep-alive", |c| _ = c.get(&[("keep-alive", "1")])),
    ("proxy-connection", |c| _ = c.get(&[("proxy-connection", "close")])),
    ("transfer-encoding", |c| _ = c.post(&[("transfer-encoding", "chunked")])),
    ("upgrade", |c| _ = c.get(&[("upgrade", "h2c")])),
    ("te: gzip", |c| _ = c.get(&[("te", "gzip")])),
    ("te: trailers", |c| _ = c.get(&[("te", "trailers")])),
    ("host says otherwise", |c| _ = c.get(&[("host", "b.example")])),
    ("host says the same", |c| _ = c.get(&[("host", "a.example")])),
    ("content-length is no number", |c| _ = c.get(&[("content-length", "+1")])),
    ("content-length twice, different", |c| {
        c.post(&[("content-length", "1"), ("content-length", "2")]);
    }),
    ("content-length of a request that ends", |c| _ = c.get(&[("content-length", "1")])),
    ("content-length 0 of a request that ends", |c| _ = c.get(&[("content-length", "0")])),
    ("more content than content-length", |c| {
        let stream = c.post(&[("content-length", "3")]);
        c.frame(FrameType::Data, Flags::END_STREAM, stream, b"abcd");
        c.end(stream);
    }),
    ("less content than content-length", |c| {
        let stream = c.post(&[("content-length", "3")]);
        c.frame(FrameType::Data, Flags::END_STREAM, stream, b"ab");
        c.end(stream);
    }),
    ("huge head", |c| {
        let values: Vec<String> = (0..300).map(|n| format!("{n}{}", "v".repeat(300))).collect();
        let fields: Vec<_> = values.iter().map(|value| ("x-huge", value.as_str())).collect();
        let block = [head("GET"), literals(&fields)].concat();
        let stream = c.stream();
        let mut pieces = block.chunks(16_384);
        let first = pieces.next().unwrap_or_default();
        c.frame(FrameType::Headers, Flags::END_STREAM, stream, first);
        let mut pieces = pieces.peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { Flags::END_HEADERS } else { 0 };
            c.frame(FrameType::Continuation, flags, stream, piece);
        }
        c.ended.push(stream);
    }),
    ("no method", |c| c.pseudo(&GET[1..])),
    ("no scheme", |c| c.pseudo(&[GET[0], GET[2], GET[3]])),
    ("no path", |c| c.pseudo(&[GET[0], GET[1], GET[3]])),
    ("no authority", |c| c.pseudo(&GET[..3])),
    ("neither authority nor path", |c| c.pseudo(&GET[..2])),
    ("empty path", |c| c.pseudo(&[GET[0], GET[1], (":path", ""), GET[3]])),
    ("path without slash", |c| c.pseudo(&[GET[0], GET[1], (":path", "x"), GET[3]])),
    ("blank in a path", |c| c.pseudo(&[GET[0], GET[1], (":path", "/a b"), GET[3]])),
    ("line end in a path", |c| c.pseudo(&[GET[0], GET[1], (":path", "/\r\nx:y"), GET[3]])),
    ("asterisk with GET", |c| c.pseudo(&[GET[0], GET[1], (":path", "*"), GET[3]])),
    ("authority with user", |c| c.pseudo(&[GET[0], GET[1], GET[2], (":authority", "u@a")])),
    ("authority with a slash", |c| c.pseudo(&[GET[0], GET[1], GET[2], (":authority", "a/b")])),
    ("empty authority", |c| c.pseudo(&[GET[0], GET[1], GET[2], (":authority", "")])),
    ("method twice", |c| c.pseudo(&[GET[0], GET[0], GET[1], GET[2], GET[3]])),
    ("path twice", |c| c.pseudo(&[GET[0], GET[1], GET[2], GET[2], GET[3]])),
    ("authority twice", |c| c.pseudo(&[GET[0], GET[1], GET[2], GET[3], GET[3]])),
    ("blank in a method", |c| c.pseudo(&[(":method", "G T"), GET[1], GET[2], GET[3]])),
    ("empty method", |c| c.pseudo(&[(":method", ""), GET[1], GET[2], GET[3]])),
    ("unknown pseudo field", |c| c.pseudo(&[GET[0], GET[1], GET[2], GET[3], (":x", "y")])),
    ("status in a request", |c| c.pseudo(&[GET[0], GET[1], GET[2], GET[3], (":status", "200")])),
    ("pseudo field after a field", |c| c.pseudo(&[GET[0], GET[1], ("x", "y"), GET[2], GET[3]])),
    ("protocol nobody offered", |c| {
        c.pseudo(&[(":method", "CONNECT"), GET[1], GET[2], GET[3], (":protocol", "websocket")]);
    }),
    ("pseudo field in trailers", |c| {
        let stream = c.some_open();
        let flags = Flags::END_STREAM | Flags::END_HEADERS;
        c.frame(FrameType::Headers, flags, stream, &literals(&[GET[2]]));
        c.end(stream);
    }),
    ("trailers that do not end", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Headers, Flags::END_HEADERS, stream, &literals(&[("x", "y")]));
    }),
    ("connection in trailers", |c| {
        let stream = c.some_open();
        let flags = Flags::END_STREAM | Flags::END_HEADERS;
        c.frame(FrameType::Headers, flags, stream, &literals(&[("connection", "x")]));
        c.end(stream);
    }),
    // Header compression (RFC 7541).
    ("index beyond the table", |c| {
        _ = c.request(&[&head("GET")[..], &[0xff, 0x40]].concat(), true)
    }),
    ("index 0", |c| _ = c.request(&[&head("GET")[..], &[0x80]].concat(), true)),
    ("string longer than its block", |c| {
        _ = c.request(&[&head("GET")[..], &[0, 5, b'x']].concat(), true)
    }),
    ("endless integer", |c| _ = c.request(&[&head("GET")[..], &[0xff; 12]].concat(), true)),
    ("bad Huffman padding", |c| {
        c.request(&[&head("GET")[..], &[0, 1, b'x', 0x81, 0x00]].concat(), true);
    }),
    ("Huffman EOS", |c| {
        let block = [&head("GET")[..], &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat();
        c.request(&block, true);
    }),
    ("table size beyond the limit", |c| {
        c.request(&[&[0x3f, 0xff, 0xff, 0x03][..], &head("GET")].concat(), true);
    }),
    ("table size in the middle", |c| _ = c.request(&[&head("GET")[..], &[0x20]].concat(), true)),
    ("table size at the start", |c| _ = c.request(&[&[0x20][..], &head("GET")].concat(), true)),
    ("three table sizes at the start", |c| {
        c.request(&[&[0x20, 0x21, 0x22][..], &head("GET")].concat(), true);
    }),
    ("empty block", |c| _ = c.request(&[], true)),
    // Frames (RFC 9113 §§4 to 6).
    ("padding as long as the frame", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, Flags::PADDED, stream, &[3, 0, 0]);
    }),
    ("padding of no length", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, Flags::PADDED, stream, &[]);
    }),
    ("only padding", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, Flags::PADDED, stream, &[2, 0, 0]);
    }),
    ("padding that is not zero", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, Flags::PADDED, stream, &[2, 1, 1]);
    }),
    ("padded head of no length", |c| {
        let stream = c.stream();
        c.frame(FrameType::Headers, Flags::PADDED | Flags::END_HEADERS, stream, &[]);
    }),
    ("frame too large", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, 0, stream, &[b'x'; 16_385]);
    }),
    ("largest frame", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Data, 0, stream, &[b'x'; 16_384]);
    }),
    ("DATA on stream 0", |c| c.frame(FrameType::Data, 0, 0, b"x")),
    ("DATA on an idle stream", |c| c.frame(FrameType::Data, 0, 99, b"x")),
    ("DATA after the end", |c| {
        let stream = c.some_ended();
        c.frame(FrameType::Data, 0, stream, b"x");
    }),
    ("HEADERS after the end", |c| {
        let stream = c.some_ended();
        c.frame(FrameType::Headers, 0x5, stream, &literals(&[("x", "y")]));
    }),
    ("HEADERS on stream 0", |c| c.frame(FrameType::Headers, 0x5, 0, &head("GET"))),
    ("HEADERS on an even stream", |c| c.frame(FrameType::Headers, 0x5, 2, &head("GET"))),
    ("HEADERS on a lower stream", |c| {
        c.next += 20;
        c.get(&[]);
        let lower = c.next - 10;
        c.frame(FrameType::Headers, 0x5, lower, &head("GET"));
    }),
    ("streams left out", |c| {
        c.next += 20;
        c.get(&[]);
    }),
    ("CONTINUATION of nothing", |c| c.frame(FrameType::Continuation, 0x4, 1, &head("GET"))),
    ("CONTINUATION of another stream", |c| {
        let stream = c.stream();
        c.frame(FrameType::Headers, 0x1, stream, &head("GET"));
        c.frame(FrameType::Continuation, 0x4, stream + 2, &[]);
    }),
    ("PING within a block", |c| {
        let stream = c.stream();
        c.frame(FrameType::Headers, 0x1, stream, &head("GET"));
        c.frame(FrameType::Ping, 0, 0, b"12345678");
    }),
    ("stream depends on itself", |c| {
        let stream = c.stream();
        let payload = [&stream.to_be_bytes()[..], &[1], &head("GET")].concat();
        c.frame(FrameType::Headers, 0x25, stream, &payload);
    }),
    ("PRIORITY of a stream on itself", |c| {
        let stream = c.some_open();
        let payload = [&stream.to_be_bytes()[..], &[1]].concat();
        c.frame(FrameType::Priority, 0, stream, &payload);
    }),
    ("PRIORITY too short", |c| {
        let stream = c.some_open();
        c.frame(FrameType::Priority, 0, stream, &[0; 4]);
    }),
    ("PRIORITY on stream 0", |c| c.frame(FrameType::Priority, 0, 0, &[0, 0, 0, 3, 0])),
    ("PRIORITY of an idle stream", |c| c.frame(FrameType::Priority, 0, 99, &[0, 0, 0, 3, 0])),
    ("RST_STREAM", |c| {
        let stream = c.some_open();
        c.frame(FrameType::RstStream, 0, stream, &[0, 0, 0, 8]);
        c.open.retain(|open| *open != stream);
        c.sent.reset.push(stream);
    }),
    ("RST_STREAM with a code nobody knows", |c| {
        let stream = c.some_open();
        c.frame(FrameType::RstStream, 0, stream, &0xabcd_u32.to_be_bytes());
        c.open.retain(|open| *open != stream);
        c.sent.reset.push(stream);
    }),
    ("RST_STREAM too short", |c| {
        let stream = c.some_open();
        c.frame(FrameType::RstStream, 0, stream, &[0; 3]);
    }),
    ("RST_STREAM on stream 0", |c| c.frame(FrameType::RstStream, 0, 0, &[0; 4])),
    ("RST_STREAM of an idle stream", |c| c.frame(FrameType::RstStream, 0, 99, &[0; 4])),
    ("SETTINGS on a stream", |c| c.frame(FrameType::Settings, 0, 1, &[])),
    ("SETTINGS of odd length", |c| c.frame(FrameType::Settings, 0, 0, &[0; 5])),
    ("acknowledgement with content", |c| c.frame(FrameType::Settings, 0x1, 0, &[0; 6])),
    ("acknowledgement of nothing", |c| c.frame(FrameType::Settings, 0x1, 0, &[])),
    ("ENABLE_PUSH 2", |c| c.settings(&[(2, 2)])),
    ("ENABLE_PUSH 0", |c| c.settings(&[(2, 0)])),
    ("window of 2^31", |c| c.settings(&[(4, 1 << 31)])),
    ("window of 0", |c| c.settings(&[(4, 0)])),
    ("frame size too small", |c| c.settings(&[(5, 16_383)])),
    ("frame size too large", |c| c.settings(&[(5, 1 << 24)])),
    ("ENABLE_CONNECT_PROTOCOL 2", |c| c.settings(&[(8, 2)])),
    ("table of 0", |c| c.settings(&[(1, 0)])),
    ("PING too short", |c| c.frame(FrameType::Ping, 0, 0, b"1234567")),
    ("PING on a stream", |c| c.frame(FrameType::Ping, 0, 1, b"12345678")),
    ("PING answer to nothing", |c| c.frame(FrameType::Ping, 0x1, 0, b"12345678")),
    ("GOAWAY", |c| c.frame(FrameType::GoAway, 0, 0, &[0; 8])),
    ("GOAWAY too short", |c| c.frame(FrameType::GoAway, 0, 0, &[0; 7])),
    ("GOAWAY on a stream", |c| c.frame(FrameType::GoAway, 0, 1, &[0; 8])),
    ("WINDOW_UPDATE of 0", |c| c.frame(FrameType::WindowUpdate, 0, 0, &[0; 4])),
    ("WINDOW_UPDATE of 0 on a stream", |c| {
        let stream = c.some_open();
        c.frame(FrameType::WindowUpdate, 0, stream, &[0; 4]);
    }),
    ("WINDOW_UPDATE too short", |c| c.frame(FrameType::WindowUpdate, 0, 0, &[0; 3])),
    ("WINDOW_UPDATE of an idle stream", |c| {
        c.frame(FrameType::WindowUpdate, 0, 99, &1_u32.to_be_bytes());
    }),
    ("window beyond 2^31", |c| {
        c.frame(FrameType::WindowUpdate, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    }),
    ("window beyond 2^31 on a stream", |c| {
        let stream = c.some_open();
        c.frame(FrameType::WindowUpdate, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    }),
    ("more than the window", |c| {
        let stream = c.some_open();
        for _ in 0..5 {
            c.frame(FrameType::Data, 0, stream, &[b'x'; 16_384]);
        }
    }),
    ("PUSH_PROMISE", |c| {
        let stream = c.some_open();
        let payload = [&[0, 0, 0, 2][..], &head("GET")].concat();
        c.frame(FrameType::PushPromise, 0x4, stream, &payload);
    }),
    ("reserved bit", |c| {
        let stream = c.stream();
        c.frame(FrameType::Headers, 0x5, stream, &head("GET"));
        let at = c.sent.bytes.len() - head("GET").len() - 4;
        c.sent.bytes[at] |= 0x80;
        c.ended.push(stream);
    }),
    ("unknown flags", |c| {
        let stream = c.stream();
        c.frame(FrameType::Headers, 0x5 | 0xd2, stream, &head("GET"));
        c.ended.push(stream);
    }),
];
