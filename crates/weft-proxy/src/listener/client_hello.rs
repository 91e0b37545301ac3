//! Reads server name and ALPN out of a TLS ClientHello without doing TLS, so that a connection can
//! be matched to a filter chain and still be passed through byte for byte. Sans-io; lenient where a
//! real handshake would be strict, because whoever ends the TLS judges it. RFC 8446 §4.1.2,
//! RFC 6066 §3, RFC 7301 §3.1.

/// What a ClientHello says that matters for routing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name, lower case, when one was sent.
    pub server_name: Option<String>,
    /// ALPN protocols in the client's order; not-UTF-8 names are left out.
    pub alpn: Vec<String>,
}

/// Outcome of looking at the first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Hello {
    /// Could still become a ClientHello.
    NeedMore,
    /// Not TLS, or not a ClientHello we can read.
    NotTls,
    /// A whole ClientHello.
    Found(ClientHello),
}

/// Longest ClientHello looked at, as Envoy's tls_inspector. Bytes.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// Looks at the bytes a connection starts with.
pub fn inspect(bytes: &[u8]) -> Hello {
    // Never further, or the answer would depend on how the bytes arrived.
    let bytes = &bytes[..bytes.len().min(CLIENT_HELLO_BYTES_MAX)];
    match handshake_bytes(bytes) {
        Assembled::NotTls => Hello::NotTls,
        Assembled::NeedMore if bytes.len() == CLIENT_HELLO_BYTES_MAX => Hello::NotTls,
        Assembled::NeedMore => Hello::NeedMore,
        Assembled::Message(body) => match parse(&body) {
            Some(hello) => Hello::Found(hello),
            None => Hello::NotTls,
        },
    }
}

enum Assembled {
    NeedMore,
    NotTls,
    Message(Vec<u8>),
}

/// Joins the handshake message out of as many records as it is spread over.
fn handshake_bytes(mut bytes: &[u8]) -> Assembled {
    let mut message = Vec::new();
    loop {
        // Judge by as few bytes as there are, so that a short non-TLS greeting is not waited for.
        for (index, expected) in [RECORD_HANDSHAKE, 3].into_iter().enumerate() {
            match bytes.get(index) {
                None => return Assembled::NeedMore,
                Some(byte) if *byte != expected => return Assembled::NotTls,
                Some(_) => {}
            }
        }
        let Some((header, rest)) = bytes.split_at_checked(5) else { return Assembled::NeedMore };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 {
            return Assembled::NotTls;
        }
        let taken = rest.len().min(length);
        message.extend_from_slice(&rest[..taken]);
        if let Some(kind) = message.first()
            && *kind != HANDSHAKE_CLIENT_HELLO
        {
            return Assembled::NotTls;
        }
        if message.len() >= 4 {
            let total = u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
            if total > CLIENT_HELLO_BYTES_MAX {
                return Assembled::NotTls;
            }
            if message.len() >= 4 + total {
                message.truncate(4 + total);
                message.drain(..4);
                return Assembled::Message(message);
            }
        }
        if taken < length {
            return Assembled::NeedMore;
        }
        bytes = &rest[taken..];
    }
}

/// The message body: version, random, session id, cipher suites, compression, extensions.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vec8()?;
    reader.vec16()?;
    reader.vec8()?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Some(hello); // Pre-extension ClientHello.
    }
    let mut extensions = Reader(reader.vec16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vec16()?;
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(data)?,
            EXTENSION_ALPN => hello.alpn = alpn(data)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.vec16()?;
        if kind == 0 {
            return Some(std::str::from_utf8(name).ok().map(str::to_ascii_lowercase));
        }
    }
    Some(None)
}

fn alpn(data: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        if let Ok(name) = std::str::from_utf8(list.vec8()?) {
            names.push(name.to_owned());
        }
    }
    Some(names)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.take(1)?[0];
        self.take(usize::from(n))
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn real_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn reads_a_real_hello_at_every_cut() {
        let bytes = real_hello("Reviews.default.svc", &["istio", "h2"]);
        let expect = ClientHello {
            server_name: Some("reviews.default.svc".into()),
            alpn: vec!["istio".into(), "h2".into()],
        };
        for cut in 0..bytes.len() {
            assert_eq!(inspect(&bytes[..cut]), Hello::NeedMore, "cut at {cut}");
        }
        assert_eq!(inspect(&bytes), Hello::Found(expect));
    }

    #[test]
    fn joins_records() {
        let bytes = real_hello("a.b", &[]);
        let message = &bytes[5..];
        let mut split = Vec::new();
        for part in message.chunks(40) {
            split.extend_from_slice(&[22, 3, 1]);
            split.extend_from_slice(&(part.len() as u16).to_be_bytes());
            split.extend_from_slice(part);
        }
        let Hello::Found(hello) = inspect(&split) else { panic!("not found") };
        assert_eq!(hello.server_name.as_deref(), Some("a.b"));
    }

    #[test]
    fn other_bytes_are_not_tls() {
        for bytes in [&b"G"[..], b"\x16\x04", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x00\x05\x02"]
        {
            assert_eq!(inspect(bytes), Hello::NotTls, "{bytes:?}");
        }
        let mut cut_short = real_hello("a.b", &[]);
        let end = cut_short.len() - 1;
        cut_short[end] ^= 0x55; // Still the right length: judged by whoever ends the TLS.
        assert!(matches!(inspect(&cut_short), Hello::Found(_) | Hello::NotTls));
    }
}
