//! Leaving without dropping anything: the drain state every connection can wait on, and the count
//! of connections still open. Asking is one relaxed load and waiting costs a connection 24 bytes,
//! since every idle connection waits. Must not know listeners or HTTP.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::limits::SourceGuard;
use crate::listener::crew::CrewGuard;

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DrainState {
    /// Serving normally.
    Running,
    /// Still accepting; connections say `Connection: close` / GOAWAY after what they are doing.
    Draining,
    /// Grace is over: close now.
    Closing,
}

/// One per process, with a place to wait for each worker.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    shared: Arc<Shared>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    open: AtomicUsize,
    /// All places to wait.
    places: Mutex<Vec<Arc<Mutex<Waiting>>>>,
}

/// Tasks that wait, in slots that are used again.
#[derive(Debug, Default)]
struct Waiting {
    slots: Vec<Option<Waker>>,
    free: Vec<u32>,
}

/// Counts one open connection until dropped.
#[derive(Debug)]
pub struct OpenGuard {
    shared: Arc<Shared>,
    /// Held, never read.
    _source: Option<SourceGuard>,
    _worker: Option<CrewGuard>,
}

impl Default for DrainSignal {
    fn default() -> Self {
        DrainSignal::new()
    }
}

impl DrainSignal {
    /// A signal in [`DrainState::Running`].
    pub fn new() -> DrainSignal {
        DrainSignal::waiting_at(Arc::default())
    }

    /// The same signal with a place to wait of its own, so that workers do not share a lock.
    pub fn for_worker(&self) -> DrainSignal {
        DrainSignal::waiting_at(self.shared.clone())
    }

    fn waiting_at(shared: Arc<Shared>) -> DrainSignal {
        let waiting = Arc::<Mutex<Waiting>>::default();
        lock(&shared.places).push(waiting.clone());
        DrainSignal { shared, waiting }
    }

    /// The state now; cheap enough to ask per request.
    pub fn state(&self) -> DrainState {
        match self.shared.state.load(Ordering::Acquire) {
            0 => DrainState::Running,
            1 => DrainState::Draining,
            _ => DrainState::Closing,
        }
    }

    /// Whether responses should announce the end of their connection.
    pub fn is_draining(&self) -> bool {
        self.state() != DrainState::Running
    }

    /// Completes when draining begins (at once when it has).
    pub fn draining(&self) -> Reached<'_> {
        Reached { signal: self, state: DrainState::Draining, slot: None }
    }

    /// Completes when connections must close now.
    pub fn closing(&self) -> Reached<'_> {
        Reached { signal: self, state: DrainState::Closing, slot: None }
    }

    /// Moves forward to `state`; never back.
    pub fn advance(&self, state: DrainState) {
        if self.shared.state.fetch_max(state as u8, Ordering::AcqRel) >= state as u8 {
            return;
        }
        for place in lock(&self.shared.places).iter() {
            // Slots stay taken: whoever waits for a later state registers again when polled.
            let wakers: Vec<Waker> =
                lock(place).slots.iter_mut().filter_map(Option::take).collect();
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Counts a connection for as long as the guard lives.
    pub fn open(&self) -> OpenGuard {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        OpenGuard { shared: self.shared.clone(), _source: None, _worker: None }
    }

    /// Downstream connections open in the whole process.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

/// Waits for a state. See [`DrainSignal::draining`].
#[derive(Debug)]
pub struct Reached<'s> {
    signal: &'s DrainSignal,
    state: DrainState,
    slot: Option<u32>,
}

impl Future for Reached<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.state() >= self.state {
            return Poll::Ready(());
        }
        let slot = lock(&self.signal.waiting).set(self.slot, cx.waker());
        self.slot = Some(slot);
        // The state may have moved before the waker was there to be found.
        match self.signal.state() >= self.state {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            lock(&self.signal.waiting).release(slot);
        }
    }
}

impl Waiting {
    fn set(&mut self, slot: Option<u32>, waker: &Waker) -> u32 {
        let slot = match slot.or_else(|| self.free.pop()) {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).expect("connections are limited below 2^32")
            }
        };
        match &mut self.slots[slot as usize] {
            Some(known) => known.clone_from(waker),
            empty => *empty = Some(waker.clone()),
        }
        slot
    }

    fn release(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
        if self.free.len() == self.slots.len() {
            // Nobody waits: give the memory of a burst back.
            *self = Waiting::default();
        }
    }
}

impl OpenGuard {
    /// The same, counted for the worker that serves it as well.
    pub fn of_worker(mut self, worker: Option<CrewGuard>) -> OpenGuard {
        self._worker = worker;
        self
    }

    /// The same, counted for its source as well.
    pub fn of_source(mut self, source: SourceGuard) -> OpenGuard {
        self._source = Some(source);
        self
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_of_every_worker_are_woken_in_order() {
        let signal = DrainSignal::new();
        let (one, two) = (signal.for_worker(), signal.for_worker());
        let waiting = tokio::spawn(async move {
            one.draining().await;
            one.state()
        });
        let closing = tokio::spawn(async move {
            let mut both = std::pin::pin!(two.closing());
            tokio::select! {
                () = &mut both => panic!("not closing yet"),
                () = two.draining() => {}
            }
            both.await;
            two.state()
        });
        tokio::task::yield_now().await;
        signal.advance(DrainState::Draining);
        assert_eq!(waiting.await.unwrap(), DrainState::Draining);
        signal.advance(DrainState::Closing);
        signal.advance(DrainState::Draining);
        assert_eq!(closing.await.unwrap(), DrainState::Closing);
    }

    #[test]
    fn slots_are_used_again() {
        let signal = DrainSignal::new();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            let mut waiting = Box::pin(signal.draining());
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            assert_eq!(lock(&signal.waiting).slots.len(), 1);
        }
        assert!(size_of::<Reached<'_>>() <= 24);
    }

    #[test]
    fn connections_are_counted() {
        let signal = DrainSignal::new();
        let guard = signal.for_worker().open();
        assert_eq!(signal.open_connections(), 1);
        drop(guard);
        assert_eq!(signal.open_connections(), 0);
    }
}
