//! What must hold for any bytes. Shared with `fuzz/`, so it may use only `weft-proxy`, `weft-xds`,
//! `bytes` and `rustls`.

use bytes::Bytes;
use weft_proxy::config::secret;
use weft_proxy::listener::proxy_protocol::{self, Header, Parsed};
use weft_proxy::listener::sniff::{self, Protocol, Want};
use weft_proxy::tls::Secrets;
use weft_xds::Resource;

/// Prefixes of an input that are looked at one by one; longer ones by steps.
const EVERY_PREFIX_TO: usize = 300;
const PREFIX_STEP: usize = 61;

/// Lengths of `data` to cut it at, ending with all of it.
fn cuts(data: &[u8]) -> impl Iterator<Item = usize> {
    let near = 0..data.len().min(EVERY_PREFIX_TO);
    let far = (EVERY_PREFIX_TO..data.len()).step_by(PREFIX_STEP);
    near.chain(far).chain([data.len()])
}

/// What a connection that must open with a PROXY header sends first.
pub fn proxy_protocol(data: &[u8]) {
    let mut decided = None;
    for cut in cuts(data) {
        let parsed = proxy_protocol::parse(&data[..cut]);
        match (&decided, parsed) {
            (None, Parsed::NeedMore) => {
                assert!(cut < proxy_protocol::HEADER_BYTES_MAX, "{cut} bytes and no decision");
            }
            (None, parsed) => decided = Some(parsed),
            (Some(before), after) => assert_eq!(*before, after, "more bytes, another decision"),
        }
    }
    let Some(Parsed::Complete(Header { length, addresses })) = decided else { return };
    assert!((8..=data.len()).contains(&length));
    let Some((source, destination)) = addresses else { return };
    for header in [
        proxy_protocol::encode_v1(source, destination),
        proxy_protocol::encode_v2(source, destination),
    ] {
        let expect = Header { length: header.len(), addresses };
        assert_eq!(proxy_protocol::parse(&header), Parsed::Complete(expect));
    }
}

/// What a connection on a detecting listener sends first; the first byte picks the inspectors.
pub fn sniff(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let want = Want { tls: choice & 1 == 0, http: choice & 2 == 0 };
    let mut decided = None;
    for cut in cuts(data) {
        let protocol = sniff::inspect(&data[..cut], want);
        match (&decided, protocol) {
            (None, None) => assert!(cut < sniff::BYTES_MAX, "{cut} bytes and no decision"),
            (None, protocol) => decided = protocol,
            (Some(before), after) => {
                assert_eq!(Some(before), after.as_ref(), "more bytes, another decision");
            }
        }
    }
    match decided {
        Some(Protocol::Tls(_)) => assert!(want.tls),
        Some(Protocol::Http1(_) | Protocol::H2c) => assert!(want.http),
        Some(Protocol::Other) | None => {}
    }
    if want.tls && data.len() < sniff::BYTES_MAX {
        agrees_with_rustls(data, decided.as_ref());
    }
}

/// A ClientHello that a real TLS stack takes is read, and read the same: a chain chosen by one name
/// must not be entered with another.
fn agrees_with_rustls(mut data: &[u8], ours: Option<&Protocol>) {
    let mut acceptor = rustls::server::Acceptor::default();
    let accepted = loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Err(_) => return,
            Ok(None) if data.is_empty() => return,
            Ok(None) => {}
        }
        match acceptor.read_tls(&mut data) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    };
    let hello = accepted.client_hello();
    let Some(Protocol::Tls(ours)) = ours else { panic!("rustls reads a ClientHello, we {ours:?}") };
    if let Some(name) = hello.server_name() {
        let name = name.to_ascii_lowercase();
        assert_eq!(ours.server_name.as_deref(), Some(&*name), "server name");
    }
    let theirs: Vec<&str> = hello.alpn().into_iter().flatten().filter_map(text).collect();
    assert_eq!(ours.alpn, theirs, "ALPN");
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// An encoded SDS secret. Taken or refused, never a panic; a second time gives the same answer.
pub fn secret(data: &[u8]) {
    let secrets = Secrets::new();
    let resource = Resource::from_body("fuzz", Bytes::copy_from_slice(data));
    let first = secret::install(&resource, &secrets, false).map_err(|error| error.to_string());
    let second = secret::install(&resource, &secrets, false).map_err(|error| error.to_string());
    assert_eq!(first, second);
}
