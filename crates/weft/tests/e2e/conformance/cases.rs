//! The cases: what is sent, and what must come of it.

pub mod attacks;

/// One thing a client does.
#[derive(Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Waits for the proxy's SETTINGS and its acknowledgement of ours.
    Settled,
    /// Waits for the whole response on this stream.
    Answered(u32),
    /// Waits for so much content on this stream.
    Content(u32, usize),
}

/// What must come of it.
#[derive(Debug)]
pub enum Expect {
    /// A whole response on this stream.
    Answer(u32),
    /// Nothing: the connection goes on.
    Ignored,
    /// The connection ends, with one of these codes if any is said.
    Connection(&'static [u32]),
    /// The stream is reset with one of these codes, or the connection ends.
    Stream(u32, &'static [u32]),
    /// The request is malformed: the stream is reset with PROTOCOL_ERROR, or the connection ends,
    /// or the answer is 400, which RFC 9113 §8.1.1 lets a server say first.
    Malformed(u32),
    /// Some stream is reset.
    Refused(&'static [u32]),
    SettingsAcks(usize),
    /// These PINGs are answered and no others.
    Pongs(Vec<[u8; 8]>),
    /// So much content on this stream and no more.
    Held(u32, usize),
}

/// One case.
#[derive(Debug)]
pub struct Case {
    pub section: &'static str,
    pub name: &'static str,
    pub steps: Vec<Step>,
    pub expect: Expect,
}

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;
/// A request in one frame.
const WHOLE: u8 = END_STREAM | END_HEADERS;

const PROTOCOL: &[u32] = &[0x1];
const FLOW: &[u32] = &[0x3];
const CLOSED: &[u32] = &[0x5];
const SIZE: &[u32] = &[0x6];
const COMPRESSION: &[u32] = &[0x9];
const PROTOCOL_OR_CLOSED: &[u32] = &[0x1, 0x5];
const PROTOCOL_OR_REFUSED: &[u32] = &[0x1, 0x7];

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A PING.
pub fn ping(opaque: [u8; 8]) -> Vec<u8> {
    frame(PING, 0, 0, &opaque)
}

/// Fields as literals that no table keeps.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0x00);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).expect("short texts"));
            out.extend(text.as_bytes());
        }
    }
    out
}

const PSEUDO: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "app")];

/// A request with more fields.
fn with(more: &[(&str, &str)]) -> Vec<u8> {
    block(&[&PSEUDO[..], more].concat())
}

/// A request's block.
fn request() -> Vec<u8> {
    with(&[])
}

/// A request whose content is still to come.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request())
}

/// A whole request.
pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request())
}

/// More window; stream 0 is the connection.
pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

const NEW_WINDOW: u16 = 0x4;

/// A case after the usual opening.
fn case(section: &'static str, name: &'static str, sent: &[Vec<u8>], expect: Expect) -> Case {
    steps(section, name, vec![Step::Send(sent.concat())], expect)
}

fn steps(section: &'static str, name: &'static str, then: Vec<Step>, expect: Expect) -> Case {
    let mut steps = vec![Step::Send(opening(&[])), Step::Settled];
    steps.extend(then);
    Case { section, name, steps, expect }
}

pub fn opening(settings: &[u8]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(SETTINGS, 0, 0, settings));
    out.extend(frame(SETTINGS, 1, 0, &[]));
    out
}

/// A request of which everything has been said and answered, then `sent`.
fn after(section: &'static str, name: &'static str, sent: Vec<u8>, expect: Expect) -> Case {
    let before = vec![Step::Send(get(1)), Step::Answered(1), Step::Send(sent)];
    steps(section, name, before, expect)
}

/// A request with this block is malformed.
fn malformed(section: &'static str, name: &'static str, block: &[u8]) -> Case {
    case(section, name, &[frame(HEADERS, WHOLE, 1, block)], Expect::Malformed(1))
}

/// A block that cannot be decoded.
fn undecodable(section: &'static str, name: &'static str, extra: &[u8]) -> Case {
    let block = [&request()[..], extra].concat();
    case(section, name, &[frame(HEADERS, WHOLE, 1, &block)], Expect::Connection(COMPRESSION))
}

fn accepted(section: &'static str, name: &'static str, extra: &[u8]) -> Case {
    let block = [&request()[..], extra].concat();
    case(section, name, &[frame(HEADERS, WHOLE, 1, &block)], Expect::Answer(1))
}

/// Every case.
pub fn all() -> Vec<Case> {
    [connection(), streams(), frames(), flow(), messages(), compression(), generic()]
        .into_iter()
        .flatten()
        .collect()
}

fn connection() -> Vec<Case> {
    let large = vec![0; (1 << 14) + 1];
    let rest = |kind: u8, stream: u32| {
        [frame(HEADERS, END_STREAM, 1, &request()[..5]), frame(kind, 0, stream, &[0; 5])].concat()
    };
    vec![
        steps("3.4", "the server's preface is SETTINGS", vec![], Expect::SettingsAcks(1)),
        Case {
            section: "3.4",
            name: "a preface that is none",
            steps: vec![Step::Send(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r\0\0\0\x04\0\0\0\0\0".to_vec(),
            )],
            expect: Expect::Connection(PROTOCOL),
        },
        case("4.1", "an unknown frame type", &[frame(0x16, 0, 0, &[0; 8])], Expect::Ignored),
        case(
            "4.1",
            "undefined flags",
            &[frame(PING, 0x16, 0, b"12345678")],
            Expect::Pongs(vec![*b"12345678"]),
        ),
        case(
            "4.1",
            "the reserved bit",
            &[frame(PING, 0, 1 << 31, b"12345678")],
            Expect::Pongs(vec![*b"12345678"]),
        ),
        case(
            "4.2",
            "DATA of 2^14 bytes",
            &[open(1), frame(DATA, END_STREAM, 1, &large[1..])],
            Expect::Answer(1),
        ),
        case(
            "4.2",
            "DATA beyond SETTINGS_MAX_FRAME_SIZE",
            &[open(1), frame(DATA, END_STREAM, 1, &large)],
            Expect::Stream(1, SIZE),
        ),
        case(
            "4.2",
            "HEADERS beyond SETTINGS_MAX_FRAME_SIZE",
            &[frame(HEADERS, WHOLE, 1, &large)],
            Expect::Connection(SIZE),
        ),
        case(
            "4.3",
            "a field block of garbage",
            &[frame(HEADERS, WHOLE, 1, &[0x41, 0x8f, 0xff, 0xff])],
            Expect::Connection(COMPRESSION),
        ),
        case(
            "4.3",
            "PRIORITY within a field block",
            &[rest(PRIORITY, 1)],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "4.3",
            "another stream's HEADERS within a field block",
            &[rest(HEADERS, 3)],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "5.4.1",
            "an error closes the connection",
            &[frame(PING, 0, 0, &[0; 6])],
            Expect::Connection(SIZE),
        ),
        case(
            "5.5",
            "an unknown frame within a field block",
            &[rest(0x16, 0)],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "7",
            "GOAWAY with an unknown code",
            &[frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff])],
            Expect::Pongs(vec![]),
        ),
        case(
            "7",
            "RST_STREAM with an unknown code",
            &[open(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 0xff])],
            Expect::Ignored,
        ),
    ]
}

fn streams() -> Vec<Case> {
    let depends = |stream: u32, on: u32| {
        [&on.to_be_bytes()[..], &[200], &[][..]]
            .concat()
            .into_iter()
            .chain(match stream {
                0 => vec![],
                _ => request(),
            })
            .collect::<Vec<u8>>()
    };
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    let many: Vec<Vec<u8>> = (0..4000).map(|index| open(1 + 2 * index)).collect();
    vec![
        case(
            "5.1",
            "idle: DATA",
            &[frame(DATA, END_STREAM, 1, b"x")],
            Expect::Connection(PROTOCOL),
        ),
        case("5.1", "idle: RST_STREAM", std::slice::from_ref(&reset), Expect::Connection(PROTOCOL)),
        case(
            "5.1",
            "idle: WINDOW_UPDATE",
            &[frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100])],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "5.1",
            "idle: CONTINUATION",
            &[frame(CONTINUATION, END_HEADERS, 1, &request())],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "5.1",
            "half closed: DATA",
            &[get(1), frame(DATA, END_STREAM, 1, b"x")],
            Expect::Stream(1, CLOSED),
        ),
        case("5.1", "half closed: HEADERS", &[get(1), get(1)], Expect::Stream(1, CLOSED)),
        case(
            "5.1",
            "half closed: CONTINUATION",
            &[get(1), frame(CONTINUATION, END_HEADERS, 1, &request())],
            Expect::Stream(1, PROTOCOL_OR_CLOSED),
        ),
        case(
            "5.1",
            "reset: DATA",
            &[open(1), reset.clone(), frame(DATA, END_STREAM, 1, b"x")],
            Expect::Stream(1, CLOSED),
        ),
        case("5.1", "reset: HEADERS", &[open(1), reset.clone(), get(1)], Expect::Stream(1, CLOSED)),
        case(
            "5.1",
            "reset: CONTINUATION",
            &[open(1), reset, frame(CONTINUATION, END_HEADERS, 1, &request())],
            Expect::Stream(1, PROTOCOL_OR_CLOSED),
        ),
        after("5.1", "closed: DATA", frame(DATA, END_STREAM, 1, b"x"), Expect::Stream(1, CLOSED)),
        after("5.1", "closed: HEADERS", get(1), Expect::Stream(1, PROTOCOL_OR_CLOSED)),
        after(
            "5.1",
            "closed: CONTINUATION",
            frame(CONTINUATION, END_HEADERS, 1, &request()),
            Expect::Stream(1, PROTOCOL_OR_CLOSED),
        ),
        case("5.1.1", "an even stream", &[get(2)], Expect::Connection(PROTOCOL)),
        case(
            "5.1.1",
            "a stream below the last",
            &[get(5), get(3)],
            Expect::Connection(PROTOCOL_OR_CLOSED),
        ),
        case("5.1.2", "more streams than allowed", &many, Expect::Refused(PROTOCOL_OR_REFUSED)),
        case(
            "5.3.1",
            "HEADERS depending on its own stream",
            &[frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &depends(1, 1))],
            Expect::Stream(1, PROTOCOL),
        ),
        case(
            "5.3.1",
            "PRIORITY depending on its own stream",
            &[frame(PRIORITY, 0, 3, &depends(0, 3))],
            Expect::Stream(3, PROTOCOL),
        ),
    ]
}

fn frames() -> Vec<Case> {
    let connection =
        |name, sent: Vec<u8>, codes| case("6", name, &[sent], Expect::Connection(codes));
    let padded = [&[200][..], b"x"].concat();
    let unfinished = frame(HEADERS, END_STREAM, 1, &request()[..5]);
    let rest = frame(CONTINUATION, END_HEADERS, 1, &request()[5..]);
    let piece = |from: usize, to: usize| frame(CONTINUATION, 0, 1, &request()[from..to]);
    vec![
        connection("6.1 DATA on stream 0", frame(DATA, END_STREAM, 0, b"x"), PROTOCOL),
        case(
            "6.1",
            "DATA with too much padding",
            &[open(1), frame(DATA, END_STREAM | PADDED, 1, &padded)],
            Expect::Connection(PROTOCOL),
        ),
        connection("6.2 HEADERS on stream 0", get(0), PROTOCOL),
        connection(
            "6.2 HEADERS with too much padding",
            frame(HEADERS, WHOLE | PADDED, 1, &[&[200][..], &request()].concat()),
            PROTOCOL,
        ),
        connection("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 2]), PROTOCOL),
        case(
            "6.3",
            "PRIORITY of another length",
            &[open(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 1])],
            Expect::Stream(1, SIZE),
        ),
        connection("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), PROTOCOL),
        case(
            "6.4",
            "RST_STREAM of another length",
            &[open(1), frame(RST_STREAM, 0, 1, &[0, 0, 8])],
            Expect::Connection(SIZE),
        ),
        connection(
            "6.5 acknowledged SETTINGS with a payload",
            frame(SETTINGS, 1, 0, &[0; 6]),
            SIZE,
        ),
        connection("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL),
        connection("6.5 SETTINGS of another length", frame(SETTINGS, 0, 0, &[0; 3]), SIZE),
        connection("6.5.2 ENABLE_PUSH of 2", setting(0x2, 2), PROTOCOL),
        connection("6.5.2 a window of 2^31", setting(NEW_WINDOW, 1 << 31), FLOW),
        connection("6.5.2 frames below 2^14", setting(0x5, (1 << 14) - 1), PROTOCOL),
        connection("6.5.2 frames above 2^24 - 1", setting(0x5, 1 << 24), PROTOCOL),
        case("6.5.2", "an unknown setting", &[setting(0xff, 1)], Expect::Ignored),
        case("6.5.3", "SETTINGS are acknowledged", &[setting(0x3, 100)], Expect::SettingsAcks(2)),
        connection(
            "6.6 PUSH_PROMISE from a client",
            [
                open(1),
                frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &request()].concat()),
            ]
            .concat(),
            PROTOCOL,
        ),
        case("6.7", "a PING is answered", &[ping(*b"87654321")], Expect::Pongs(vec![*b"87654321"])),
        case(
            "6.7",
            "an answer to a PING is not",
            &[frame(PING, 1, 0, b"87654321")],
            Expect::Pongs(vec![]),
        ),
        connection("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL),
        connection("6.7 PING of another length", frame(PING, 0, 0, &[0; 6]), SIZE),
        connection("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL),
        case(
            "6.10",
            "several CONTINUATION",
            &[
                unfinished.clone(),
                piece(5, 9),
                piece(9, 20),
                frame(CONTINUATION, END_HEADERS, 1, &request()[20..]),
            ],
            Expect::Answer(1),
        ),
        case(
            "6.10",
            "CONTINUATION, then another frame",
            &[unfinished.clone(), piece(5, 9), frame(DATA, END_STREAM, 1, b"x")],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION on stream 0",
            &[unfinished.clone(), frame(CONTINUATION, END_HEADERS, 0, &request()[5..])],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION after the end of the block",
            &[open(1), rest.clone()],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION after the last CONTINUATION",
            &[frame(HEADERS, 0, 1, &request()[..5]), rest.clone(), rest.clone()],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION after DATA",
            &[open(1), frame(DATA, 0, 1, b"x"), rest],
            Expect::Connection(PROTOCOL),
        ),
    ]
}

fn flow() -> Vec<Case> {
    let update = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let most = (1 << 31) - 1;
    let one_byte =
        || vec![Step::Send([setting(NEW_WINDOW, 1), get(1)].concat()), Step::Content(1, 1)];
    let then = |sent: Vec<u8>| one_byte().into_iter().chain([Step::Send(sent)]).collect();
    vec![
        steps("6.9.1", "a window of one byte is kept to", one_byte(), Expect::Held(1, 1)),
        case(
            "6.9.1",
            "a connection's window above 2^31 - 1",
            &[update(0, most), update(0, most)],
            Expect::Connection(FLOW),
        ),
        case(
            "6.9.1",
            "a stream's window above 2^31 - 1",
            &[open(1), update(1, most), update(1, most)],
            Expect::Stream(1, FLOW),
        ),
        steps(
            "6.9.2",
            "open streams follow a new window",
            then(setting(NEW_WINDOW, 3)),
            Expect::Held(1, 3),
        ),
        steps(
            "6.9.2",
            "a window may become negative",
            then([setting(NEW_WINDOW, 0), setting(NEW_WINDOW, 2)].concat()),
            Expect::Held(1, 2),
        ),
        steps(
            "6.9.2",
            "all is sent when there is window",
            then(setting(NEW_WINDOW, 100_000)),
            Expect::Answer(1),
        ),
        case(
            "6.9",
            "WINDOW_UPDATE of 0 on the connection",
            &[update(0, 0)],
            Expect::Connection(PROTOCOL),
        ),
        case(
            "6.9",
            "WINDOW_UPDATE of 0 on a stream",
            &[open(1), update(1, 0)],
            Expect::Stream(1, PROTOCOL),
        ),
        case(
            "6.9",
            "WINDOW_UPDATE of another length",
            &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])],
            Expect::Connection(SIZE),
        ),
    ]
}

fn messages() -> Vec<Case> {
    let pseudo = |fields: &[(&str, &str)]| block(fields);
    let with_length =
        |length: &'static str| frame(HEADERS, END_HEADERS, 1, &with(&[("content-length", length)]));
    vec![
        case(
            "8.1",
            "a second HEADERS without END_STREAM",
            &[open(1), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")]))],
            Expect::Stream(1, PROTOCOL),
        ),
        malformed("8.2.1", "a name in upper case", &with(&[("X-TEST", "ok")])),
        malformed("8.2.1", "a value with a line feed", &with(&[("x-test", "a\nb")])),
        malformed("8.2.1", "a name with a space", &with(&[("x test", "ok")])),
        malformed("8.2.2", "a connection-specific field", &with(&[("connection", "keep-alive")])),
        malformed("8.2.2", "te other than trailers", &with(&[("te", "trailers, deflate")])),
        malformed("8.3", "an unknown pseudo field", &with(&[(":test", "ok")])),
        malformed("8.3", "a response's pseudo field", &with(&[(":status", "200")])),
        case(
            "8.3",
            "a pseudo field in trailers",
            &[open(1), frame(HEADERS, WHOLE, 1, &block(&[(":method", "200")]))],
            Expect::Stream(1, PROTOCOL),
        ),
        malformed(
            "8.3",
            "a pseudo field after others",
            &pseudo(&[
                (":method", "GET"),
                (":scheme", "http"),
                ("x-test", "ok"),
                (":path", "/"),
                (":authority", "app"),
            ]),
        ),
        malformed(
            "8.3.1",
            "an empty :path",
            &pseudo(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", ""),
                (":authority", "app"),
            ]),
        ),
        malformed("8.3.1", "no :method", &pseudo(&PSEUDO[1..])),
        malformed("8.3.1", "no :scheme", &pseudo(&[PSEUDO[0], PSEUDO[2], PSEUDO[3]])),
        malformed("8.3.1", "no :path", &pseudo(&[PSEUDO[0], PSEUDO[1], PSEUDO[3]])),
        malformed("8.3.1", ":method twice", &pseudo(&[&PSEUDO[..], &PSEUDO[..1]].concat())),
        malformed("8.3.1", ":scheme twice", &pseudo(&[&PSEUDO[..], &PSEUDO[1..2]].concat())),
        malformed("8.3.1", ":path twice", &pseudo(&[&PSEUDO[..], &PSEUDO[2..3]].concat())),
        case(
            "8.1.1",
            "content-length unlike DATA",
            &[with_length("1"), frame(DATA, END_STREAM, 1, b"test")],
            Expect::Stream(1, PROTOCOL),
        ),
        case(
            "8.1.1",
            "content-length unlike several DATA",
            &[with_length("1"), frame(DATA, 0, 1, b"te"), frame(DATA, END_STREAM, 1, b"st")],
            Expect::Stream(1, PROTOCOL),
        ),
        case(
            "8.1.1",
            "content-length and nothing",
            &[frame(HEADERS, WHOLE, 1, &with(&[("content-length", "1")]))],
            Expect::Malformed(1),
        ),
        case(
            "8.4",
            "PUSH_PROMISE",
            &[frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &request()].concat())],
            Expect::Connection(PROTOCOL),
        ),
    ]
}

fn compression() -> Vec<Case> {
    vec![
        undecodable("H2.3", "an index of no table", &[0xc6]),
        undecodable("H2.3", "a literal's name of no table", &[0x7f, 0x20, 0x01, b'x']),
        undecodable("H4.2", "a table size update at the end", &[0x20]),
        undecodable("H5.2", "padding of more than 7 bits", &[0x00, 0x01, b'x', 0x82, 0x1f, 0xff]),
        undecodable("H5.2", "padding of zeros", &[0x00, 0x01, b'x', 0x81, 0x18]),
        undecodable("H5.2", "EOS in a string", &[0x00, 0x01, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]),
        undecodable("H6.1", "index 0", &[0x80]),
        case(
            "H6.3",
            "a table larger than allowed",
            &[frame(HEADERS, WHOLE, 1, &[&[0x3f, 0xe2, 0x7f][..], &request()].concat())],
            Expect::Connection(COMPRESSION),
        ),
    ]
}

/// What any server has to take.
fn generic() -> Vec<Case> {
    let block = request();
    let parts = |cuts: &[usize]| {
        let mut out = frame(HEADERS, END_STREAM, 1, &block[..cuts[0]]);
        for pair in cuts.windows(2) {
            out.extend(frame(CONTINUATION, 0, 1, &block[pair[0]..pair[1]]));
        }
        out.extend(frame(CONTINUATION, END_HEADERS, 1, &block[cuts[cuts.len() - 1]..]));
        out
    };
    let priority = |weight: u8, on: u32| {
        [frame(PRIORITY, 0, 1, &[&on.to_be_bytes()[..], &[weight]].concat()), get(1)]
    };
    let head = [(":method", "HEAD"), PSEUDO[1], PSEUDO[2], PSEUDO[3]];
    let padded = [&[4][..], &block, &[0; 4]].concat();
    let prioritized = [&[0, 0, 0, 0, 15][..], &block].concat();
    vec![
        case("G2", "PRIORITY on an idle stream", &priority(15, 0), Expect::Answer(1)),
        case(
            "G2",
            "WINDOW_UPDATE on a half-closed stream",
            &[get(1), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])],
            Expect::Answer(1),
        ),
        case(
            "G2",
            "PRIORITY on a half-closed stream",
            &[get(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])],
            Expect::Answer(1),
        ),
        case(
            "G2",
            "RST_STREAM on a half-closed stream",
            &[get(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])],
            Expect::Ignored,
        ),
        after(
            "G2",
            "PRIORITY on a closed stream",
            [frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), get(3)].concat(),
            Expect::Answer(3),
        ),
        case("G3", "one CONTINUATION", &[parts(&[9])], Expect::Answer(1)),
        case("G3", "several CONTINUATION", &[parts(&[1, 9, 20])], Expect::Answer(1)),
        case("G3", "DATA", &[open(1), frame(DATA, END_STREAM, 1, b"x")], Expect::Answer(1)),
        case(
            "G3",
            "several DATA",
            &[open(1), frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1, b"y")],
            Expect::Answer(1),
        ),
        case(
            "G3",
            "DATA with padding",
            &[open(1), frame(DATA, END_STREAM | PADDED, 1, &[3, b'x', 0, 0, 0])],
            Expect::Answer(1),
        ),
        case("G3", "HEADERS", &[get(1)], Expect::Answer(1)),
        case(
            "G3",
            "HEADERS with padding",
            &[frame(HEADERS, WHOLE | PADDED, 1, &padded)],
            Expect::Answer(1),
        ),
        case(
            "G3",
            "HEADERS with priority",
            &[frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &prioritized)],
            Expect::Answer(1),
        ),
        case("G3", "PRIORITY with weight 256", &priority(255, 0), Expect::Answer(1)),
        case("G3", "PRIORITY with a dependency", &priority(255, 5), Expect::Answer(1)),
        case("G3", "PRIORITY, exclusive", &priority(255, 1 << 31), Expect::Answer(1)),
        case(
            "G3",
            "PRIORITY on a later stream, then an earlier one",
            &[frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 1]), get(3)],
            Expect::Answer(3),
        ),
        case(
            "G3",
            "GOAWAY from a client",
            &[get(1), frame(GOAWAY, 0, 0, &[0; 8])],
            Expect::Answer(1),
        ),
        case(
            "G3",
            "WINDOW_UPDATE on the connection",
            &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), get(1)],
            Expect::Answer(1),
        ),
        case(
            "G4",
            "a HEAD request",
            &[frame(HEADERS, WHOLE, 1, &self::block(&head))],
            Expect::Answer(1),
        ),
        case(
            "G4",
            "a request with trailers",
            &[
                open(1),
                frame(DATA, 0, 1, b"x"),
                frame(HEADERS, WHOLE, 1, &self::block(&[("x-test", "ok")])),
            ],
            Expect::Answer(1),
        ),
        accepted("G5", "an indexed field", &[0x90]),
        accepted("G5", "a literal with indexing, indexed name", &[0x7a, 1, b'x']),
        accepted("G5", "the same in Huffman code", &[0x7a, 0x81, 0xf3]),
        accepted("G5", "a literal with indexing, new name", &[0x40, 1, b'y', 1, b'x']),
        accepted("G5", "a literal without indexing, indexed name", &[0x0f, 0x2b, 1, b'x']),
        accepted("G5", "a literal without indexing, new name", &[0x00, 1, b'y', 1, b'x']),
        accepted("G5", "a literal never indexed, indexed name", &[0x1f, 0x2b, 1, b'x']),
        accepted("G5", "a literal never indexed, new name", &[0x10, 1, b'y', 0x81, 0xf3]),
        case(
            "G5",
            "a table size update",
            &[frame(HEADERS, WHOLE, 1, &[&[0x20][..], &block].concat())],
            Expect::Answer(1),
        ),
        case(
            "G5",
            "two table size updates",
            &[frame(HEADERS, WHOLE, 1, &[&[0x20, 0x3f, 0x01][..], &block].concat())],
            Expect::Answer(1),
        ),
    ]
}
