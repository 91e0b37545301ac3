//! The running proxy's side: waits for a newer one, gives it our sockets, and once it serves, our
//! idle connections and counters.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::wire::{self, DESCRIPTORS_MAX};
use super::{Listening, PROTOCOL, Passed, Settings, ToNew, ToOld};
use crate::runtime::Shared;

/// A proxy that says hello and is never ready is given up after this. It has a shorter limit of its
/// own; this one is for a process that hangs.
const SESSION_MAX: Duration = Duration::from_secs(600);
/// Hello follows the connection at once.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// While we drain the newer proxy hears of our counters this often.
const COUNTERS_PERIOD: Duration = Duration::from_secs(5);

/// Offers our sockets until a newer proxy has taken over, then serves it what we still have.
/// Completes when the process is about to end.
pub async fn run(settings: Settings, shared: Arc<Shared>) {
    let listener = match wire::listen(&settings.path) {
        Ok(listener) => listener,
        Err(error) => {
            let path = settings.path.display();
            tracing::warn!(%path, %error, "no hand-over: cannot listen; see --handover");
            return;
        }
    };
    let (heir, taken) = loop {
        let session = match wire::accept(&listener).await {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!(%error, "hand-over: connection refused");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match tokio::time::timeout(SESSION_MAX, offer(&session, &shared)).await {
            Ok(Ok(())) => break (session, tokio::time::Instant::now()),
            Ok(Err(error)) => {
                shared.count_handover("failed");
                tracing::warn!(%error, "hand-over did not happen; this proxy goes on");
                let reason = error.to_string();
                let _ = wire::send_async(&session, &ToNew::Refused { reason }, &[]).await;
            }
            Err(_) => {
                shared.count_handover("failed");
                tracing::warn!("hand-over: the newer proxy was never ready; this one goes on");
            }
        }
    };
    // Nobody may come to us any more: the newer proxy listens here now.
    drop(listener);
    let passed = shared.hand_over(settings.drain_time);
    shared.count_handover("given");
    tracing::info!("a newer proxy has taken over; draining");
    if let Err(error) = endow(&heir, passed, &shared).await {
        tracing::warn!(%error, after = ?taken.elapsed(), "the newer proxy left; connections stay here until drained");
    }
}

/// Up to the moment the newer proxy serves. An error leaves everything as it was.
async fn offer(session: &UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let hello = tokio::time::timeout(HELLO_MAX, wire::receive_async(session)).await??;
    let (protocol, version, node) = match hello.message {
        ToOld::Hello { protocol, version, node } => (protocol, version, node),
        ToOld::Serving => return Err(io::Error::other("no hello")),
    };
    if protocol != PROTOCOL {
        let why = format!("hand-over protocol {protocol}, this proxy speaks {PROTOCOL}");
        return Err(io::Error::other(why));
    }
    if node != shared.node.id {
        let why = format!("this is {}, not {node}", shared.node.id);
        return Err(io::Error::other(why));
    }
    if shared.drain.is_draining() {
        return Err(io::Error::other("this proxy is leaving"));
    }
    tracing::info!(version, "a newer proxy prepares to take over");
    loop {
        // Armed before looking, so that no change is missed.
        let changed = shared.handover.sockets_changed.notified();
        send_sockets(session, shared).await?;
        tokio::select! {
            answer = wire::receive_async(session) => match answer?.message {
                ToOld::Serving => return Ok(()),
                ToOld::Hello { .. } => return Err(io::Error::other("hello twice")),
            },
            () = changed => {}
        }
    }
}

/// All listening sockets, in as many packets as it takes.
async fn send_sockets(session: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut sockets: VecDeque<(Option<Listening>, OwnedFd)> = VecDeque::new();
    let admin = shared.admin.configured;
    for (key, socket) in shared.listeners().sockets() {
        let listening = Listening {
            name: key.name.clone(),
            address: key.address,
            transparent: key.transparent,
        };
        sockets.push_back((Some(listening), socket.as_fd().try_clone_to_owned()?));
    }
    sockets.push_back((None, shared.admin.socket.as_fd().try_clone_to_owned()?));
    while !sockets.is_empty() {
        let packet: Vec<_> = sockets.drain(..sockets.len().min(DESCRIPTORS_MAX)).collect();
        let descriptors: Vec<BorrowedFd<'_>> = packet.iter().map(|(_, fd)| fd.as_fd()).collect();
        let more = !sockets.is_empty();
        let message = ToNew::Sockets {
            listening: packet.iter().filter_map(|(listening, _)| listening.clone()).collect(),
            admin: (!more).then_some(admin),
            epoch: shared.handover.epoch(),
            more,
        };
        wire::send_async(session, &message, &descriptors).await?;
    }
    Ok(())
}

/// Sends what the newer proxy inherits until this process is to end.
async fn endow(
    heir: &UnixStream,
    mut passed: mpsc::UnboundedReceiver<Passed>,
    shared: &Shared,
) -> io::Result<()> {
    wire::send_async(heir, &ToNew::Yours, &[]).await?;
    let mut ending = shared.handover.ending.subscribe();
    let mut counters = tokio::time::interval(COUNTERS_PERIOD);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            taken = passed.recv_many(&mut batch, DESCRIPTORS_MAX) => {
                if taken > 0 {
                    send_connections(heir, &batch).await?;
                    batch.clear();
                }
            }
            _ = counters.tick() => send_counters(heir, shared).await?,
            () = ended(&mut ending) => return send_counters(heir, shared).await,
            gone = wire::receive_async::<ToOld>(heir) => {
                gone?;
            }
        }
    }
}

async fn ended(ending: &mut watch::Receiver<bool>) {
    // An error means that the whole process state is gone: ended too.
    let _ = ending.wait_for(|ending| *ending).await;
}

async fn send_connections(heir: &UnixStream, batch: &[Passed]) -> io::Result<()> {
    let idle = batch.iter().map(|passed| passed.idle.clone()).collect();
    let descriptors: Vec<BorrowedFd<'_>> =
        batch.iter().map(|passed| passed.socket.as_fd()).collect();
    wire::send_async(heir, &ToNew::Connections { idle }, &descriptors).await
}

/// A file in memory, since a packet would be too short.
async fn send_counters(heir: &UnixStream, shared: &Shared) -> io::Result<()> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("weft-counters", flags)?);
    for piece in shared.exposition(weft_telemetry::Exposition::Text) {
        file.write_all(&piece)?;
    }
    wire::send_async(heir, &ToNew::Counters, &[file.as_fd()]).await
}
