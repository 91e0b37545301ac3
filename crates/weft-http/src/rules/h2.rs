//! Heads between HTTP/1 and HTTP/2 (RFC 9113 §8): pseudo fields for the request line, names in
//! lower case, cookies joined, nothing connection-specific.

use bytes::Bytes;
use smallvec::SmallVec;

use super::hop;
use crate::h1::{Connection, Upgrade, is_authority};
use crate::headers::{HeaderList, Known, UNKNOWN, is_token_byte};
use crate::message::{Method, RequestHead, ResponseHead, Scheme, Target, Version};

/// The pseudo fields of a received HTTP/2 request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestPseudo {
    pub method: Option<Bytes>,
    pub scheme: Option<Bytes>,
    pub authority: Option<Bytes>,
    pub path: Option<Bytes>,
    /// RFC 8441: the protocol of an extended CONNECT.
    pub protocol: Option<Bytes>,
}

/// Why a received HTTP/2 head is malformed (RFC 9113 §8.1.1): answer 400 or reset the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum H2Error {
    /// A pseudo field is missing or not allowed with this method.
    #[error("http2.pseudo_fields")]
    Pseudo,
    /// `:method` is not capital letters, `-` and `_`.
    #[error("http2.method")]
    Method,
    /// `:path` is empty, does not start with a slash, or holds bytes a request line cannot.
    #[error("http2.path")]
    Path,
    /// `:authority` is not host and port, or `host` says otherwise.
    #[error("http2.authority")]
    Authority,
    /// A field that speaks of a connection.
    #[error("http2.connection_field")]
    ConnectionField,
    /// A name that is not lower-case token characters, or a value with control characters or blanks
    /// around it.
    #[error("http2.field")]
    Field,
    /// `content-length` is not one number.
    #[error("http2.content_length")]
    ContentLength,
}

/// Pseudo fields in the order they are sent.
pub type PseudoFields<'a> = SmallVec<[(&'static str, &'a [u8]); 5]>;

/// A request head from what an HTTP/2 connection decoded. An extended CONNECT comes out as CONNECT
/// with a path: give it to [`h2_connect_to_h1`].
///
/// # Errors
/// [`H2Error`] when the head is malformed.
pub fn request_from_h2(pseudo: RequestPseudo, headers: HeaderList) -> Result<RequestHead, H2Error> {
    check_fields(&headers)?;
    let parts = RequestParts {
        method: pseudo.method.as_deref(),
        scheme: pseudo.scheme.as_deref(),
        authority: pseudo.authority,
        path: pseudo.path,
        extended: pseudo.protocol.is_some(),
    };
    assemble_request(parts, headers)
}

/// The pseudo fields of a request, shared only where the head keeps them.
pub(crate) struct RequestParts<'a> {
    pub(crate) method: Option<&'a [u8]>,
    pub(crate) scheme: Option<&'a [u8]>,
    pub(crate) authority: Option<Bytes>,
    pub(crate) path: Option<Bytes>,
    /// `:protocol` is there.
    pub(crate) extended: bool,
}

/// A request head from fields that were checked one by one.
pub(crate) fn assemble_request(
    parts: RequestParts<'_>,
    mut headers: HeaderList,
) -> Result<RequestHead, H2Error> {
    let name = parts.method.ok_or(H2Error::Pseudo)?;
    if !Method::is_sound(name) {
        return Err(H2Error::Method);
    }
    let method = Method::from_bytes(name);
    let plain_connect = method == Method::Connect && !parts.extended;
    // RFC 9113 §§8.3.1, 8.5: both, and for a plain CONNECT neither.
    if parts.scheme.is_some() == plain_connect
        || parts.path.is_some() == plain_connect
        || (parts.extended && method != Method::Connect)
    {
        return Err(H2Error::Pseudo);
    }
    let scheme = match parts.scheme {
        Some(b"https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let target = match parts.path {
        None => Target::Authority,
        Some(path) => path_target(&method, path)?,
    };
    let authority = authority_of(parts.authority, &mut headers)?;
    if plain_connect && authority.is_none() {
        return Err(H2Error::Pseudo);
    }
    Ok(RequestHead { method, scheme, authority, target, version: Version::H2, headers })
}

fn path_target(method: &Method, path: Bytes) -> Result<Target, H2Error> {
    if &path[..] == b"*" && *method == Method::Options {
        return Ok(Target::Asterisk);
    }
    let clean = path.iter().all(|&byte| byte > b' ' && byte < 0x7f && byte != b'#');
    match path.first() == Some(&b'/') && clean {
        true => Ok(Target::Path(path)),
        false => Err(H2Error::Path),
    }
}

/// RFC 9113 §8.3.1: `host` may stand in for `:authority` and must not differ from it.
fn authority_of(pseudo: Option<Bytes>, headers: &mut HeaderList) -> Result<Option<Bytes>, H2Error> {
    let host = match headers.contains_known(Known::Host) {
        true => headers.get_bytes(Known::Host.name()),
        false => None,
    };
    if host.is_some() && headers.remove_known(Known::Host) > 1 {
        return Err(H2Error::Authority);
    }
    let authority = match (pseudo, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(&host) => {
            return Err(H2Error::Authority);
        }
        (Some(authority), _) => Some(authority),
        (None, host) => host,
    };
    match &authority {
        Some(text) if !is_authority(text) => Err(H2Error::Authority),
        _ => Ok(authority),
    }
}

fn check_fields(headers: &HeaderList) -> Result<(), H2Error> {
    let mut length = None;
    for header in headers {
        let known = header.known.map_or(UNKNOWN, |known| known as u8);
        if let Some(fault) =
            name_fault(header.name, known).or_else(|| value_fault(known, header.value))
        {
            return Err(fault);
        }
        if header.known == Some(Known::ContentLength) {
            if length.is_some_and(|earlier| earlier != header.value) {
                return Err(H2Error::ContentLength);
            }
            length = Some(header.value);
        }
    }
    Ok(())
}

/// What is wrong with a regular field's name, whose `Entry::known` is `known` (RFC 9113 §§8.2.1,
/// 8.2.2).
pub(crate) fn name_fault(name: &[u8], known: u8) -> Option<H2Error> {
    if name.is_empty() || !name.iter().all(|&b| is_token_byte(b) && !b.is_ascii_uppercase()) {
        return Some(H2Error::Field);
    }
    match Known::ALL.get(usize::from(known)) {
        Some(
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade,
        ) => Some(H2Error::ConnectionField),
        _ => None,
    }
}

/// What is wrong with a field's value (RFC 9113 §§8.1.1, 8.2.1, 8.2.2). Control characters beyond
/// those the RFC names are refused, too, as HTTP/1 does: the next hop could not write them.
pub(crate) fn value_fault(known: u8, value: &[u8]) -> Option<H2Error> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let control = |&byte: &u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    if blank(value.first()) || blank(value.last()) || value.iter().any(control) {
        return Some(H2Error::Field);
    }
    match Known::ALL.get(usize::from(known)) {
        Some(Known::Te) if value != b"trailers" => Some(H2Error::ConnectionField),
        Some(Known::ContentLength)
            if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) =>
        {
            Some(H2Error::ContentLength)
        }
        _ => None,
    }
}

/// A response head from what an HTTP/2 connection decoded.
///
/// # Errors
/// [`H2Error`] when the head is malformed.
pub fn response_from_h2(status: u16, headers: HeaderList) -> Result<ResponseHead, H2Error> {
    check_fields(&headers)?;
    assemble_response(status, headers)
}

/// The same from fields that were checked one by one.
pub(crate) fn assemble_response(status: u16, headers: HeaderList) -> Result<ResponseHead, H2Error> {
    if !(100..=999).contains(&status) || status == 101 {
        return Err(H2Error::Pseudo);
    }
    Ok(ResponseHead { status, reason: None, version: Version::H2, headers })
}

/// Makes a request fit for HTTP/1.1: cookies joined (RFC 9113 §8.2.3). `host` needs nothing, the
/// writer says the authority. For requests from HTTP/2; harmless for others.
pub fn request_to_h1(head: &mut RequestHead) {
    if head.version == Version::H2 {
        join_cookies(&mut head.headers);
    }
    head.version = Version::H11;
}

/// Makes a request fit for HTTP/2: hop-by-hop fields go, names in lower case, `host` only as
/// `:authority`.
pub fn request_to_h2(head: &mut RequestHead, conn: &Connection) {
    hop::strip_request(&mut head.headers, conn, Version::H2);
    head.headers.remove_known(Known::TransferEncoding);
    head.headers.remove_known(Known::Host);
    head.headers.lowercase_names();
    head.version = Version::H2;
}

/// Makes a response fit for HTTP/2. The reason phrase has no place there.
pub fn response_to_h2(head: &mut ResponseHead, conn: &Connection) {
    hop::strip_response(&mut head.headers, conn, Version::H2);
    head.headers.remove_known(Known::TransferEncoding);
    head.headers.lowercase_names();
    head.reason = None;
    head.version = Version::H2;
}

/// Makes trailers fit for HTTP/2.
pub fn trailers_to_h2(trailers: &mut HeaderList) {
    hop::strip_trailers(trailers);
    trailers.lowercase_names();
}

/// The pseudo fields that say what a request line and `Host` say. `protocol` makes an extended
/// CONNECT (RFC 8441).
pub fn request_pseudo<'a>(head: &'a RequestHead, protocol: Option<&'a [u8]>) -> PseudoFields<'a> {
    let mut fields = PseudoFields::new();
    fields.push((
        ":method",
        match protocol {
            Some(_) => Method::Connect.as_bytes(),
            None => head.method.as_bytes(),
        },
    ));
    if head.target != Target::Authority {
        fields.push((":scheme", head.scheme.as_str().as_bytes()));
    }
    if let Some(authority) = &head.authority {
        fields.push((":authority", authority));
    }
    if head.target != Target::Authority {
        fields.push((":path", head.path_and_query()));
    }
    if let Some(protocol) = protocol {
        fields.push((":protocol", protocol));
    }
    fields
}

/// Puts cookie crumbs back into one line, where the first one was.
pub fn join_cookies(headers: &mut HeaderList) {
    let mut crumbs = headers.get_all("cookie");
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = [first, b"; ", second].concat();
    for crumb in crumbs {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb);
    }
    headers.set("cookie", joined);
}

/// Turns an extended CONNECT for WebSocket (RFC 8441 §5) into the HTTP/1 upgrade it stands for, so
/// that the request path knows one form. Answer a resulting 101 with [`h1_switch_to_h2`].
pub fn h2_connect_to_h1(head: &mut RequestHead, protocol: &[u8]) -> Connection {
    let websocket = protocol.eq_ignore_ascii_case(b"websocket");
    head.method = Method::Get;
    head.headers.set("upgrade", protocol);
    head.headers.set("connection", "Upgrade");
    // What follows is not the content of a request.
    head.headers.remove_known(Known::ContentLength);
    if websocket && !head.headers.contains("sec-websocket-key") {
        // The key only proves that the server speaks WebSocket; over HTTP/2 nobody checks it.
        head.headers.append("sec-websocket-key", "d2VmdC13ZWZ0LXdlZnQtMQ==");
    }
    let upgrade = if websocket { Upgrade::WebSocket } else { Upgrade::Other };
    Connection { keep_alive: true, upgrade: Some(upgrade), expect_continue: false }
}

/// Makes a response that opens a tunnel over HTTP/2 (any 2xx) the 101 that it stands for. For
/// WebSocket: `accept` is what `Sec-WebSocket-Accept` is to say if the server said nothing, as it
/// may over HTTP/2.
pub fn h2_switch_to_h1(head: &mut ResponseHead, accept: Option<&str>) -> Connection {
    head.status = 101;
    head.reason = None;
    head.headers.remove_known(Known::ContentLength);
    head.headers.set("Upgrade", "websocket");
    head.headers.set("Connection", "Upgrade");
    if let (Some(accept), false) = (accept, head.headers.contains("sec-websocket-accept")) {
        head.headers.append("Sec-WebSocket-Accept", accept);
    }
    Connection { keep_alive: true, upgrade: Some(Upgrade::WebSocket), expect_continue: false }
}

/// Makes a 101 the 200 that opens the same tunnel over HTTP/2 (RFC 8441 §5).
pub fn h1_switch_to_h2(head: &mut ResponseHead) {
    head.status = 200;
    head.headers.remove_known(Known::Upgrade);
    head.headers.remove_known(Known::ContentLength);
}
