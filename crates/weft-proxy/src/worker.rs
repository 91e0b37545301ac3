//! One worker: a thread with its own runtime, connections, pools and counters. This is what code
//! on the request path holds; everything here is used by one thread only, so plain cells suffice.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::drain::DrainSignal;
use crate::tls::TlsInfo;

/// A worker's state. Lives in an `Rc`; never crosses threads.
pub struct Worker {
    /// 0-based.
    pub id: usize,
    /// The way out of the whole process.
    pub drain: DrainSignal,
    /// Who this proxy is.
    pub node: std::sync::Arc<NodeInfo>,
    rng: RefCell<SmallRng>,
}

/// Who this proxy is, for metrics, peer metadata and log lines.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// xDS node id, `sidecar~IP~NAME.NS~NS.svc.cluster.local`.
    pub id: String,
    /// Whether this is a gateway (router) rather than a sidecar.
    pub gateway: bool,
    /// Trust domain of the mesh, `cluster.local`.
    pub trust_domain: String,
}

/// What is known of a downstream connection when its protocol handler starts.
#[derive(Debug)]
pub struct ConnContext {
    /// The client as the socket (or a PROXY protocol header) names it.
    pub peer: SocketAddr,
    /// Local address of the accepted socket.
    pub local: SocketAddr,
    /// Where the client meant to go, when capture rules redirected it to us.
    pub original_dst: Option<SocketAddr>,
    /// Set when TLS ended here.
    pub tls: Option<TlsInfo>,
    /// When the socket was accepted.
    pub accepted: Instant,
}

impl Worker {
    /// A random number, for balancing, sampling and jitter. Not for secrets.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    /// The clock of the request path.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// A worker with nothing configured yet.
    pub fn new(id: usize, drain: DrainSignal, node: std::sync::Arc<NodeInfo>) -> Worker {
        Worker { id, drain, node, rng: RefCell::new(SmallRng::from_os_rng()) }
    }
}
