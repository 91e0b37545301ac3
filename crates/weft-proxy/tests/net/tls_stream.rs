//! Our TLS stream against rustls' own, of either role and version: everything arrives in order, both
//! ways at once, whatever the pieces; keys change on the way; each side closes on its own.

use std::io::IoSlice;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proxy::net::tls_stream::TlsStream;

use crate::control::Authority;
use crate::tls::any_server_config;

/// Several socket buffers each way.
const BYTES: usize = 3 << 20;

pub fn server_config(
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<rustls::ServerConfig> {
    let (chain, key) = Authority::new("a").issue(&["server.example"]);
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(weft_proxy::tls::provider());
    let builder = builder.with_protocol_versions(&[version]).unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// Two ends of a connection; with `drops`, bytes cross one by one.
async fn sockets(drops: bool) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let one = TcpStream::connect(to).await.unwrap();
    let (other, _) = listener.accept().await.unwrap();
    if !drops {
        return (one, other);
    }
    let far = TcpStream::connect(to).await.unwrap();
    let (end, _) = listener.accept().await.unwrap();
    let ((near_read, near_write), (far_read, far_write)) = (other.into_split(), far.into_split());
    tokio::spawn(drop_by_drop(near_read, far_write));
    tokio::spawn(drop_by_drop(far_read, near_write));
    (one, end)
}

async fn drop_by_drop(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    while let Ok(byte) = from.read_u8().await {
        to.write_u8(byte).await?;
    }
    to.shutdown().await
}

fn byte(index: usize) -> u8 {
    (index.wrapping_mul(31) >> 3) as u8
}

/// Writes in pieces of many sizes, several at once.
async fn send(to: &mut (impl AsyncWrite + Unpin), from: usize, until: usize) {
    let bytes: Vec<u8> = (from..until).map(byte).collect();
    let (mut rest, mut piece) = (&bytes[..], 1);
    while !rest.is_empty() {
        piece = piece * 3 % 70_001;
        let (first, other) = rest.split_at(rest.len().min(piece));
        let second = &other[..other.len().min(7)];
        let sent = to.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]).await.unwrap();
        assert!(sent > 0);
        rest = &rest[sent..];
    }
    to.flush().await.unwrap();
}

async fn receive(from: &mut (impl AsyncRead + Unpin), count: usize) {
    let mut buffer = vec![0; 40_000];
    let (mut seen, mut piece) = (0, 1);
    while seen < count {
        piece = piece * 5 % 39_989;
        let most = piece.min(count - seen);
        let read = from.read(&mut buffer[..most]).await.unwrap();
        assert!(read > 0, "ended after {seen}");
        for (index, found) in buffer[..read].iter().enumerate() {
            assert_eq!(*found, byte(seen + index), "at {}", seen + index);
        }
        seen += read;
    }
}

/// Half of it before the peer's keys change, half after.
async fn both_ways<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    ours: TlsStream,
    mut peer: S,
    count: usize,
    refresh: impl FnOnce(&mut S) + Send + 'static,
) {
    // The peer's side moves only with its own reads and writes: each in its turn.
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let peer = tokio::spawn(async move {
        send(&mut peer, 0, count / 2).await;
        refresh(&mut peer);
        send(&mut peer, count / 2, count).await;
        receive(&mut peer, count).await;
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0, "we closed our half");
        peer.write_all(b"after").await.unwrap();
        peer.shutdown().await.unwrap();
    });
    let sending = tokio::spawn(async move {
        send(&mut our_write, 0, count).await;
        our_write.shutdown().await.unwrap();
    });
    receive(&mut our_read, count).await;
    let mut after = Vec::new();
    our_read.read_to_end(&mut after).await.unwrap();
    assert_eq!(after, b"after");
    peer.await.unwrap();
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_crosses_in_order_in_either_role_and_version() {
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    for (version, drops) in versions.into_iter().flat_map(|v| [(v, false), (v, true)]) {
        let count = if drops { 3000 } else { BYTES };
        let keys_change = *version == rustls::version::TLS13;
        let config = server_config(version);
        let name = || "server.example".try_into().unwrap();

        let (one, two) = sockets(drops).await;
        let connector = tokio_rustls::TlsConnector::from(any_server_config(&[]));
        let (ours, peer) = tokio::join!(
            TlsStream::accept(one, &[], config.clone()),
            connector.connect(name(), two)
        );
        both_ways(ours.unwrap(), peer.unwrap(), count, move |peer| {
            if keys_change {
                peer.get_mut().1.refresh_traffic_keys().unwrap();
            }
        })
        .await;

        let (one, two) = sockets(drops).await;
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let (ours, peer) = tokio::join!(
            TlsStream::connect(one, any_server_config(&[]), name()),
            acceptor.accept(two)
        );
        both_ways(ours.unwrap(), peer.unwrap(), count, move |peer| {
            if keys_change {
                peer.get_mut().1.refresh_traffic_keys().unwrap();
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_peer_is_told_why() {
    let (one, mut two) = sockets(false).await;
    let refused = tokio::spawn(TlsStream::accept(one, &[], server_config(&rustls::version::TLS13)));
    // A ServerHello is no ClientHello: a fatal alert, unexpected_message or decode_error.
    two.write_all(&[22, 3, 3, 0, 5, 2, 0, 0, 1, 0]).await.unwrap();
    let mut alert = [0; 7];
    two.read_exact(&mut alert).await.unwrap();
    assert_eq!((alert[0], alert[5]), (21, 2), "{alert:?}");
    assert!(refused.await.unwrap().is_err());
}
