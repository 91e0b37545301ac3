//! Hand-over within one host: a newer binary takes over the listening sockets of the running proxy,
//! which then finishes what it has begun and ends. See docs/upgrade.md.
//!
//! ```text
//! new                                   old
//!  │ hello (protocol, node) ───────────▶ │ another protocol or node: refused
//!  │ ◀─────── sockets (SCM_RIGHTS), admin│ both accept from the same queues: none is lost
//!  │ configure, become ready, accept     │
//!  │ serving ──────────────────────────▶ │ until here anything that goes wrong changes nothing
//!  │ ◀───────────────────────────── yours│ stops accepting, drains
//!  │ ◀──────── idle connections, counters│ until it has drained, or its time is up
//! ```
//! `wire` moves packets with descriptors, `give` is the old side, `take` the new one, `counters`
//! adds the old one's counts to ours. Must not know HTTP or configuration.

pub mod counters;
pub mod give;
mod standing;
pub mod take;
mod wire;

pub use standing::Standing;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::drain::OpenGuard;

/// Version of the messages below. A proxy with another one is refused, and the running one stays.
pub const PROTOCOL: u32 = 1;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "handover.sock";

/// How and where a proxy is taken over.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Unix socket. Whoever may connect to it, which is our own user and root, may take over.
    pub path: PathBuf,
    /// The user named it: it is an error when it cannot be used.
    pub explicit: bool,
    /// A proxy that takes over must be ready within this.
    pub timeout: Duration,
    /// How long a proxy that was taken over leaves open what cannot be passed on.
    pub drain_time: Duration,
}

/// From the new proxy to the running one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToOld {
    /// The first message of every version.
    Hello { protocol: u32, version: String, node: String },
    /// Configured, ready and accepting.
    Serving,
}

/// From the running proxy to the new one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToNew {
    /// No hand-over, and why.
    Refused { reason: String },
    /// With one descriptor for each listening socket, then one for the admin socket if named.
    Sockets {
        listening: Vec<Listening>,
        admin: Option<SocketAddr>,
        /// Of the running proxy: how many hand-overs led to it.
        epoch: u32,
        /// More packets of sockets follow.
        more: bool,
    },
    /// The old one has stopped accepting.
    Yours,
    /// Idle connections, one descriptor each.
    Connections { idle: Vec<Idle> },
    /// One descriptor: a file with all counters so far, in Prometheus text.
    Counters,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Listener name.
    pub name: Arc<str>,
    /// As configured.
    pub address: SocketAddr,
    /// IP_TRANSPARENT.
    pub transparent: bool,
}

/// An HTTP/1 connection between two requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// How much longer it may stay idle. Milliseconds.
    pub idle_ms: u64,
}

/// An idle connection on its way to the next proxy.
#[derive(Debug)]
pub struct Passed {
    /// The socket; nothing was read from it that was not answered.
    pub socket: std::net::TcpStream,
    /// What the next proxy must know.
    pub idle: Idle,
    /// Keeps this process alive until it is sent.
    pub open: OpenGuard,
}

/// Where idle connections go once a newer proxy has taken over; empty until then.
#[derive(Debug, Clone, Default)]
pub struct Heir(Arc<OnceLock<mpsc::UnboundedSender<Passed>>>);

impl Heir {
    /// Whether a newer proxy takes connections.
    pub fn is_there(&self) -> bool {
        self.0.get().is_some_and(|heir| !heir.is_closed())
    }

    /// Whether a newer proxy has taken over, be it alive or not.
    pub fn has_taken_over(&self) -> bool {
        self.0.get().is_some()
    }

    /// Sends a connection on. The inner error is the connection: nobody takes it.
    pub fn pass(&self, passed: Passed) -> Result<(), Passed> {
        match self.0.get() {
            Some(heir) => heir.send(passed).map_err(|refused| refused.0),
            None => Err(passed),
        }
    }

    fn name(&self, heir: mpsc::UnboundedSender<Passed>) {
        // Only one session gets this far, so the cell is empty.
        let _ = self.0.set(heir);
    }
}
