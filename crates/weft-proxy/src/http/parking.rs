//! Where a worker's idle client connections wait. One that has been idle for a while gives up its
//! task, its timer and its place in the runtime's reactor; what stays is the socket, in an epoll set
//! of the parking's own, and who it belongs to. Bytes, an end, its idle limit or the drain bring it
//! back to a task. Must not know what then happens: that is the server's.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval};

use super::conn::HttpConn;
use super::server_h1;
use crate::net::io::ParkedIo;
use crate::worker::Worker;

/// A connection idle this long is parked. Coming back costs some microseconds, which one that is
/// used every second should not pay.
pub(super) const PARK_AFTER: Duration = Duration::from_secs(2);
/// How often limits are looked at, and freed memory.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;
/// After so many connections have parked, the memory of their tasks goes back to the system.
const RELEASE_MIN: usize = 256;

/// One connection that waits.
pub(crate) struct Parked {
    pub(super) io: ParkedIo,
    pub(super) conn: Rc<HttpConn>,
    /// Requests so far.
    pub(super) requests: u32,
    /// Idle since.
    pub(super) since: Instant,
}

/// One worker's parked connections.
#[derive(Default)]
pub(crate) struct Parking {
    lot: RefCell<Option<Lot>>,
}

struct Lot {
    epoll: Rc<AsyncFd<OwnedFd>>,
    /// A connection's place is its name in the epoll set.
    places: Vec<Option<Parked>>,
    free: Vec<u32>,
    /// No connection reaches its limit before.
    due: Option<Instant>,
    /// Connections that came since memory was given back.
    came: usize,
}

impl Parking {
    /// Parks a connection, or brings it back at once when that fails.
    pub(super) fn park(&self, parked: Parked) {
        let worker = parked.conn.worker.clone();
        let mut lot = self.lot.borrow_mut();
        if lot.is_none() {
            match Lot::new() {
                Ok(new) => {
                    tokio::task::spawn_local(watch(worker.clone(), new.epoll.clone()));
                    *lot = Some(new);
                }
                Err(error) => tracing::debug!(%error, "idle connections keep their tasks"),
            }
        }
        let refused = match &mut *lot {
            Some(lot) => lot.add(parked),
            None => Some(parked),
        };
        drop(lot);
        if let Some(parked) = refused {
            tokio::task::spawn_local(server_h1::resume(parked));
        }
    }

    /// Brings back what the kernel has news of; whether there may be more.
    fn take_ready(&self) -> io::Result<bool> {
        let mut lot = self.lot.borrow_mut();
        let Some(lot) = &mut *lot else { return Ok(false) };
        let mut space = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_MAX];
        let (events, _) = epoll::wait(lot.epoll.get_ref(), &mut space, Some(&NOW))?;
        for event in events.iter() {
            lot.bring_back(event.data.u64() as usize);
        }
        Ok(events.len() == EVENTS_MAX)
    }

    /// Brings back whose limit has come, or `all`; gives freed memory back. False: nobody is left.
    fn look(&self, all: bool) -> bool {
        let mut place = self.lot.borrow_mut();
        let Some(lot) = &mut *place else { return false };
        let now = Instant::now();
        if all || lot.due.is_some_and(|due| due <= now) {
            lot.bring_back_due(now, all);
        }
        if lot.came >= RELEASE_MIN {
            lot.came = 0;
            crate::memory::release_freed();
        }
        let used = lot.free.len() < lot.places.len();
        if !used {
            *place = None;
        }
        used
    }
}

const NOW: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

/// Serves the lot until it is empty.
async fn watch(worker: Rc<Worker>, epoll: Rc<AsyncFd<OwnedFd>>) {
    let mut period = interval(LOOK_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (news, drain) = tokio::select! {
            news = epoll.readable() => (news.ok(), false),
            () = worker.drain.draining() => (None, true),
            _ = period.tick() => (None, false),
        };
        if let Some(mut ready) = news {
            match worker.parking.take_ready() {
                Ok(true) => {}
                Ok(false) => ready.clear_ready(),
                Err(error) => {
                    tracing::error!(%error, "parked connections cannot be watched");
                    worker.parking.look(true);
                    return;
                }
            }
        } else if !worker.parking.look(drain) {
            return;
        }
    }
}

impl Lot {
    #[allow(unsafe_code, reason = "the call that tokio offers for it")]
    fn new() -> io::Result<Lot> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // SAFETY: an OwnedFd names the same open file for as long as it lives, and the AsyncFd owns
        // it and gives out shared references only.
        let epoll = Rc::new(unsafe { AsyncFd::register(epoll) }?);
        Ok(Lot { epoll, places: Vec::new(), free: Vec::new(), due: None, came: 0 })
    }

    /// Gives the connection back when the kernel refuses to watch it.
    fn add(&mut self, parked: Parked) -> Option<Parked> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(None);
                u32::try_from(self.places.len() - 1).expect("connections are limited below 2^32")
            }
        };
        let news = EventFlags::IN | EventFlags::RDHUP;
        let name = EventData::new_u64(place.into());
        if let Err(error) = epoll::add(self.epoll.get_ref(), parked.io.socket(), name, news) {
            tracing::debug!(%error, "an idle connection keeps its task");
            self.free.push(place);
            return Some(parked);
        }
        let due = parked.conn.idle_due(parked.since);
        self.due = Some(self.due.map_or(due, |first| first.min(due)));
        parked.conn.worker.counters.parked.inc();
        self.places[place as usize] = Some(parked);
        self.came += 1;
        None
    }

    fn bring_back(&mut self, place: usize) {
        let Some(parked) = self.places.get_mut(place).and_then(Option::take) else { return };
        self.free.push(u32::try_from(place).expect("places are named by u32"));
        // It cannot fail: the socket is open and was added.
        let _ = epoll::delete(self.epoll.get_ref(), parked.io.socket());
        tokio::task::spawn_local(server_h1::resume(parked));
    }

    fn bring_back_due(&mut self, now: Instant, all: bool) {
        let mut next: Option<Instant> = None;
        for place in 0..self.places.len() {
            let Some(parked) = &self.places[place] else { continue };
            let due = parked.conn.idle_due(parked.since);
            match all || due <= now {
                true => self.bring_back(place),
                false => next = Some(next.map_or(due, |next| next.min(due))),
            }
        }
        self.due = next;
    }
}
