//! Leaving without dropping anything: the drain state every connection can wait on, and the count
//! of connections still open. Must not know listeners or HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainState {
    /// Serving normally.
    Running,
    /// Still accepting; connections say `Connection: close` / GOAWAY after what they are doing.
    Draining,
    /// Grace is over: close now.
    Closing,
}

/// One per process, a clone in every worker.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    state: Arc<watch::Sender<DrainState>>,
    open: Arc<AtomicUsize>,
}

/// Counts one open connection until dropped.
#[derive(Debug)]
pub struct OpenGuard(Arc<AtomicUsize>);

impl Default for DrainSignal {
    fn default() -> Self {
        DrainSignal::new()
    }
}

impl DrainSignal {
    /// A signal in [`DrainState::Running`].
    pub fn new() -> DrainSignal {
        DrainSignal {
            state: Arc::new(watch::Sender::new(DrainState::Running)),
            open: Arc::default(),
        }
    }

    /// The state now; cheap enough to ask per request.
    pub fn state(&self) -> DrainState {
        *self.state.borrow()
    }

    /// Whether responses should announce the end of their connection.
    pub fn is_draining(&self) -> bool {
        self.state() != DrainState::Running
    }

    /// Completes when draining begins (at once when it has).
    pub async fn draining(&self) {
        self.reached(DrainState::Draining).await;
    }

    /// Completes when connections must close now.
    pub async fn closing(&self) {
        self.reached(DrainState::Closing).await;
    }

    /// Moves forward to `state`; never back.
    pub fn advance(&self, state: DrainState) {
        self.state.send_if_modified(|now| {
            let forward = state > *now;
            if forward {
                *now = state;
            }
            forward
        });
    }

    /// Counts a connection for as long as the guard lives.
    pub fn open(&self) -> OpenGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenGuard(self.open.clone())
    }

    /// Downstream connections open in the whole process.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    async fn reached(&self, state: DrainState) {
        let mut receiver = self.state.subscribe();
        // The sender lives in self, so this cannot fail while we wait.
        let _ = receiver.wait_for(|now| *now >= state).await;
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
