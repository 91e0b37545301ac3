//! The chosen inputs, by topic: everything that two implementations of HTTP/1 are known to read
//! differently, with the sound message beside it.

use super::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    sound(&mut cases);
    lengths(&mut cases);
    codings(&mut cases);
    both(&mut cases);
    lines(&mut cases);
    request_lines(&mut cases);
    hosts(&mut cases);
    targets(&mut cases);
    chunks(&mut cases);
    trailers(&mut cases);
    connections(&mut cases);
    bytes(&mut cases);
    cases
}

fn case(cases: &mut Vec<Case>, topic: &str, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref().to_vec();
    cases.push(Case { name: format!("{topic} {}", cases.len()), bytes });
}

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app\r\n\r\n";

fn post(lines: &str, body: &str) -> String {
    format!("POST /first HTTP/1.1\r\nHost: app\r\n{lines}\r\n{body}")
}

fn get(lines: &str) -> String {
    format!("GET /first HTTP/1.1\r\nHost: app\r\n{lines}\r\n")
}

fn sound(cases: &mut Vec<Case>) {
    for bytes in [
        get(""),
        get("").repeat(3),
        post("Content-Length: 3\r\n", "abc"),
        post("Content-Length: 3\r\n", "abc").repeat(2),
        post("Content-Length: 0\r\n", ""),
        post("", ""),
        post("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n").repeat(2),
        post("Transfer-Encoding: chunked\r\nTrailer: x\r\n", "0\r\nx: y\r\n\r\n"),
        get("X-CustomID: 1\r\nSOAPAction: x\r\nx-customid: 2\r\n"),
        "HEAD /first HTTP/1.1\r\nHost: app\r\n\r\n".into(),
        "OPTIONS * HTTP/1.1\r\nHost: app\r\n\r\n".into(),
        "DELETE /first HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc".into(),
        "GET /first HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc".into(),
        "GET /first HTTP/1.0\r\n\r\n".into(),
        "GET /first HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n".into(),
        "POST /first HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc".into(),
    ] {
        case(cases, "sound", bytes);
    }
}

fn lengths(cases: &mut Vec<Case>) {
    let long = HIDDEN.len();
    for value in [
        "",
        "+3",
        "-3",
        "3 ",
        " 3",
        "3 3",
        "3,3",
        "3, 3",
        "3,4",
        "0x3",
        "3a",
        "03",
        "003",
        "3.0",
        "3;a=b",
        "\"3\"",
        "3\t",
        "\t3",
        "3e0",
        "0",
        "-0",
        "+0",
        "00",
        "4294967299",
        "18446744073709551619",
        "18446744073709551615",
        "9223372036854775807",
        "9223372036854775808",
        "99999999999999999999999999",
        "\u{0663}",
        "3\u{00a0}",
        "0b11",
        "3_0",
        "three",
        "NaN",
        "3\x0b",
        "3\x0c",
        ",3",
        "3,",
        "3,,3",
    ] {
        case(cases, "length", post(&format!("Content-Length: {value}\r\n"), "abc"));
        case(cases, "length", post(&format!("Content-Length: {value}\r\n"), HIDDEN));
    }
    for lines in [
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nX: y\r\ncontent-length: 4\r\n",
        "Content-Length: 3\r\nContent-Length:\r\n",
        "Content-Length:\r\nContent-Length: 3\r\n",
        "Content_Length: 3\r\n",
        "Content-Length : 3\r\n",
        "Content-Length\t: 3\r\n",
        " Content-Length: 3\r\n",
        "Content-Length\r\n: 3\r\n",
        "Content-Length:\r\n 3\r\n",
        "Content-Length: 3\r\n 3\r\n",
        "X: y\r\n Content-Length: 3\r\n",
        "Content-Length: 0\r\n 3\r\n",
        "Content-Length:3\r\n",
        "CONTENT-LENGTH: 3\r\n",
        "Content Length: 3\r\n",
        "Content-Length: 3\rX: y\r\n",
        "X: y\rContent-Length: 3\r\n",
        "X: y\nContent-Length: 3\r\n",
        "X: y\0Content-Length: 3\r\n",
        "Content-Length: 3\0\r\n",
        "Content-Length: 0\rContent-Length: 3\r\n",
    ] {
        case(cases, "length line", post(lines, "abc"));
        case(cases, "length line", post(lines, HIDDEN));
    }
    for (length, body) in [(long, HIDDEN), (long - 4, HIDDEN), (long + 4, HIDDEN), (1, "abc")] {
        case(cases, "length off", post(&format!("Content-Length: {length}\r\n"), body));
        case(cases, "length off", get(&format!("Content-Length: {length}\r\n")) + body);
        let head = format!("HEAD /first HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n");
        case(cases, "length off", head + body);
    }
}

fn codings(cases: &mut Vec<Case>) {
    let bodies = ["3\r\nabc\r\n0\r\n\r\n".to_owned(), format!("0\r\n\r\n{HIDDEN}")];
    for lines in [
        "Transfer-Encoding: Chunked\r\n",
        "transfer-encoding: CHUNKED\r\n",
        "Transfer-Encoding:chunked\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Transfer-Encoding: chunked \r\n",
        "Transfer-Encoding: chunked\t\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: x chunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: 'chunked'\r\n",
        "Transfer-Encoding: chunk\r\n",
        "Transfer-Encoding: cow\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: ,\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "\tTransfer-Encoding: chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding: \r\n\tchunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer Encoding: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: \x0cchunked\r\n",
        "Transfer-Encoding: chunked\x0b\r\n",
        "Transfer-Encoding: \u{a0}chunked\r\n",
        "Transfer-Encoding: chun\u{212a}ed\r\n",
        "Transfer-Encoding: ch\u{ff55}nked\r\n",
        "Transfer-Encoding: \0chunked\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding: chunked\rX: y\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\n\rTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
        "\u{feff}Transfer-Encoding: chunked\r\n",
        "TransferEncoding: chunked\r\n",
        "TE: chunked\r\n",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        "\0Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        ":Transfer-Encoding: chunked\r\n",
    ] {
        for body in &bodies {
            case(cases, "coding", post(lines, body));
        }
        case(cases, "coding get", get(lines) + &bodies[1]);
    }
    let old = "POST /first HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\
               Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    case(cases, "coding in 1.0", old);
}

fn both(cases: &mut Vec<Case>) {
    for coding in [
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding:\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
    ] {
        for length in ["Content-Length: 6\r\n", "Content-Length: 0\r\n", "Content-Length: 40\r\n"] {
            for body in ["0\r\n\r\nG", "3\r\nabc\r\n0\r\n\r\n", "1\r\nZ\r\nQ\r\n\r\n"] {
                case(cases, "both", post(&format!("{length}{coding}"), body));
                case(cases, "both", post(&format!("{coding}{length}"), body));
            }
        }
    }
    let hidden = format!("0\r\n\r\n{HIDDEN}");
    for (name, length) in [("cl.te", hidden.len()), ("te.cl", 4)] {
        let lines = format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n");
        case(cases, name, post(&lines, &hidden));
    }
}

fn lines(cases: &mut Vec<Case>) {
    for line in [
        "X\r\n",
        "X \r\n",
        ":\r\n",
        ": y\r\n",
        "X : y\r\n",
        "X\t: y\r\n",
        "X:y\r\n",
        "X:\r\n",
        "X: \r\n",
        " X: y\r\n",
        "\tX: y\r\n",
        "X: y\r\n z\r\n",
        "X: y\r\n\tz\r\n",
        "X: y\r\n \r\n",
        "X: y\n",
        "X: y\r",
        "X: y\r\r\n",
        "X: y\n\r\n",
        "X: y\n\n",
        "X: y\r\n\n",
        "X: y\0z\r\n",
        "X: \x01\r\n",
        "X: \x7f\r\n",
        "X: y\x0bz\r\n",
        "X: \u{e9}\r\n",
        "X\u{e9}: y\r\n",
        "X\0: y\r\n",
        "X\x7f: y\r\n",
        "X(y): z\r\n",
        "X\"y\": z\r\n",
        "X/y: z\r\n",
        "X[y]: z\r\n",
        "X{y}: z\r\n",
        "X=y: z\r\n",
        "X@y: z\r\n",
        "X,y: z\r\n",
        "X;y: z\r\n",
        "X y: z\r\n",
        "X\\y: z\r\n",
        "X?y: z\r\n",
        "!#$%&'*+-.^_`|~9: z\r\n",
        "X_y: z\r\n",
        "\r\nX: y\r\n",
        "=: x\r\n",
        "X: y\rZ: w\r\n",
    ] {
        case(cases, "line", get(line));
        case(cases, "line", post(&format!("{line}Content-Length: 3\r\n"), "abc"));
        case(cases, "line first", format!("GET /first HTTP/1.1\r\n{line}Host: app\r\n\r\n"));
    }
    case(cases, "line many", get(&"X: y\r\n".repeat(99)));
    case(cases, "line many", get(&"X: y\r\n".repeat(101)));
    case(cases, "line long", get(&format!("X: {}\r\n", "y".repeat(70_000))));
    case(cases, "line long name", get(&format!("{}: y\r\n", "x".repeat(300))));
    for end in ["\n\n", "\r\n\n", "\n\r\n", "\r\r", "\r\n\r", "\r\r\n\r\n", "\n\r\n\r\n"] {
        case(cases, "end", format!("GET /first HTTP/1.1\r\nHost: app{end}"));
        let head = format!("POST /first HTTP/1.1\r\nHost: app\r\nContent-Length: 3{end}");
        case(cases, "end", head + "abc");
    }
    case(cases, "line feeds", "GET /first HTTP/1.1\nHost: app\n\n");
    case(cases, "line feeds", "POST /first HTTP/1.1\nHost: app\nContent-Length: 3\n\nabc");
}

fn request_lines(cases: &mut Vec<Case>) {
    for line in [
        "GET /first",
        "GET /first\r\nX: y",
        "GET  /first HTTP/1.1",
        "GET /first  HTTP/1.1",
        "GET\t/first HTTP/1.1",
        "GET /first\tHTTP/1.1",
        " GET /first HTTP/1.1",
        "GET /first HTTP/1.1 ",
        "GET /first HTTP/1.1\t",
        "GET /first HTTP/1.1 x",
        "GET /fi rst HTTP/1.1",
        "GET HTTP/1.1",
        "GET /first HTTP/1.2",
        "GET /first HTTP/1.10",
        "GET /first HTTP/1.01",
        "GET /first HTTP/01.1",
        "GET /first HTTP/2.0",
        "GET /first HTTP/0.9",
        "GET /first HTTP/3",
        "GET /first HTTP/1",
        "GET /first HTTP/1.",
        "GET /first HTTP/11",
        "GET /first HTTP/1.1.1",
        "GET /first http/1.1",
        "GET /first HTTPS/1.1",
        "GET /first HTTP /1.1",
        "GET /first HTTP/ 1.1",
        "GET /first HTTP/1 .1",
        "GET /first HTTP/-1.1",
        "GET /first HTTP/+1.1",
        "GET /first HTTP/1,1",
        "GET /first XTTP/1.1",
        "get /first HTTP/1.1",
        "Get /first HTTP/1.1",
        "G@T /first HTTP/1.1",
        "G T /first HTTP/1.1",
        "G\"T /first HTTP/1.1",
        "GET: /first HTTP/1.1",
        "GÉT /first HTTP/1.1",
        "/first HTTP/1.1",
        "PRI * HTTP/2.0",
        "FOO /first HTTP/1.1",
        "M-SEARCH /first HTTP/1.1",
        "TRACE /first HTTP/1.1",
        "G\0T /first HTTP/1.1",
        "GET /first HTTP/1.1\0",
        "GET\x0b/first HTTP/1.1",
        "GET\u{a0}/first HTTP/1.1",
        "GET /first HTTP/1.1\x0c",
        "\0GET /first HTTP/1.1",
    ] {
        case(cases, "request line", format!("{line}\r\nHost: app\r\n\r\n"));
    }
    for before in
        ["\r\n", "\r\n\r\n", "\n", "\r", "\r\n\r\n\r\n\r\n", " \r\n", "\0", "x\r\n", "\n\n"]
    {
        case(cases, "before", format!("{before}{}", get("")));
        let after = post("Content-Length: 3\r\n", "abc") + before + &get("");
        case(cases, "between", after);
    }
    case(cases, "0.9", "GET /first\r\n");
    case(cases, "0.9", "GET /first\r\n\r\n");
    case(cases, "0.9", "GET /first\n");
    let long = "a".repeat(9000);
    case(cases, "long target", format!("GET /{long} HTTP/1.1\r\nHost: app\r\n\r\n"));
    case(cases, "long method", format!("{long} / HTTP/1.1\r\nHost: app\r\n\r\n"));
}

fn hosts(cases: &mut Vec<Case>) {
    for host in [
        "",
        "Host:\r\n",
        "Host: \r\n",
        "Host: app\r\nHost: app\r\n",
        "Host: app\r\nHost: other\r\n",
        "Host: app\r\nhost: app\r\n",
        "Host: app, other\r\n",
        "Host: app other\r\n",
        "Host: app:80\r\n",
        "Host: app:\r\n",
        "Host: app:x\r\n",
        "Host: app:80:80\r\n",
        "Host: app:-1\r\n",
        "Host: app:99999\r\n",
        "Host: app:999999\r\n",
        "Host: user@app\r\n",
        "Host: app/x\r\n",
        "Host: app?x\r\n",
        "Host: app#x\r\n",
        "Host: http://app\r\n",
        "Host: //app\r\n",
        "Host: [::1]\r\n",
        "Host: [::1]:80\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: [app]\r\n",
        "Host: app\0\r\n",
        "Host: app\\x\r\n",
        "Host: a\"pp\r\n",
        "Host: <app>\r\n",
        "Host: \u{e9}\r\n",
        "Host: .\r\n",
        "Host: -\r\n",
        "Host: _app\r\n",
        "Host: app.\r\n",
        "Host: ..app\r\n",
        "Host: APP\r\n",
        "Host: %61pp\r\n",
        "Host: app%00\r\n",
        "Host : app\r\n",
        " Host: app\r\n",
        "Host\r\n: app\r\n",
        "Host:\r\n app\r\n",
        "Host: app\r\n other\r\n",
        "Host: app\tother\r\n",
        "Host: app;x\r\n",
        "Host: app=x\r\n",
        "Host: (app)\r\n",
        "Host: app*\r\n",
        "Host: *\r\n",
        "Host: app'x\r\n",
        "Host: app!x\r\n",
        "Host: app|x\r\n",
        "Host: app^x\r\n",
        "Host: app`x\r\n",
        "Host: {app}\r\n",
        "Host: app~x\r\n",
        "Host: app&x\r\n",
        "Host: app$x\r\n",
        "Host: app+x\r\n",
    ] {
        case(cases, "host", format!("GET /first HTTP/1.1\r\n{host}\r\n"));
        case(cases, "host late", format!("GET /first HTTP/1.1\r\nX: y\r\n{host}Z: w\r\n\r\n"));
        case(cases, "host 1.0", format!("GET /first HTTP/1.0\r\n{host}\r\n"));
    }
}

fn targets(cases: &mut Vec<Case>) {
    for target in [
        "http://app/first",
        "http://other/first",
        "HTTP://app/first",
        "https://app/first",
        "ftp://app/first",
        "http://app",
        "http://app?x",
        "http:///first",
        "http://",
        "http:/first",
        "http:app/first",
        "//app/first",
        "first",
        "",
        "*",
        "app:80",
        "?x",
        "#",
        "/first#x",
        "/first?#x",
        "http://user@app/first",
        "http://user:pass@app/first",
        "http://app:80/first",
        "http://app:x/first",
        "http://app:/first",
        "http://[::1]/first",
        "http://[::1/first",
        "http://app,other/first",
        "http://a pp/first",
        "http://app/first http://app/",
        "/first\\x",
        "/\u{e9}",
        "/first\x7f",
        "/first\0",
        "/first\x01",
        "/first%00",
        "/first%",
        "/first%zz",
        "/%2e%2e/x",
        "/a/../b",
        "/a//b",
        "/first\"",
        "/first<",
        "/first>",
        "/first^",
        "/first`",
        "/first{",
        "/first|",
        "/first'",
        "/first;x",
        "/first,x",
        "/first[",
        "/first]",
        "http://app\\first",
        "http://app#x",
        "http://app/first\t",
        "ws://app/first",
        "http://app%00/first",
        "http://%61pp/first",
    ] {
        case(cases, "target", format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n"));
        case(cases, "target 1.0", format!("GET {target} HTTP/1.0\r\n\r\n"));
        case(cases, "target options", format!("OPTIONS {target} HTTP/1.1\r\nHost: app\r\n\r\n"));
    }
    for target in
        ["app:80", "app", "/first", "http://app:80", "app:", ":80", "app:80/x", "*", "a@b:1"]
    {
        case(cases, "connect", format!("CONNECT {target} HTTP/1.1\r\nHost: app:80\r\n\r\n"));
        let body =
            format!("CONNECT {target} HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc");
        case(cases, "connect", body);
    }
}

fn chunks(cases: &mut Vec<Case>) {
    let with = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    for size in [
        "3",
        "03",
        "0000000000000003",
        "00000000000000000003",
        "0x3",
        "0X3",
        "+3",
        "-3",
        " 3",
        "3 ",
        "\t3",
        "3\t",
        "3  ",
        "3 ;x",
        "3;x",
        "3; x",
        "3;x=y",
        "3;x=\"y\"",
        "3;x=\"y",
        "3;",
        "3;;",
        "3 x",
        "3x",
        "3,",
        "3.0",
        "3\0",
        "3;\0",
        "3;\x7f",
        "3;\x01",
        "3;\u{e9}",
        "3;x\ry",
        "3\r",
        "3\n",
        "3;x\n",
        "3;x=\"\r",
        "three",
        "",
        ";",
        "g",
        "ffffffffffffffff",
        "10000000000000003",
        "fffffffffffffffff",
        "7fffffffffffffff",
        "8000000000000000",
        "80000003",
        "100000003",
        "3_",
        "0b11",
        "3h",
        "\x0b3",
        "3\x0b",
        "3\x0c",
        "3;x=\"\\\"y\"",
        "3;x=\"a\\\r\"",
    ] {
        case(cases, "chunk size", with(&format!("{size}\r\nabc\r\n0\r\n\r\n")));
        let hidden = format!("{size}\r\nabc\r\n0\r\n\r\n{HIDDEN}");
        case(cases, "chunk size hidden", with(&hidden));
    }
    for end in [
        "0",
        "00",
        "000000000000000000000",
        "-0",
        "+0",
        "0x0",
        "0;x",
        "0 ",
        " 0",
        "0\0",
        "0;",
        "0\n",
    ] {
        case(cases, "last chunk", with(&format!("3\r\nabc\r\n{end}\r\n\r\n")));
    }
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\nabc\n0\n\n",
        "3\rabc\r0\r\r",
        "3\r\nabc\r0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nab\r\n0\r\n\r\n",
        "3\r\nabcXX0\r\n\r\n",
        "3\r\nabc\r\r\n0\r\n\r\n",
        "3\r\nabc\n\r0\r\n\r\n",
        "3\r\nabc\r\n0\r\n",
        "3\r\nabc\r\n",
        "3\r\nabc",
        "3\r\n",
        "3",
        "0\r\n\r",
        "0\r\n",
        "0\r\r\n",
        "0\r\nX",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "3\r\n\r\nabc\r\n0\r\n\r\n",
        "abc",
        "0\r\n\r\n0\r\n\r\n",
        "3\r\r\nabc\r\n0\r\n\r\n",
        "3;x\r\r\nabc\r\n0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3;x\nabc\r\n0\r\n\r\n",
        "2;\nxx\r\n4c\r\n0\r\n\r\n",
    ] {
        case(cases, "chunk frame", with(body));
        case(cases, "chunk frame hidden", with(&format!("{body}{HIDDEN}")));
    }
    case(
        cases,
        "chunk extension long",
        with(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(5000))),
    );
    let many = "1;x=yyyyyyyyyyyyyyyy\r\na\r\n".repeat(2000) + "0\r\n\r\n";
    case(cases, "chunk extensions many", with(&many));
    let hidden = format!("2;\nxx\r\n{:x}\r\n0\r\n\r\n{HIDDEN}0\r\n\r\n", HIDDEN.len() + 5);
    case(cases, "chunk term.ext", with(&hidden));
}

fn trailers(cases: &mut Vec<Case>) {
    for trailer in [
        "X: y\r\n",
        "X: y\r\nX: z\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: other\r\n",
        "Connection: close\r\n",
        "X : y\r\n",
        " X: y\r\n",
        "X: y\r\n z\r\n",
        "X\r\n",
        ": y\r\n",
        "X: y\n",
        "X: y\r",
        "X: \0\r\n",
        "X\0: y\r\n",
        "X: y\rZ: w\r\n",
        "\n",
        "X: y\n\n",
        "GET /hidden HTTP/1.1\r\n",
        "GET /hidden HTTP/1.1\r\nHost: app\r\n",
        "X: \u{e9}\r\n",
        "Authorization: x\r\n",
        "X: y\r\n\tz\r\n",
        "X\n\n",
        "X\r\n\r\nGET /hidden HTTP/1.1\r\n",
    ] {
        let body = format!("3\r\nabc\r\n0\r\n{trailer}\r\n");
        case(cases, "trailer", post("Transfer-Encoding: chunked\r\n", &body));
        case(cases, "trailer hidden", post("Transfer-Encoding: chunked\r\n", &(body + HIDDEN)));
    }
    let long = format!("0\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    case(cases, "trailer long", post("Transfer-Encoding: chunked\r\n", &long));
}

fn connections(cases: &mut Vec<Case>) {
    for lines in [
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Connection: Keep-Alive, close\r\n",
        "Connection: close, X\r\nX: y\r\n",
        "Connection: Host\r\n",
        "Connection: Content-Length\r\n",
        "Connection: Transfer-Encoding\r\n",
        "Connection: close\r\nConnection: keep-alive\r\n",
        "Proxy-Connection: close\r\n",
        "Keep-Alive: timeout=5\r\n",
        "Connection:\r\n",
        "Connection: ,\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: foo\r\n",
        "Upgrade: websocket\r\n",
        "Expect: 100-continue\r\n",
        "Expect: 100-Continue\r\n",
        "Expect: 200-ok\r\n",
        "Expect:\r\n",
        "Expect: 100-continue, x\r\n",
        "Expect: 100-continue\r\nExpect: 100-continue\r\n",
        "Expect: x 100-continue\r\n",
        "Expect : 100-continue\r\n",
        "Expect: y 100-continue\r\n",
        "Content-Type: a\r\nContent-Type: b\r\n",
        "TE: trailers\r\n",
        "TE: gzip\r\n",
        "Trailer: X\r\n",
        "X-HTTP-Method-Override: DELETE\r\n",
        "Range: bytes=0-0\r\n",
        "Max-Forwards: 0\r\n",
    ] {
        case(cases, "connection", get(lines));
        case(cases, "connection", post(&format!("{lines}Content-Length: 3\r\n"), "abc"));
        let coded =
            post(&format!("{lines}Transfer-Encoding: chunked\r\n"), "3\r\nabc\r\n0\r\n\r\n");
        case(cases, "connection", coded);
        case(cases, "connection 1.0", format!("GET /first HTTP/1.0\r\nHost: app\r\n{lines}\r\n"));
    }
    let expect = "Expect: 100-continue\r\n";
    case(cases, "expect hidden", get(&format!("{expect}Content-Length: 0\r\n")) + HIDDEN);
    let length = format!("{expect}Content-Length: {}\r\n", HIDDEN.len());
    case(cases, "expect hidden", get(&length) + HIDDEN);
    case(cases, "expect hidden", post(&length, HIDDEN));
}

/// Every byte at every kind of place.
fn bytes(cases: &mut Vec<Case>) {
    for byte in
        (0..=0x20).chain([0x22, 0x23, 0x2c, 0x3a, 0x3b, 0x40, 0x5c, 0x7f, 0x80, 0x85, 0xa0, 0xff])
    {
        let mut put = |place: &str, before: &str, after: &str| {
            let bytes = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            case(cases, &format!("byte {byte:#x} in {place}"), bytes);
        };
        put("method", "GE", "T /first HTTP/1.1\r\nHost: app\r\n\r\n");
        put("target", "GET /fi", "rst HTTP/1.1\r\nHost: app\r\n\r\n");
        put("name", "GET /first HTTP/1.1\r\nHost: app\r\nX", "Y: z\r\n\r\n");
        put("name end", "GET /first HTTP/1.1\r\nHost: app\r\nX", ": z\r\n\r\n");
        put("value", "GET /first HTTP/1.1\r\nHost: app\r\nX: y", "z\r\n\r\n");
        put("host", "GET /first HTTP/1.1\r\nHost: ap", "p\r\n\r\n");
        put("length", "POST /first HTTP/1.1\r\nHost: app\r\nContent-Length: 3", "\r\n\r\nabc");
        put("length start", "POST /first HTTP/1.1\r\nHost: app\r\nContent-Length:", "3\r\n\r\nabc");
        put("length name", "POST /first HTTP/1.1\r\nHost: app\r\nContent-Length", ": 3\r\n\r\nabc");
        put(
            "coding",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked",
            "\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        );
        put(
            "coding start",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding:",
            "chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        );
        put(
            "chunk size",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3",
            "\r\nabc\r\n0\r\n\r\n",
        );
        put(
            "extension",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3;x",
            "y\r\nabc\r\n0\r\n\r\n",
        );
        put(
            "last chunk",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0",
            "\r\n\r\n",
        );
        put(
            "trailer",
            "POST /first HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y",
            "z\r\n\r\n",
        );
    }
}
