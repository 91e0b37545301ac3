//! What becomes of a message between HTTP/1 and HTTP/2, as a table: every case in `versions.txt`
//! with what the application and the client saw of it. Where stock Envoy, with the same
//! configuration, makes something else of it, its version stands beside ours. `UPDATE=1` rewrites
//! the file; what changed is then to be judged by eye.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use weft_http::h1::{
    BodyDecoder, Decoded, Limits as H1Limits, Parsed, parse_request, parse_response,
};
use weft_http::{BodyLength, Frame, HeaderList, Method};
use weft_testkit::peer;

use super::stock::Stock;
use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    H1,
    H2,
}

/// Messages are written as HTTP/1 has them, lines ended by `\n`, for HTTP/2 the first line is
/// `METHOD :authority path` or the status and trailers follow the body after an empty line. What
/// stands between `!` signs happens: `reset CODE`, `close`, `end` (END_STREAM with what was said so
/// far), `early` (the application answers before it has read the body).
struct Case {
    name: &'static str,
    client: Speaks,
    app: Speaks,
    request: &'static str,
    answer: &'static str,
}

const fn case(
    name: &'static str,
    (client, app): (Speaks, Speaks),
    request: &'static str,
    answer: &'static str,
) -> Case {
    Case { name, client, app, request, answer }
}

const DOWN: (Speaks, Speaks) = (Speaks::H2, Speaks::H1);
const UP: (Speaks, Speaks) = (Speaks::H1, Speaks::H2);
const GET1: &str = "GET / HTTP/1.1\nHost: app\n\n";
const GET2: &str = "GET app /\n\n";
const OK1: &str = "HTTP/1.1 200 OK\nContent-Length: 2\n\nok";
const OK2: &str = "200\n\nok";

const CASES: &[Case] = &[
    // HTTP/2 requests at an HTTP/1 application.
    case(
        "cookie crumbs are joined",
        DOWN,
        "GET app /\ncookie: a=1\nx: y\ncookie: b=2\ncookie: c\n\n",
        OK1,
    ),
    case("te passes", DOWN, "GET app /\nte: trailers\n\n", OK1),
    case("host beside the authority", DOWN, "GET app:80 /p?q=1\nhost: app:80\n\n", OK1),
    case(
        "repeated fields stay apart",
        DOWN,
        "GET app /\naccept: a\nx-a: 1\nx-a: 2\naccept: b\n\n",
        OK1,
    ),
    case("content of unknown length", DOWN, "POST app /\n\nsome content", OK1),
    case("content of known length", DOWN, "POST app /\ncontent-length: 4\n\nfour", OK1),
    case(
        "content with trailers",
        DOWN,
        "POST app /\nte: trailers\n\ncontent\nx-end: 1\nx-end: 2\n",
        OK1,
    ),
    case("no content", DOWN, "POST app /\n\n", OK1),
    case("no content, and it says so", DOWN, "PUT app /\ncontent-length: 0\n\n", OK1),
    case("content of a get", DOWN, "GET app /\n\nodd", OK1),
    case(
        "expectation",
        DOWN,
        "POST app /\nexpect: 100-continue\n\ncontent",
        "HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    ),
    case(
        "a stream reset in the middle",
        DOWN,
        "POST app /\n\nhalf!reset 8!",
        "!early!HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\nhalf\n!wait!",
    ),
    // HTTP/1 answers for an HTTP/2 client.
    case(
        "fields of the connection",
        DOWN,
        GET2,
        "HTTP/1.1 200 Fine\nConnection: x-hop, keep-alive\nX-Hop: 1\nKeep-Alive: timeout=5\nProxy-Connection: a\nUpgrade: h2c\nX-Kept: YES\nContent-Length: 2\n\nok",
    ),
    case(
        "cookies that are set",
        DOWN,
        GET2,
        "HTTP/1.1 200 OK\nSet-Cookie: a=1\nSet-Cookie: b=2\nContent-Length: 0\n\n",
    ),
    case(
        "chunked with trailers",
        DOWN,
        GET2,
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-End\n\n2\nok\n0\nX-End: 1\n\n",
    ),
    case("until the end of the connection", DOWN, GET2, "HTTP/1.1 200 OK\n\nall of it!close!"),
    case("of HTTP/1.0", DOWN, GET2, "HTTP/1.0 200 OK\nContent-Length: 2\n\nok!close!"),
    case(
        "early hints",
        DOWN,
        GET2,
        "HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    ),
    case("an answer to head", DOWN, "HEAD app /\n\n", "HTTP/1.1 200 OK\nContent-Length: 10\n\n"),
    case(
        "not modified",
        DOWN,
        GET2,
        "HTTP/1.1 304 Not Modified\nContent-Length: 10\nETag: \"a\"\n\n",
    ),
    case("no content in the answer", DOWN, GET2, "HTTP/1.1 204 No Content\n\n"),
    case("an answer cut short", DOWN, GET2, "HTTP/1.1 200 OK\nContent-Length: 10\n\nhalf!close!"),
    case(
        "chunks cut short",
        DOWN,
        GET2,
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\nhalf\n!close!",
    ),
    case("no answer", DOWN, GET2, "!close!"),
    case(
        "an answer before the request is whole",
        DOWN,
        "POST app /\n\npart!open!",
        "!early!HTTP/1.1 413 Payload Too Large\nContent-Length: 2\n\nno",
    ),
    // HTTP/1 requests at an HTTP/2 application.
    case(
        "names and the host",
        UP,
        "GET /p?q=1 HTTP/1.1\nHOST: app\nX-Custom: A\nAccept: b\n\n",
        OK2,
    ),
    case(
        "fields of the client's connection",
        UP,
        "GET / HTTP/1.1\nHost: app\nConnection: x-hop, keep-alive\nX-Hop: 1\nKeep-Alive: 5\nProxy-Connection: a\n\n",
        OK2,
    ),
    case(
        "te of which trailers stay",
        UP,
        "GET / HTTP/1.1\nHost: app\nTE: trailers, deflate\nConnection: TE\n\n",
        OK2,
    ),
    case(
        "te without trailers",
        UP,
        "GET / HTTP/1.1\nHost: app\nTE: deflate\nConnection: TE\n\n",
        OK2,
    ),
    case(
        "chunks and trailers",
        UP,
        "POST / HTTP/1.1\nHost: app\nTransfer-Encoding: chunked\nTrailer: x-end\n\n7\ncontent\n0\nX-End: 1\n\n",
        OK2,
    ),
    case("a length", UP, "POST / HTTP/1.1\nHost: app\nContent-Length: 4\n\nfour", OK2),
    case("a length of nothing", UP, "POST / HTTP/1.1\nHost: app\nContent-Length: 0\n\n", OK2),
    case("neither length nor chunks", UP, "POST / HTTP/1.1\nHost: app\n\n", OK2),
    case("a cookie stays whole", UP, "GET / HTTP/1.1\nHost: app\nCookie: a=1; b=2\n\n", OK2),
    case("absolute form", UP, "GET http://app/p HTTP/1.1\nHost: other\n\n", OK2),
    case(
        "an expectation",
        UP,
        "POST / HTTP/1.1\nHost: app\nExpect: 100-continue\nContent-Length: 4\n\nfour",
        "100\n\n200\n\nok",
    ),
    // HTTP/2 answers for an HTTP/1 client.
    case(
        "an answer without length",
        UP,
        GET1,
        "200\nx-a: 1\nx-a: 2\nset-cookie: a\nset-cookie: b\n\nok",
    ),
    case("an answer with length", UP, GET1, "200\ncontent-length: 2\n\nok"),
    case("an answer with trailers", UP, GET1, "200\n\nok\nx-end: 1\n"),
    case("trailers after nothing", UP, GET1, "200\n\n\nx-end: 1\n"),
    case("an answer of nothing", UP, GET1, "200\n\n!end!"),
    case("no content at all", UP, GET1, "204\n\n!end!"),
    case("nothing new", UP, GET1, "304\netag: \"a\"\n\n!end!"),
    case(
        "the head of an answer",
        UP,
        "HEAD / HTTP/1.1\nHost: app\n\n",
        "200\ncontent-length: 10\n\n!end!",
    ),
    case("hints", UP, GET1, "103\nlink: </a>\n\n200\n\nok"),
    case("a status without a phrase", UP, GET1, "299\n\nok"),
    case("a reset in the answer", UP, GET1, "200\n\nhalf!reset 2!"),
    case("a reset instead of an answer", UP, GET1, "!reset 2!"),
    case(
        "an answer, and the rest is not wanted",
        UP,
        "POST / HTTP/1.1\nHost: app\nContent-Length: 99\n\npart",
        "!early!413\ncontent-length: 2\n\nno!reset 0!",
    ),
    // Codes between HTTP/2 and HTTP/2.
    case("the endpoint's reset", (Speaks::H2, Speaks::H2), GET2, "200\n\nhalf!reset 11!"),
    case(
        "the client's reset",
        (Speaks::H2, Speaks::H2),
        "POST app /\n\nhalf!reset 8!",
        "!early!200\n\nhalf!wait!",
    ),
    case(
        "an answer before the end",
        (Speaks::H2, Speaks::H2),
        "POST app /\n\npart!open!",
        "!early!403\n\nno!reset 0!",
    ),
];

/// What the application saw, put down by its tasks.
#[derive(Default)]
struct Script {
    answer: RefCell<&'static str>,
    seen: RefCell<String>,
    /// The application has put down what it saw.
    done: Notify,
    /// The client has a half, or everything.
    heard: RefCell<Rc<Notify>>,
}

#[test]
fn messages_between_versions_are_as_written_down() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/tests/versions.txt");
    let binary = peer::envoy("messages_between_versions_are_as_written_down");
    let mut text = String::new();
    for (client, app) in [DOWN, UP, (Speaks::H2, Speaks::H2)] {
        run(setup(app), |mesh| {
            let (binary, text) = (&binary, &mut text);
            async move {
                let script = Rc::new(Script::default());
                tokio::task::spawn_local(serve(mesh.clone(), app, script.clone()));
                let envoy = match binary {
                    Some(binary) => Some(Stock::start(binary, &mesh).await),
                    None => None,
                };
                let cases = CASES.iter().filter(|case| (case.client, case.app) == (client, app));
                for case in cases {
                    let ours = play(case, mesh.address, &script).await;
                    writeln!(text, "# {} ({client:?} to {app:?})\n{ours}", case.name).unwrap();
                    let Some(envoy) = &envoy else { continue };
                    let theirs = play(case, envoy.address, &script).await;
                    if theirs != ours {
                        for line in theirs.lines() {
                            writeln!(text, "    envoy: {line}").unwrap();
                        }
                        text.push('\n');
                    }
                }
            }
        });
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let mut golden = std::fs::read_to_string(path).unwrap();
    if binary.is_none() {
        let ours = golden.lines().filter(|line| !line.starts_with("    envoy: "));
        golden = squeeze(ours);
        text = squeeze(text.lines());
    }
    for (now, before) in text.lines().zip(golden.lines()) {
        assert_eq!(now, before, "(UPDATE=1 rewrites)\n{text}");
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "(UPDATE=1 rewrites)");
}

fn squeeze<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn setup(app: Speaks) -> Setup {
    let cluster = match app {
        Speaks::H1 => json!({"typedExtensionProtocolOptions": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicitHttpConfig": {"httpProtocolOptions": {"enableTrailers": true}},
            },
        }}),
        Speaks::H2 => h2_cluster(),
    };
    Setup {
        hcm: json!({
            "generateRequestId": false,
            "httpProtocolOptions": {"enableTrailers": true},
            "proxy100Continue": true,
        }),
        cluster,
        ..Setup::default()
    }
}

async fn play(case: &Case, to: SocketAddr, script: &Rc<Script>) -> String {
    *script.answer.borrow_mut() = case.answer;
    script.seen.borrow_mut().clear();
    *script.heard.borrow_mut() = Rc::default();
    let got = async {
        let got = match case.client {
            Speaks::H1 => ask_h1(to, case.request, script).await,
            Speaks::H2 => ask_h2(to, case.request, script).await,
        };
        script.done.notified().await;
        got
    };
    let got = tokio::time::timeout(PATIENCE, got).await;
    let got = got.unwrap_or_else(|_| "hangs".to_owned());
    let mut text = String::new();
    for line in script.seen.borrow().lines() {
        writeln!(text, "  app < {line}").unwrap();
    }
    for line in got.lines() {
        writeln!(text, "  client < {line}").unwrap();
    }
    text
}

/// Differ by clock or name, or are said by Envoy alone.
const IGNORED: [&str; 5] = [
    "date",
    "server",
    "x-envoy-upstream-service-time",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-proto",
];

fn note(text: &mut String, first: &str, lines: impl Iterator<Item = (String, String)>) {
    writeln!(text, "{first}").unwrap();
    let mut lines: Vec<_> = lines
        .filter(|(name, _)| !IGNORED.contains(&name.to_ascii_lowercase().as_str()))
        // The spelling of names is another test's matter.
        .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
        .collect();
    // Between fields of different names order has no meaning; Envoy does not keep it.
    lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
}

fn fields(list: &HeaderList) -> impl Iterator<Item = (String, String)> + '_ {
    list.iter().map(|header| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(header.name), text(header.value))
    })
}

fn map(map: &http::HeaderMap) -> impl Iterator<Item = (String, String)> + '_ {
    map.iter().map(|(name, value)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    })
}

/// `text` with HTTP/1's line ends, without what happens, and what happens.
fn actions(text: &str) -> (String, Vec<&str>) {
    let mut parts = text.split('!');
    let mut said = String::new();
    let mut happens = Vec::new();
    while let Some(part) = parts.next() {
        said.push_str(part);
        happens.extend(parts.next());
    }
    (said, happens)
}

// HTTP/1 on either side.

async fn ask_h1(to: SocketAddr, request: &str, script: &Script) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let method = Method::from_bytes(request.split(' ').next().unwrap().as_bytes());
    let (mut buf, mut text) = (BytesMut::new(), String::new());
    loop {
        match parse_response(&mut buf, &H1Limits::DEFAULT, &method).unwrap() {
            Parsed::Complete((head, length, _)) => {
                let phrase = head.reason.as_deref().unwrap_or_default();
                let first = format!("{} {}", head.status, String::from_utf8_lossy(phrase));
                note(&mut text, first.trim_end(), fields(&head.headers));
                if !head.is_informational() {
                    let heard = script.heard.borrow().clone();
                    read_body(&mut stream, &mut buf, length, &mut text, Some(&heard)).await;
                    heard.notify_one();
                    return text;
                }
            }
            Parsed::Partial => {
                if !matches!(stream.read_buf(&mut buf).await, Ok(1..)) {
                    text.push_str("closed\n");
                    return text;
                }
            }
        }
    }
}

async fn read_body(
    stream: &mut TcpStream,
    buf: &mut BytesMut,
    length: BodyLength,
    text: &mut String,
    heard: Option<&Notify>,
) {
    let (mut decoder, mut body) = (BodyDecoder::new(length), Vec::new());
    let mut trailers = None;
    let end = loop {
        match decoder.decode(buf).unwrap() {
            Decoded::Frame(Frame::Data(data)) => {
                body.extend_from_slice(&data);
                if let (b"half", Some(heard)) = (&body[..], heard) {
                    heard.notify_one();
                }
            }
            Decoded::Frame(Frame::Trailers(list)) => trailers = Some(list),
            Decoded::End => break "",
            Decoded::NeedMore => match stream.read_buf(buf).await {
                Ok(1..) => {}
                _ if decoder.eof().is_ok() => break "",
                _ => break "cut\n",
            },
        }
    };
    if !body.is_empty() {
        writeln!(text, "content {}", String::from_utf8_lossy(&body)).unwrap();
    }
    if let Some(trailers) = trailers {
        note(text, "trailers", fields(&trailers));
    }
    text.push_str(end);
}

async fn serve(mesh: Rc<Mesh>, app: Speaks, script: Rc<Script>) {
    loop {
        let (stream, _) = mesh.apps[0].accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let script = script.clone();
        match app {
            Speaks::H1 => tokio::task::spawn_local(serve_h1(stream, script)),
            Speaks::H2 => tokio::task::spawn_local(serve_h2(stream, script)),
        };
    }
}

async fn serve_h1(mut stream: TcpStream, script: Rc<Script>) {
    let mut buf = BytesMut::new();
    loop {
        let (head, length, _) = loop {
            match parse_request(&mut buf, &H1Limits::DEFAULT).unwrap() {
                Parsed::Complete(parsed) => break parsed,
                Parsed::Partial => {
                    if !matches!(stream.read_buf(&mut buf).await, Ok(1..)) {
                        return;
                    }
                }
            }
        };
        let (answer, happens) = actions(*script.answer.borrow());
        let answer = answer.replace('\n', "\r\n");
        let path = String::from_utf8_lossy(head.path_and_query()).into_owned();
        let mut text = String::new();
        let first = format!("{} {path}", String::from_utf8_lossy(head.method.as_bytes()));
        note(&mut text, &first, fields(&head.headers));
        let first_head = answer.find("\r\n\r\n").map_or(0, |at| at + 4);
        let informational = answer.starts_with("HTTP/1.1 1");
        if informational {
            stream.write_all(&answer.as_bytes()[..first_head]).await.unwrap();
        }
        let early = happens.contains(&"early");
        if !early {
            read_body(&mut stream, &mut buf, length, &mut text, None).await;
        }
        let rest = if informational { &answer[first_head..] } else { &answer };
        stream.write_all(rest.as_bytes()).await.unwrap();
        if early {
            // Ends with what the proxy makes of the request, or of its end.
            read_body(&mut stream, &mut buf, length, &mut text, None).await;
        }
        *script.seen.borrow_mut() = text;
        script.done.notify_one();
        if early || happens.contains(&"close") {
            return;
        }
    }
}

// HTTP/2 on either side.

/// Head lines, content, trailer lines.
fn parts(text: &str) -> (Lines<'_>, &str, Lines<'_>) {
    let (head, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let (body, trailers) = rest.split_once('\n').unwrap_or((rest, ""));
    (lines(head), body, lines(trailers))
}

/// Names and values.
type Lines<'a> = Vec<(&'a str, &'a str)>;

fn lines(text: &str) -> Lines<'_> {
    text.lines().filter_map(|line| line.split_once(": ")).collect()
}

async fn ask_h2(to: SocketAddr, request: &str, script: &Script) -> String {
    let stream = TcpStream::connect(to).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let (said, happens) = actions(request);
    let (head, body, trailers) = parts(&said);
    let first: Vec<&str> = said.lines().next().unwrap().split(' ').collect();
    let uri = match first[2] {
        "*" => http::Uri::builder().scheme("http").authority(first[1]).path_and_query("*"),
        path => http::Uri::builder().scheme("http").authority(first[1]).path_and_query(path),
    };
    let mut builder = http::Request::builder().method(first[0]).uri(uri.build().unwrap());
    for (name, value) in head {
        builder = builder.header(name, value);
    }
    let open = happens.contains(&"open");
    let reset = happens.iter().find_map(|one| one.strip_prefix("reset "));
    let more = !body.is_empty() || !trailers.is_empty() || open || reset.is_some();
    let (mut response, mut stream) =
        send.ready().await.unwrap().send_request(builder.body(()).unwrap(), !more).unwrap();
    let last = trailers.is_empty() && !open && reset.is_none();
    if more {
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), last).unwrap();
    }
    if !trailers.is_empty() {
        let mut map = http::HeaderMap::new();
        for (name, value) in trailers {
            map.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        stream.send_trailers(map).unwrap();
    }
    let mut text = String::new();
    while let Some(Ok(head)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
        note(&mut text, head.status().as_str(), map(head.headers()));
    }
    let response = match response.await {
        Ok(response) => response,
        Err(error) => return text + &reset_text(&error),
    };
    note(&mut text, response.status().as_str(), map(response.headers()));
    let mut body = response.into_body();
    let mut content = Vec::new();
    let mut end = String::new();
    loop {
        match body.data().await {
            Some(Ok(data)) => {
                body.flow_control().release_capacity(data.len()).unwrap();
                content.extend_from_slice(&data);
                if content == b"half" {
                    script.heard.borrow().notify_one();
                }
                if let (b"half", Some(code)) = (&content[..], reset) {
                    stream.send_reset(code.parse::<u32>().unwrap().into());
                    break;
                }
            }
            Some(Err(error)) => {
                end = reset_text(&error);
                break;
            }
            None => break,
        }
    }
    if !content.is_empty() {
        writeln!(text, "content {}", String::from_utf8_lossy(&content)).unwrap();
    }
    script.heard.borrow().notify_one();
    if reset.is_none()
        && let Ok(Some(trailers)) = body.trailers().await
    {
        note(&mut text, "trailers", map(&trailers));
    }
    text + &end
}

fn reset_text(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) => format!("reset {}\n", u32::from(reason)),
        None => "lost\n".to_owned(),
    }
}

async fn serve_h2(stream: TcpStream, script: Rc<Script>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::task::spawn_local(answer_h2(request, respond, script.clone()));
    }
}

async fn answer_h2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    script: Rc<Script>,
) {
    let (answer, happens) = actions(*script.answer.borrow());
    let (head, mut body) = request.into_parts();
    let mut text = String::new();
    let authority = head.uri.authority().map_or("-", |authority| authority.as_str());
    let path = head.uri.path_and_query().map_or("-", |path| path.as_str());
    note(&mut text, &format!("{} {authority} {path}", head.method), map(&head.headers));
    let early = happens.contains(&"early");
    let mut rest = &answer[..];
    while rest.starts_with('1') {
        let (informational, after) = rest.split_once("\n\n").unwrap();
        let response = response_of(informational);
        respond.send_informational(response).unwrap();
        rest = after;
    }
    if !early {
        read_h2(&mut body, &mut text).await;
    }
    let reset = happens.iter().find_map(|one| one.strip_prefix("reset "));
    if rest.is_empty() {
        respond.send_reset(reset.unwrap().parse::<u32>().unwrap().into());
    } else {
        let (_, content, trailers) = parts(rest);
        let end = happens.contains(&"end");
        let mut stream = respond.send_response(response_of(rest), end).unwrap();
        let wait = happens.contains(&"wait");
        let cut = content == "half";
        if !end {
            let last = trailers.is_empty() && !cut;
            stream.send_data(Bytes::copy_from_slice(content.as_bytes()), last).unwrap();
        }
        if !trailers.is_empty() {
            let mut map = http::HeaderMap::new();
            for (name, value) in trailers {
                map.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            }
            stream.send_trailers(map).unwrap();
        }
        if let Some(code) = reset {
            // A reset overtakes what the client has not got.
            let heard = script.heard.borrow().clone();
            heard.notified().await;
            stream.send_reset(code.parse::<u32>().unwrap().into());
        }
        if wait {
            read_h2(&mut body, &mut text).await;
        }
    }
    *script.seen.borrow_mut() = text;
    script.done.notify_one();
}

fn response_of(text: &str) -> http::Response<()> {
    let status: u16 = text.lines().next().unwrap().parse().unwrap();
    let mut builder = http::Response::builder().status(status);
    for (name, value) in parts(text).0 {
        builder = builder.header(name, value);
    }
    builder.body(()).unwrap()
}

async fn read_h2(body: &mut h2::RecvStream, text: &mut String) {
    let mut content = Vec::new();
    let mut end = String::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                body.flow_control().release_capacity(data.len()).unwrap();
                content.extend_from_slice(&data);
            }
            Err(error) => {
                end = reset_text(&error);
                break;
            }
        }
    }
    if !content.is_empty() {
        writeln!(text, "content {}", String::from_utf8_lossy(&content)).unwrap();
    }
    if let (true, Ok(Some(trailers))) = (end.is_empty(), body.trailers().await) {
        note(text, "trailers", map(&trailers));
    }
    text.push_str(&end);
}
