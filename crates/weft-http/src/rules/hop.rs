//! Hop-by-hop fields (RFC 9110 §7.6.1): those that speak of one connection and must not cross.

use crate::h1::Connection;
use crate::headers::{HeaderList, Known};
use crate::message::Version;

/// Removes what belongs to the client's connection from a request that goes to a peer of version
/// `to`. What `conn` let through stays: `Upgrade` towards HTTP/1. `TE: trailers` stays towards
/// both versions, since trailers are forwarded. What stays keeps its place and spelling.
pub fn strip_request(headers: &mut HeaderList, conn: &Connection, to: Version) {
    let trailers = headers.contains_known(Known::Te) && names_trailers(headers);
    strip(headers, upgrades(conn, to), trailers, to);
    // The proxy answers expectations itself or passes the field on; that is the caller's choice.
}

/// Removes what belongs to the upstream connection from a response that goes to a client of
/// version `to`. A 101 keeps `Upgrade`.
pub fn strip_response(headers: &mut HeaderList, conn: &Connection, to: Version) {
    strip(headers, upgrades(conn, to), false, to);
}

/// Removes fields that have no place in a trailer section (RFC 9110 §6.5.1).
pub fn strip_trailers(trailers: &mut HeaderList) {
    trailers.retain(|header| match header.known {
        Some(
            Known::Host
            | Known::ContentLength
            | Known::TransferEncoding
            | Known::Expect
            | Known::Te
            | Known::Trailer
            | Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Upgrade,
        ) => false,
        Some(_) | None => true,
    });
}

/// Whether a `TE` field accepts trailers.
pub fn names_trailers(headers: &HeaderList) -> bool {
    headers.get_all("te").any(|value| {
        value.split(|&byte| byte == b',').any(|coding| {
            let name = coding.split(|&byte| byte == b';').next().unwrap_or_default();
            name.trim_ascii().eq_ignore_ascii_case(b"trailers")
        })
    })
}

fn upgrades(conn: &Connection, to: Version) -> bool {
    conn.upgrade.is_some() && to == Version::H11
}

/// The fields that [`strip`] removes or changes when none is nominated.
const OF_THE_CONNECTION: [Known; 5] =
    [Known::Connection, Known::Te, Known::Upgrade, Known::KeepAlive, Known::ProxyConnection];

fn strip(headers: &mut HeaderList, upgrade: bool, trailers: bool, to: Version) {
    // Most messages have none of them.
    if !upgrade && !OF_THE_CONNECTION.iter().any(|&known| headers.contains_known(known)) {
        return;
    }
    let nominated = nominated(headers);
    let options = match (upgrade, trailers && to != Version::H2) {
        (false, false) => None,
        (upgrade, te) => Some(kept_options(headers, upgrade, te)),
    };
    headers.retain(|header| match header.known {
        Some(Known::Upgrade) => upgrade,
        Some(Known::Connection) => options.is_some(),
        Some(Known::Te) => trailers,
        Some(Known::KeepAlive | Known::ProxyConnection) => false,
        // Framing lines stay until the head is written: the writer decides about them.
        known => {
            !nominated.as_ref().is_some_and(|names| names_token(names, header.name))
                || known.is_some_and(is_protected)
                || is_protected_name(header.name)
        }
    });
    if trailers {
        headers.set_known(Known::Te, "trailers");
    }
    if let Some(options) = options {
        headers.set("Connection", options);
    }
}

/// What `Connection` still says: `upgrade` and `TE`, spelt as they were.
fn kept_options(headers: &HeaderList, upgrade: bool, te: bool) -> Vec<u8> {
    let mut kept = Vec::new();
    for (option, wanted, spelling) in [(&b"upgrade"[..], upgrade, "Upgrade"), (b"te", te, "TE")] {
        if !wanted {
            continue;
        }
        let said = headers
            .get_all("connection")
            .flat_map(|value| value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii))
            .find(|said| said.eq_ignore_ascii_case(option));
        if !kept.is_empty() {
            kept.extend_from_slice(b", ");
        }
        kept.extend_from_slice(said.unwrap_or(spelling.as_bytes()));
    }
    kept
}

/// The names that `Connection` nominates, if any is not one of the options of its own.
fn nominated(headers: &HeaderList) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for value in headers.get_all("connection") {
        for name in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let option = [&b"close"[..], b"keep-alive", b"upgrade", b"te", b""];
            if !option.iter().any(|option| option.eq_ignore_ascii_case(name)) {
                names.extend_from_slice(name);
                names.push(b',');
            }
        }
    }
    (!names.is_empty()).then_some(names)
}

fn names_token(names: &[u8], name: &[u8]) -> bool {
    names.split(|&byte| byte == b',').any(|nominated| nominated.eq_ignore_ascii_case(name))
}

/// End-to-end fields that a peer may not have removed by nominating them: without them the message
/// would be routed, framed, trusted or traced as another one.
fn is_protected(known: Known) -> bool {
    match known {
        Known::Connection
        | Known::Te
        | Known::Upgrade
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::Trailer => false,
        Known::XEnvoyRatelimited
        | Known::XEnvoyUpstreamRqTimeoutMs
        | Known::XEnvoyUpstreamRqPerTryTimeoutMs => false,
        Known::UserAgent | Known::Server | Known::Date | Known::Location => false,
        // A question, which nobody has to pass on.
        Known::XWeftWhy => false,
        Known::Host
        | Known::ContentLength
        | Known::TransferEncoding
        | Known::Expect
        | Known::ContentType
        | Known::Cookie
        | Known::XRequestId
        | Known::Traceparent
        | Known::Tracestate
        | Known::B3
        | Known::XB3TraceId
        | Known::XB3SpanId
        | Known::XB3ParentSpanId
        | Known::XB3Sampled
        | Known::XB3Flags
        | Known::XForwardedFor
        | Known::XForwardedProto
        | Known::XForwardedHost
        | Known::XForwardedClientCert
        | Known::GrpcStatus
        | Known::GrpcMessage
        | Known::GrpcTimeout
        | Known::XEnvoyPeerMetadata
        | Known::XEnvoyPeerMetadataId
        | Known::XEnvoyAttemptCount
        | Known::XEnvoyOriginalPath
        | Known::XEnvoyDecoratorOperation
        | Known::XEnvoyUpstreamServiceTime
        | Known::XEnvoyExternalAddress
        | Known::XEnvoyOverloaded
        | Known::XWeftSpelling => true,
    }
}

fn is_protected_name(name: &[u8]) -> bool {
    [&b"authorization"[..], b"forwarded", b"x-real-ip", b"cache-control", b"set-cookie"]
        .iter()
        .any(|protected| protected.eq_ignore_ascii_case(name))
}
