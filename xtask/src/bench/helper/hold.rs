//! Holds connections or streams open and idle.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::tls;

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Held {
    /// HTTP/1 connections, after one request each.
    Plain,
    /// The same over mutual TLS.
    Mtls,
    /// HTTP/2 connections, after one request each.
    Http2,
    /// Requests whose body has not ended, a hundred on each HTTP/2 connection.
    Streams,
}

const STREAMS_PER_CONNECTION: usize = 100;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEADERS_KIND: u8 = 1;
const SETTINGS_KIND: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub fn hold(what: Held, port: u16, count: usize, folder: &Path) -> anyhow::Result<()> {
    let mut held: Vec<Box<dyn Stream>> = Vec::new();
    let config = tls::client(folder)?;
    let connections = match what {
        Held::Streams => count / STREAMS_PER_CONNECTION,
        Held::Plain | Held::Mtls | Held::Http2 => count,
    };
    for number in 0..connections {
        let context = || format!("connection {number}");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).with_context(context)?;
        stream.set_nodelay(true)?;
        match what {
            Held::Plain => {
                ask(&mut stream).with_context(context)?;
                held.push(Box::new(stream));
            }
            Held::Mtls => {
                let name = ServerName::try_from(tls::SERVER)?;
                let client = ClientConnection::new(config.clone(), name)?;
                let mut stream = StreamOwned::new(client, stream);
                ask(&mut stream).with_context(context)?;
                held.push(Box::new(stream));
            }
            Held::Http2 => {
                open(&mut stream)?;
                stream.write_all(&headers(1, true))?;
                until(&mut stream, |kind, flags| kind < 2 && flags & END_STREAM != 0)
                    .with_context(context)?;
                held.push(Box::new(stream));
            }
            Held::Streams => {
                open(&mut stream)?;
                for index in 0..STREAMS_PER_CONNECTION {
                    stream.write_all(&headers(1 + 2 * index as u32, false))?;
                }
                held.push(Box::new(stream));
            }
        }
    }
    println!("held");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn ask(stream: &mut impl Stream) -> anyhow::Result<()> {
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: bench.local\r\n\r\n")?;
    stream.flush()?;
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\nxx") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "was closed");
        reply.extend_from_slice(&part[..count]);
    }
    ensure!(reply.starts_with(b"HTTP/1.1 200"), "not answered with 200");
    Ok(())
}

/// Preface and settings of both sides.
fn open(stream: &mut impl Stream) -> anyhow::Result<()> {
    stream.write_all(PREFACE)?;
    stream.write_all(&SETTINGS)?;
    until(stream, |kind, flags| kind == SETTINGS_KIND && flags & ACK == 0)?;
    let mut ack = SETTINGS;
    ack[4] = ACK;
    stream.write_all(&ack)?;
    Ok(())
}

/// A request, GET and ended or POST and open, without compression beyond the static table.
fn headers(stream: u32, ended: bool) -> Vec<u8> {
    const HOST: &[u8] = b"bench.local";
    let mut block = vec![if ended { 0x82 } else { 0x83 }, 0x86, 0x04, 2, b'/', b'2', 0x01];
    block.push(HOST.len() as u8);
    block.extend_from_slice(HOST);
    let flags = END_HEADERS | if ended { END_STREAM } else { 0 };
    let mut frame = vec![0, 0, block.len() as u8, HEADERS_KIND, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&block);
    frame
}

/// Reads frames up to the first whose kind and flags fit.
fn until(stream: &mut impl Stream, fits: impl Fn(u8, u8) -> bool) -> anyhow::Result<()> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut payload)?;
        ensure!(kind != 3 && kind != 7, "the proxy reset the stream or said goodbye");
        if fits(kind, flags) {
            return Ok(());
        }
    }
}
