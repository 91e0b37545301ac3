//! What a request head must become before anything is decided on it, in every direction: one
//! spelling of path and host, so that routing and authorization cannot be talked around, and no
//! claim about client certificates but ours. Configuration says which rules hold; nothing is
//! touched that already has the wanted form.

use bytes::Bytes;
use weft_http::{HeaderList, Known, RequestHead, Target, rules};
use weft_traffic::HttpConfig;
use weft_traffic::http::{
    ClientCert, EscapedSlashes, ForwardClientCert, PathRules, StripPort, Underscores,
};

use super::conn::HttpConn;
use crate::error::{ErrorKind, ProxyError};

const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Applies all rules.
///
/// # Errors
/// 400 for a path or a header name that the configuration refuses.
pub(crate) fn apply(
    head: &mut RequestHead,
    http: &HttpConfig,
    conn: &HttpConn,
) -> Result<(), ProxyError> {
    underscores(&mut head.headers, http.underscores)?;
    content_type(&mut head.headers, conn)?;
    host(head, http, conn.context.local.port());
    if let Target::Path(path) = &head.target
        && let Some(path) = normal_path(path, &http.path)?
    {
        head.target = Target::Path(path.into());
    }
    client_cert(&mut head.headers, &http.client_cert, conn);
    Ok(())
}

fn refused() -> ProxyError {
    ErrorKind::DownstreamProtocol(400).into()
}

/// Applications expect one `Content-Type`; what they get of several is the workload's choice.
fn content_type(headers: &mut HeaderList, conn: &HttpConn) -> Result<(), ProxyError> {
    const NAME: &str = Known::ContentType.name();
    if !headers.contains_known(Known::ContentType) || headers.get_all(NAME).nth(1).is_none() {
        return Ok(());
    }
    conn.worker.counters.http_quirk("content_type_repeated");
    let policy = conn.worker.policy.singleton();
    rules::apply_singleton(headers, NAME, policy).map_err(|error| refused().with_source(error))
}

fn underscores(headers: &mut HeaderList, rule: Underscores) -> Result<(), ProxyError> {
    let named = |name: &[u8]| memchr::memchr(b'_', name).is_some();
    match rule {
        Underscores::Allow => Ok(()),
        Underscores::Reject => match headers.iter().any(|header| named(header.name)) {
            true => Err(refused()),
            false => Ok(()),
        },
        Underscores::Drop => {
            headers.retain(|header| !named(header.name));
            Ok(())
        }
    }
}

fn host(head: &mut RequestHead, http: &HttpConfig, listener_port: u16) {
    let Some(authority) = &mut head.authority else {
        if !http.http1.default_host.is_empty() {
            head.authority = Some(Bytes::copy_from_slice(http.http1.default_host.as_bytes()));
        }
        return;
    };
    let wanted = |port: &[u8]| match http.host.strip_port {
        StripPort::Keep => false,
        StripPort::Any => true,
        StripPort::Matching => {
            std::str::from_utf8(port).ok().and_then(|text| text.parse().ok()) == Some(listener_port)
        }
    };
    // The colon of `[::1]` is no port's.
    if http.host.strip_port != StripPort::Keep
        && let Some(colon) = memchr::memrchr(b':', authority)
        && authority[colon + 1..].iter().all(u8::is_ascii_digit)
        && wanted(&authority[colon + 1..])
    {
        authority.truncate(colon);
    }
    if http.host.strip_trailing_dot && authority.ends_with(b".") {
        authority.truncate(authority.len() - 1);
    }
}

/// The path with its query in the wanted form; `None` when it has that form.
fn normal_path(path: &[u8], rules: &PathRules) -> Result<Option<Vec<u8>>, ProxyError> {
    if is_normal(path) {
        return Ok(None);
    }
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    let (path, query) = path.split_at(end);
    let mut normal = None;
    if memchr::memchr2(b'%', b'\\', path).is_some() {
        if rules.escaped_slashes != EscapedSlashes::Keep {
            normal = unescape_slashes(path, rules.escaped_slashes)?;
        }
        if rules.normalize {
            let unescaped = unescape_unreserved(normal.as_deref().unwrap_or(path))?;
            normal = unescaped.or(normal);
        }
    }
    let current = normal.as_deref().unwrap_or(path);
    if rules.merge_slashes && memchr::memmem::find(current, b"//").is_some() {
        let mut merged = current.to_vec();
        merged.dedup_by(|next, before| *next == b'/' && *before == b'/');
        normal = Some(merged);
    }
    let current = normal.as_deref().unwrap_or(path);
    if rules.normalize && memchr::memmem::find(current, b"/.").is_some() {
        normal = Some(without_dot_segments(current));
    }
    Ok(normal.map(|mut path| {
        path.extend_from_slice(query);
        path
    }))
}

/// Whether a path has nothing that any rule could change, as most have.
fn is_normal(path: &[u8]) -> bool {
    let mut before = 0;
    for &byte in path {
        match byte {
            b'?' => return true,
            b'%' | b'\\' => return false,
            b'/' | b'.' if before == b'/' => return false,
            _ => before = byte,
        }
    }
    true
}

/// `%2F` and `%5C` as slashes.
fn unescape_slashes(path: &[u8], rule: EscapedSlashes) -> Result<Option<Vec<u8>>, ProxyError> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'%', b'2', b'f' | b'F', after @ ..] => {
                out.push(b'/');
                found = true;
                rest = after;
            }
            [b'%', b'5', b'c' | b'C', after @ ..] => {
                out.push(b'\\');
                found = true;
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    match (found, rule) {
        (false, _) => Ok(None),
        (true, EscapedSlashes::UnescapeAndForward) => Ok(Some(out)),
        // A redirect tells the client the decoded form; refusing is as safe and simpler.
        (true, _) => Err(refused()),
    }
}

/// Escapes that need not be (RFC 3986 §6.2.2.2) undone, and backslashes as slashes, as browsers
/// read them. An escape that is none is refused.
fn unescape_unreserved(path: &[u8]) -> Result<Option<Vec<u8>>, ProxyError> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'\\' => out.push(b'/'),
            b'%' => {
                let [high, low, after @ ..] = tail else { return Err(refused()) };
                let (Some(h), Some(l)) = (hex(*high), hex(*low)) else { return Err(refused()) };
                match h << 4 | l {
                    0 => return Err(refused()),
                    byte if is_unreserved(byte) => out.push(byte),
                    _ => out.extend_from_slice(&[b'%', *high, *low]),
                }
                rest = after;
            }
            byte => out.push(*byte),
        }
    }
    Ok((out != path).then_some(out))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §5.2.4 for a path that starts with a slash.
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let segments: Vec<&[u8]> = path[1..].split(|&byte| byte == b'/').collect();
    let last = segments.len() - 1;
    for (index, segment) in segments.into_iter().enumerate() {
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    let parent = memchr::memrchr(b'/', &out).unwrap_or(0);
                    out.truncate(parent);
                }
                if index == last {
                    out.push(b'/');
                }
            }
            segment => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    out
}

/// `x-forwarded-client-cert`: only what a verified connection says.
fn client_cert(headers: &mut HeaderList, rules: &ClientCert, conn: &HttpConn) {
    let keep = match rules.forward {
        ForwardClientCert::AlwaysForwardOnly => return,
        ForwardClientCert::ForwardOnly | ForwardClientCert::AppendForward => conn.is_mtls(),
        ForwardClientCert::Sanitize | ForwardClientCert::SanitizeSet => false,
    };
    if !keep {
        headers.remove_known(Known::XForwardedClientCert);
    }
    let adds =
        matches!(rules.forward, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet);
    let (true, true, Some(peer)) = (adds, conn.is_mtls(), conn.peer_spiffe()) else { return };
    let mut value = match headers.get(CLIENT_CERT) {
        Some(earlier) => [earlier, b","].concat(),
        None => Vec::new(),
    };
    value.extend_from_slice(b"By=");
    value.extend_from_slice(conn.worker.node.peer.principal.as_bytes());
    if rules.uri {
        value.extend_from_slice(b";URI=");
        value.extend_from_slice(peer.as_bytes());
    }
    headers.set(CLIENT_CERT, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: PathRules =
        PathRules { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };

    fn check(rules: &PathRules, path: &str, expect: Option<&str>) {
        let normal = normal_path(path.as_bytes(), rules).ok();
        let normal = normal.map(|normal| match normal {
            Some(changed) => String::from_utf8(changed).unwrap(),
            None => path.to_owned(),
        });
        assert_eq!(normal.as_deref(), expect, "{path}");
    }

    #[test]
    fn paths_get_one_spelling() {
        for (path, expect) in [
            ("/", Some("/")),
            ("/a/b?c=/../d", Some("/a/b?c=/../d")),
            ("/a/../admin", Some("/admin")),
            ("/a/%2e%2e/admin?x", Some("/admin?x")),
            ("/a/./b/.", Some("/a/b/")),
            ("/../../x", Some("/x")),
            ("/..", Some("/")),
            ("/%61dmin", Some("/admin")),
            ("/a%2Fb", Some("/a%2Fb")),
            ("/a%20b", Some("/a%20b")),
            ("/a\\..\\b", Some("/b")),
            ("/a/.hidden", Some("/a/.hidden")),
            ("/a//b", Some("/a//b")),
            ("/%zz", None),
            ("/%4", None),
            ("/%00", None),
        ] {
            check(&BASE, path, expect);
        }
    }

    #[test]
    fn slashes_merge_and_unescape_only_where_asked() {
        let merge = PathRules { merge_slashes: true, ..BASE };
        check(&merge, "//a///b//", Some("/a/b/"));
        let decode = PathRules { escaped_slashes: EscapedSlashes::UnescapeAndForward, ..merge };
        check(&decode, "/a%2f%2Fb%5c..", Some("/a/"));
        let reject = PathRules { escaped_slashes: EscapedSlashes::Reject, ..BASE };
        check(&reject, "/a%2Fb", None);
        let off = PathRules { normalize: false, ..BASE };
        check(&off, "/a/../%61", Some("/a/../%61"));
    }
}
