//! What wrk does, with a client certificate, which wrk cannot show.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::tls;

pub async fn measure(
    folder: &Path,
    port: u16,
    connections: u32,
    bytes: usize,
    seconds: u32,
) -> anyhow::Result<()> {
    let connector = TlsConnector::from(tls::client(folder)?);
    let latencies = Rc::new(RefCell::new(Vec::new()));
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        streams.push(connector.connect(ServerName::try_from(tls::SERVER)?, stream).await?);
    }
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let request = format!("GET /{bytes} HTTP/1.1\r\nHost: {}\r\n\r\n", tls::SERVER);
    let request: Arc<[u8]> = request.into_bytes().into();
    let mut tasks = Vec::new();
    for mut stream in streams {
        let (latencies, request) = (Rc::clone(&latencies), Arc::clone(&request));
        tasks.push(tokio::task::spawn_local(async move {
            let mut buf = vec![0; 64 * 1024];
            while Instant::now() < end {
                let begun = Instant::now();
                stream.write_all(&request).await?;
                reply(&mut stream, &mut buf, bytes).await?;
                latencies.borrow_mut().push(begun.elapsed());
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    super::print_latencies(latencies.take())
}

/// Reads a whole reply with a body of `bytes`.
async fn reply(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    buf: &mut [u8],
    bytes: usize,
) -> anyhow::Result<()> {
    let mut got = 0;
    let mut missing = loop {
        let count = stream.read(&mut buf[got..]).await?;
        ensure!(count > 0, "the proxy closed a connection");
        got += count;
        if let Some(at) = buf[..got].windows(4).position(|window| window == b"\r\n\r\n") {
            ensure!(buf.starts_with(b"HTTP/1.1 200"), "not answered with 200");
            break (at + 4 + bytes).saturating_sub(got);
        }
    };
    while missing > 0 {
        let count = stream.read(buf).await?;
        ensure!(count > 0, "the proxy closed a connection");
        missing = missing.saturating_sub(count);
    }
    Ok(())
}
