//! A backend that does as little as an HTTP server can: no parsing beyond what finds the end of a
//! request, replies made once.

use std::path::Path;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{grpc, tls};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SIZES: [usize; 4] = [2, 1024, 64 * 1024, 1024 * 1024];

/// Up to here replies to pipelined requests go out in one write.
const SMALL: usize = 1024;

type Replies = Rc<[Vec<u8>; SIZES.len()]>;

/// Plain on one port, over mutual TLS on another, gRPC on a third.
pub async fn serve(port: u16, tls: u16, grpc: u16, folder: &Path) -> anyhow::Result<()> {
    let replies = Rc::new(SIZES.map(reply));
    let acceptor = TlsAcceptor::from(tls::server(folder)?);
    let secured = accept(tls, Some(acceptor), Rc::clone(&replies));
    let plain = accept(port, None, replies);
    tokio::try_join!(plain, secured, grpc::serve(grpc))?;
    Ok(())
}

async fn accept(port: u16, tls: Option<TlsAcceptor>, replies: Replies) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (replies, tls) = (Rc::clone(&replies), tls.clone());
        tokio::task::spawn_local(async move {
            // A client that goes away in the middle is no failure of the benchmark.
            let _ = match tls {
                None => connection(stream, &replies[..]).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => connection(stream, &replies[..]).await,
                    Err(error) => {
                        eprintln!("handshake: {error}");
                        Ok(())
                    }
                },
            };
        });
    }
}

fn reply(size: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\
         server: bench\r\ndate: Thu, 19 Nov 2026 10:00:00 GMT\r\n\r\n"
    );
    let mut reply = head.into_bytes();
    reply.resize(reply.len() + size, b'x');
    reply
}

async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    replies: &[Vec<u8>],
) -> std::io::Result<()> {
    let mut buf = Vec::with_capacity(16 * 1024);
    let mut out = Vec::new();
    while stream.read_buf(&mut buf).await? > 0 {
        if buf.starts_with(PREFACE) {
            return http2(stream, buf.split_off(PREFACE.len())).await;
        }
        let mut start = 0;
        while let Some(end) = find_end(&buf[start..]) {
            let size = requested(&buf[start..start + end]);
            let index = SIZES.iter().position(|&known| known == size).unwrap_or(0);
            start += end;
            if SIZES[index] <= SMALL {
                out.extend_from_slice(&replies[index]);
            } else {
                stream.write_all(&out).await?;
                out.clear();
                stream.write_all(&replies[index]).await?;
            }
        }
        buf.drain(..start);
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
    }
    Ok(())
}

/// Length of the first head.
fn find_end(buf: &[u8]) -> Option<usize> {
    buf.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The number after the first slash.
fn requested(head: &[u8]) -> usize {
    let digits = head.iter().skip_while(|&&byte| byte != b'/').skip(1);
    digits
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |size, byte| size * 10 + usize::from(byte - b'0'))
}

/// What is read at once, at least: a server that reads little at a time makes its proxies do so.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Replies to every request with two bytes, or, where it has content, with a gRPC message of a hundred.
/// Request heads are not decoded.
async fn http2(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut buf: Vec<u8>,
) -> std::io::Result<()> {
    // SETTINGS with MAX_CONCURRENT_STREAMS 1000.
    stream.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 3, 232]).await?;
    let mut out = Vec::new();
    loop {
        let (mut start, mut content) = (0, 0);
        while let Some(frame) = buf.get(start..).and_then(frame) {
            content += if frame.kind == DATA { frame.payload.len() } else { 0 };
            answer(frame, &mut out);
            start += 9 + frame.payload.len();
        }
        buf.drain(..start);
        if content > 0 {
            // What has come on all streams may come again; no stream has more than one message.
            out.extend_from_slice(&[0, 0, 4, WINDOW_UPDATE, 0, 0, 0, 0, 0]);
            out.extend_from_slice(&(content as u32).to_be_bytes());
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        buf.reserve(READ_BYTES_MIN);
        if stream.read_buf(&mut buf).await? == 0 {
            return Ok(());
        }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

#[derive(Clone, Copy)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: &'a [u8],
}

fn frame(buf: &[u8]) -> Option<Frame<'_>> {
    let &[a, b, c, kind, flags, s0, s1, s2, s3] = buf.first_chunk::<9>()?;
    let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let payload = buf.get(9..9 + len)?;
    Some(Frame { kind, flags, stream: [s0, s1, s2, s3], payload })
}

fn answer(frame: Frame<'_>, out: &mut Vec<u8>) {
    let mut say = |kind: u8, flags: u8, payload: &[u8]| {
        out.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags]);
        out.extend_from_slice(&frame.stream);
        out.extend_from_slice(payload);
    };
    match frame.kind {
        HEADERS if frame.flags & 1 != 0 => {
            // :status 200, content-length 2; then two bytes that end the stream.
            say(HEADERS, 4, &[0x88, 0x0f, 0x0d, 1, b'2']);
            say(DATA, 1, b"xx");
        }
        DATA if frame.flags & 1 != 0 => {
            // :status 200, content-type application/grpc; a message; grpc-status 0.
            say(HEADERS, 4, b"\x88\x0f\x10\x10application/grpc");
            say(DATA, 0, &GRPC_MESSAGE);
            say(HEADERS, 5, b"\x00\x0bgrpc-status\x010");
        }
        SETTINGS if frame.flags & 1 == 0 => {
            out.extend_from_slice(&[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0]);
        }
        PING if frame.flags & 1 == 0 => {
            out.extend_from_slice(&[0, 0, 8, PING, 1, 0, 0, 0, 0]);
            out.extend_from_slice(frame.payload);
        }
        _ => {}
    }
}

/// A hundred bytes behind their prefix.
const GRPC_MESSAGE: [u8; 105] = {
    let mut message = [b'x'; 105];
    (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 100);
    message
};
