//! Tells TLS, HTTP/1, HTTP/2 and everything else apart from the first bytes of a connection.
//! Sans-io: the caller reads and keeps the time. A server-first protocol sends nothing, so the
//! caller's timeout decides "none of these".

use super::client_hello::{self, ClientHello, Hello};

/// Which inspectors a listener asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Recognise TLS and read SNI and ALPN.
    pub tls: bool,
    /// Recognise HTTP/1 and HTTP/2 in plain bytes.
    pub http: bool,
}

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// An HTTP/1 request line; the value is Envoy's application protocol name.
    Http1(&'static str),
    /// The HTTP/2 preface in clear.
    H2c,
    /// None of what was asked for.
    Other,
}

/// The HTTP/2 client preface, RFC 9113 §3.4.
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// With this many bytes there is always a decision.
pub const BYTES_MAX: usize = client_hello::CLIENT_HELLO_BYTES_MAX;

/// Longest request line looked at before calling it HTTP/1 on the strength of its method. Bytes.
const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Longest method token; WebDAV's are shorter. Bytes.
const METHOD_BYTES_MAX: usize = 24;

/// `None` while the bytes could still turn out to be something asked for.
pub fn inspect(bytes: &[u8], want: Want) -> Option<Protocol> {
    if want.tls {
        match client_hello::inspect(bytes) {
            Hello::Found(hello) => return Some(Protocol::Tls(hello)),
            Hello::NeedMore => return None,
            Hello::NotTls => {}
        }
    }
    match want.http {
        true => http(bytes),
        false => Some(Protocol::Other),
    }
}

fn http(bytes: &[u8]) -> Option<Protocol> {
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        return (common == H2_PREFACE.len()).then_some(Protocol::H2c);
    }
    let Some(space) = memchr::memchr(b' ', &bytes[..bytes.len().min(METHOD_BYTES_MAX)]) else {
        // No blank yet: still a method only while it is short and upper case.
        return match bytes.len() < METHOD_BYTES_MAX && bytes.iter().all(is_method_byte) {
            true => None,
            false => Some(Protocol::Other),
        };
    };
    if space == 0 || !bytes[..space].iter().all(is_method_byte) {
        return Some(Protocol::Other);
    }
    // Only what belongs to the line counts, or the answer would depend on how the bytes arrived.
    let line = &bytes[..bytes.len().min(REQUEST_LINE_BYTES_MAX)];
    match line[space..].iter().position(|byte| *byte < 0x20 && *byte != b'\r') {
        Some(at) if line[space + at] == b'\n' => Some(version(&line[..space + at])),
        Some(_) => Some(Protocol::Other),
        None if line.len() == REQUEST_LINE_BYTES_MAX => Some(Protocol::Http1("http/1.1")),
        None => None,
    }
}

fn is_method_byte(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || *byte == b'-' || *byte == b'_'
}

fn version(line: &[u8]) -> Protocol {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line {
        _ if line.ends_with(b" HTTP/1.1") => Protocol::Http1("http/1.1"),
        _ if line.ends_with(b" HTTP/1.0") => Protocol::Http1("http/1.0"),
        _ => Protocol::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expect: impl Into<Option<Protocol>>) {
        let expect = expect.into();
        let want = Want { tls: true, http: true };
        assert_eq!(inspect(bytes, want), expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn first_bytes() {
        check(b"", None);
        check(b"GE", None);
        check(b"GET / HTT", None);
        check(b"GET / HTTP/1.1\r\n", Some(Protocol::Http1("http/1.1")));
        check(b"GET / HTTP/1.0\r\nA: b", Some(Protocol::Http1("http/1.0")));
        check(b"GET / HTTP/0.9\r\n", Some(Protocol::Other));
        check(b"M-SEARCH * HTTP/1.1\n", Some(Protocol::Http1("http/1.1")));
        check(b"PRI * HTTP/2.0\r\n", None);
        check(H2_PREFACE, Some(Protocol::H2c));
        check(b"PRI * HTTP/2.0\r\nX", Some(Protocol::Other));
        check(b"\x16", None);
        check(b"\x16\x03\x01", None);
        check(b"\x16\x02", Some(Protocol::Other));
        check(b"hello there", Some(Protocol::Other));
        check(b"\0\0\0\x10", Some(Protocol::Other));
        check(b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Other));
        check(b"SELECT \x01", Some(Protocol::Other));
        check(b"GET /\x01 HTTP/1.1\r\n", Some(Protocol::Other));
        check(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Protocol::Other));
    }

    /// Whether a long line comes in one read or in many.
    #[test]
    fn the_end_of_a_long_line_is_not_looked_for() {
        let line = [b"GET /", &[b'a'; REQUEST_LINE_BYTES_MAX][..], b" HTTP/1.0\r\n"].concat();
        check(&line, Some(Protocol::Http1("http/1.1")));
        check(&line[..REQUEST_LINE_BYTES_MAX], Some(Protocol::Http1("http/1.1")));
        check(&line[..REQUEST_LINE_BYTES_MAX - 1], None);
    }

    #[test]
    fn nothing_wanted_decides_at_once() {
        let want = Want { tls: false, http: false };
        assert_eq!(inspect(b"", want), Some(Protocol::Other));
        let want = Want { tls: true, http: false };
        assert_eq!(inspect(b"GET", want), Some(Protocol::Other));
    }
}
