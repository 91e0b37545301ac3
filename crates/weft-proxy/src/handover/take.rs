//! The newer proxy's side: asks the running one for its sockets, and tells it when we serve.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::counters::Inherited;
use super::wire::{self, Packet};
use super::{Listening, PROTOCOL, Settings, ToNew, ToOld};
use crate::runtime::Shared;

/// The running proxy answers at once, unless another one is taking over.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long the running proxy may take to stop accepting; if it does not answer it is gone.
const YOURS_MAX: Duration = Duration::from_secs(10);
/// Largest exposition taken in. Bytes.
const COUNTERS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Sockets of the running proxy, to be used instead of binding.
#[derive(Debug, Default)]
pub struct Sockets {
    /// By what they are for, one or more each.
    pub listening: HashMap<ListeningKey, Vec<TcpListener>>,
    /// The admin socket, and the address it was configured with.
    pub admin: Option<(SocketAddr, TcpListener)>,
    /// How many hand-overs led to the running proxy.
    pub epoch: u32,
}

/// What a listening socket is for.
pub type ListeningKey = (Arc<str>, SocketAddr, bool);

/// A hand-over under way.
pub struct Taking {
    session: OwnedFd,
    timeout: Duration,
}

/// Asks the proxy that listens on the hand-over socket, if there is one. An error: there is one
/// and it refused, so this proxy must not start.
pub fn ask(settings: &Settings, node: &str) -> io::Result<Option<(Sockets, Taking)>> {
    let session = match wire::connect(&settings.path, ANSWER_MAX) {
        Ok(session) => session,
        // Nobody there, or somebody who has ended.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        // A path no socket can have was not used by a running proxy either.
        Err(_) if !settings.explicit => return Ok(None),
        Err(error) => return Err(error),
    };
    let hello = ToOld::Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        node: node.into(),
    };
    match wire::send(&session, &hello, &[]).and_then(|()| collect(|| wire::receive(&session))) {
        Ok(sockets) => Ok(Some((sockets, Taking { session, timeout: settings.timeout }))),
        // It ended as we asked: there is nothing to take over.
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::other(
            "the running proxy does not answer; is another upgrade under way?",
        )),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn collect(mut receive: impl FnMut() -> io::Result<Packet<ToNew>>) -> io::Result<Sockets> {
    let mut sockets = Sockets::default();
    loop {
        let Packet { message, descriptors } = receive()?;
        if !sockets.take_in(message, descriptors)? {
            return Ok(sockets);
        }
    }
}

impl Sockets {
    /// True when more packets follow.
    fn take_in(&mut self, message: ToNew, descriptors: Vec<OwnedFd>) -> io::Result<bool> {
        let (listening, admin, epoch, more) = match message {
            ToNew::Sockets { listening, admin, epoch, more } => (listening, admin, epoch, more),
            ToNew::Refused { reason } => return Err(io::Error::other(reason)),
            other => return Err(io::Error::other(format!("unexpected {other:?}"))),
        };
        if descriptors.len() != listening.len() + usize::from(admin.is_some()) {
            return Err(io::Error::other(
                "a descriptor is missing; is the limit on open files low?",
            ));
        }
        self.epoch = epoch;
        let mut descriptors = descriptors.into_iter().map(TcpListener::from);
        for Listening { name, address, transparent } in listening {
            let Some(socket) = descriptors.next() else { break };
            self.listening.entry((name, address, transparent)).or_default().push(socket);
        }
        self.admin = admin.zip(descriptors.next());
        Ok(more)
    }
}

impl Taking {
    /// Waits until we can serve, says so, and takes in what the older proxy sends until it ends.
    /// An error: we must end, the older proxy goes on.
    pub async fn run(self, shared: Arc<Shared>) -> io::Result<()> {
        let session = wire::asynchronous(self.session)?;
        let waited = tokio::time::timeout(self.timeout, until_ready(&session, &shared)).await;
        let alive = match waited {
            Ok(Ok(())) => true,
            // The older proxy died while we prepared: we are needed all the more.
            Ok(Err(error)) if is_gone(&error) => false,
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let why = format!("not ready within {:?}; the running proxy stays", self.timeout);
                return Err(io::Error::other(why));
            }
        };
        // From here both of us accept, from the same queues.
        shared.start_accepting();
        if alive && wire::send_async(&session, &ToOld::Serving, &[]).await.is_ok() {
            let answer = tokio::time::timeout(YOURS_MAX, wire::receive_async(&session)).await;
            match answer.map(|packet| packet.map(|packet| packet.message)) {
                Ok(Ok(ToNew::Refused { reason })) => return Err(io::Error::other(reason)),
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!("the older proxy is gone; serving without it");
                }
            }
        }
        shared.count_handover("taken");
        shared.handover.take();
        tracing::info!(epoch = shared.handover.epoch(), "taken over from the older proxy");
        tokio::spawn(async move {
            let error = inherit(&session, &shared).await;
            shared.handover.older_ended();
            tracing::info!(%error, "the older proxy has ended");
        });
        Ok(())
    }
}

/// Sockets the older proxy opens or closes meanwhile are taken in.
async fn until_ready(session: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut update = Sockets::default();
    loop {
        tokio::select! {
            () = shared.handover.may_serve.notified() => return Ok(()),
            packet = wire::receive_async(session) => {
                let Packet { message, descriptors } = packet?;
                if !update.take_in(message, descriptors)? {
                    shared.listeners().inherit(std::mem::take(&mut update).listening);
                    shared.listeners_changed.notify_one();
                }
            }
        }
    }
}

/// Ends with the older proxy.
async fn inherit(session: &UnixStream, shared: &Shared) -> io::Error {
    loop {
        let Packet { message, descriptors } = match wire::receive_async(session).await {
            Ok(packet) => packet,
            Err(error) => return error,
        };
        match message {
            ToNew::Connections { idle } => {
                for (idle, socket) in idle.into_iter().zip(descriptors) {
                    shared.adopt(idle, TcpStream::from(socket));
                }
            }
            ToNew::Counters => {
                let Some(file) = descriptors.into_iter().next() else { continue };
                match read_all(file) {
                    Ok(text) => shared.handover.inherit(Inherited::parse(&text)),
                    Err(error) => tracing::warn!(%error, "counters of the older proxy not taken"),
                }
            }
            ToNew::Refused { .. } | ToNew::Sockets { .. } | ToNew::Yours => {}
        }
    }
}

fn read_all(file: OwnedFd) -> io::Result<String> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut text = String::new();
    file.take(COUNTERS_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
