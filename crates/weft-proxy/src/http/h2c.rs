//! HTTP/1's upgrade to HTTP/2 without TLS (`Upgrade: h2c`, RFC 7540 §3.2), which Java's client asks
//! for with its first request. Stock Envoy ignores it, and so do we where a proxy in front of us
//! could pass the field on: what follows would get past its rules. Taken from the workload's own
//! client (outbound), elsewhere if the process is told to.
//!
//! Bounds: only a connection's first request, without TLS and without content; settings of at most
//! 64 parameters. Whatever does not fit is served as HTTP/1, as if nothing had been asked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use weft_http::h2::conn::Connection;
use weft_http::{HeaderList, Method, Version, rules};
use weft_traffic::listener::Direction;

use super::conn::HttpConn;
use super::request::Incoming;
use super::server_h2;
use crate::limits::H2cUpgrade;

/// What the client is told before HTTP/2 begins.
pub(crate) const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

/// The connection to go on with, the request in it, if the client asks for one and may.
pub(crate) fn asked(incoming: &Incoming, conn: &HttpConn) -> Option<Box<Connection>> {
    if !names(&incoming.head.headers, "upgrade", b"h2c") || !allowed(conn) {
        return None;
    }
    let Incoming { head, body, connection } = incoming;
    let fits = head.version == Version::H11
        && body.is_empty()
        && head.method != Method::Connect
        && connection.keep_alive
        && names(&head.headers, "connection", b"upgrade")
        && names(&head.headers, "connection", b"http2-settings");
    if !fits {
        return None;
    }
    let mut all = head.headers.get_all("http2-settings");
    let (Some(settings), None) = (all.next(), all.next()) else { return None };
    let settings = URL_SAFE_NO_PAD.decode(settings.trim_ascii()).ok()?;
    let mut head = head.clone();
    rules::request_to_h2(&mut head, connection);
    Connection::upgraded(server_h2::config(conn), &settings, head).ok().map(Box::new)
}

fn allowed(conn: &HttpConn) -> bool {
    !conn.is_tls()
        && match conn.worker.limits.h2c_upgrade {
            H2cUpgrade::Never => false,
            H2cUpgrade::Outbound => conn.direction() == Direction::Outbound,
            H2cUpgrade::Everywhere => true,
        }
}

fn names(headers: &HeaderList, field: &str, token: &[u8]) -> bool {
    let mut named = headers.get_all(field).flat_map(|value| value.split(|&byte| byte == b','));
    named.any(|one| one.trim_ascii().eq_ignore_ascii_case(token))
}
