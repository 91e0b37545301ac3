//! The request that is asked about.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use weft_http::{HeaderList, Method, RequestHead, Scheme, Target, Version};

pub(super) struct Request {
    pub(super) head: RequestHead,
    /// Without the port.
    pub(super) host: String,
    pub(super) port: u16,
    /// The client itself begins TLS.
    pub(super) tls: bool,
}

impl Request {
    pub(super) fn parse(method: &str, url: &str, headers: &[String]) -> anyhow::Result<Self> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some((other, _)) => bail!("{url}: the scheme is http or https, not {other}"),
            None => (Scheme::Http, url),
        };
        let path_start = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_start);
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        let tls = scheme == Scheme::Https;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().with_context(|| format!("{url}: no port {port}"))?)
            }
            _ => (authority, if tls { 443 } else { 80 }),
        };
        if host.is_empty() {
            bail!("{url}: a host is missing");
        }
        let mut list = HeaderList::new();
        let mut sent_host = authority;
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("-H {header}: expected `name: value`"))?;
            match name.eq_ignore_ascii_case("host") {
                true => sent_host = value.trim(),
                false => list.append(name.trim(), value.trim()),
            }
        }
        let head = RequestHead {
            method: Method::from_bytes(method.as_bytes()),
            scheme,
            authority: Some(Bytes::copy_from_slice(sent_host.as_bytes())),
            target: Target::Path(path.into()),
            version: Version::H11,
            headers: list,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Request { head, host, port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parse = |url: &str| {
            Request::parse("GET", url, &[]).map(|request| {
                let path = String::from_utf8_lossy(request.head.path_and_query()).into_owned();
                (request.host, request.port, request.tls, path)
            })
        };
        let is = |url: &str, host: &str, port: u16, tls: bool, path: &str| {
            assert_eq!(parse(url).unwrap(), (host.into(), port, tls, path.into()), "{url}");
        };
        is("http://a/x?y", "a", 80, false, "/x?y");
        is("https://a.b:8443", "a.b", 8443, true, "/");
        is("a?q=1", "a", 80, false, "/?q=1");
        is("http://[::1]:81/", "::1", 81, false, "/");
        for wrong in ["ftp://a/", "http:///x", "http://a:99999/"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_host_header_takes_the_authoritys_place() {
        let headers = ["Host: shop.example".to_owned(), "x-user: a".to_owned()];
        let request = Request::parse("GET", "http://10.0.0.1/", &headers).unwrap();
        assert_eq!(request.head.authority(), b"shop.example");
        assert_eq!(request.host, "10.0.0.1");
        assert!(Request::parse("GET", "http://a/", &["nonsense".to_owned()]).is_err());
    }
}
