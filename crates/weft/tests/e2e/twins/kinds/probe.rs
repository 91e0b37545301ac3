//! What is asked of both twins, and what is seen.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::app::Arrival;
use super::super::ask::Ask;
use super::super::world::TWINS;
use super::super::{plain, seen};
use super::At;
use super::stage::Stage;

/// How long a stream may stay silent.
const SILENCE: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone)]
pub enum Probe {
    /// A request; the answer, and what arrived where.
    Http(At, Ask),
    /// So many at once; their answers in any order.
    Burst(At, Ask, usize),
    /// A connection that says something, with this server name if it is TLS.
    Stream(At, Option<&'static str>),
}

impl Probe {
    pub async fn run(&self, stage: &Stage, twin: usize, id: &str) -> Vec<String> {
        match self {
            Probe::Http(at, ask) => {
                let reply = ask.send(at.twin(stage, twin), id, TWINS[twin]).await;
                let mut lines = seen(ask, reply.map_err(|_| "no answer".into()));
                let arrivals = plain(stage.apps.arrivals(id, TWINS[twin]));
                lines.extend(arrivals.iter().flat_map(Arrival::lines));
                lines
            }
            Probe::Burst(at, ask, count) => {
                let to = at.twin(stage, twin);
                let ids: Vec<String> = (0..*count).map(|number| format!("{id}-{number}")).collect();
                let replies = join_all(ids.iter().map(|id| ask.send(to, id, TWINS[twin]))).await;
                let mut all: Vec<String> = replies
                    .into_iter()
                    .map(|reply| seen(ask, reply.map_err(|_| "no answer".into())).join("\n"))
                    .collect();
                all.sort();
                all
            }
            Probe::Stream(at, name) => {
                let heard = stream(at.twin(stage, twin), *name).await;
                // Who has not read what came resets the connection instead: no difference.
                vec![heard.unwrap_or_else(|_| "closed".to_owned())]
            }
        }
    }
}

/// What comes back to a first word: an application's name, or how the connection ended.
async fn stream(to: std::net::SocketAddr, name: Option<&'static str>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    let hello = match name {
        Some(name) => client_hello(name),
        None => b"hello".to_vec(),
    };
    stream.write_all(&hello).await?;
    let mut heard = [0; 64];
    let read = tokio::time::timeout(SILENCE, stream.read(&mut heard)).await;
    Ok(match read {
        Err(_) => "silence".to_owned(),
        Ok(read) => match &heard[..read?] {
            [] => "closed".to_owned(),
            // TLS records.
            [0x15, ..] => "alert".to_owned(),
            [0x16, ..] => "handshake".to_owned(),
            // Who takes it for a request refuses it in words of its own.
            text => String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned(),
        },
    })
}

fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().expect("a server name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory takes it");
    bytes
}
