//! What serves an HTTP/1 connection while there is something to do: the state of a request under
//! way is several KiB, too much to keep for every idle connection and too much to make anew for
//! every request. So it is made once, sits down at one connection after the other, and waits among
//! the worker's spare ones in between. Must not know what is served.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::server_h1::{Job, Rest, serve_while_busy};

/// Spare ones a worker keeps.
const SPARE_MAX: usize = 512;

thread_local! {
    static SPARE: RefCell<Vec<Busy>> = const { RefCell::new(Vec::new()) };
}

/// Frees half of this worker's spare ones; see `wire::trim_spare`.
pub(super) fn trim_spare() {
    SPARE.with_borrow_mut(|spare| {
        spare.truncate(spare.len() / 2);
        if spare.is_empty() {
            *spare = Vec::new();
        }
    });
}

/// The server's future and the place where it takes its job and leaves what came of it.
struct Busy {
    work: Pin<Box<dyn Future<Output = ()>>>,
    seat: Rc<RefCell<Seat>>,
}

enum Seat {
    Free,
    Taken(Job),
    Left(Rest),
}

impl Busy {
    fn new() -> Busy {
        let seat = Rc::new(RefCell::new(Seat::Free));
        let place = seat.clone();
        let work = Box::pin(async move {
            loop {
                let job = poll_fn(|_| match place.replace(Seat::Free) {
                    Seat::Taken(job) => Poll::Ready(job),
                    other => {
                        place.replace(other);
                        Poll::Pending
                    }
                });
                let rest = serve_while_busy(job.await).await;
                place.replace(Seat::Left(rest));
            }
        });
        Busy { work, seat }
    }
}

/// One job being done. Dropped before its end, it takes all of it along.
pub(super) struct Serving(Option<Busy>);

/// Serves `job` until nothing more is there.
pub(super) fn serve(job: Job) -> Serving {
    let busy = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(Busy::new);
    busy.seat.replace(Seat::Taken(job));
    Serving(Some(busy))
}

impl Future for Serving {
    type Output = Rest;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Rest> {
        let busy = self.0.as_mut().expect("polled after its end");
        // It goes on for ever: only the seat tells.
        let _ = busy.work.as_mut().poll(cx);
        let Seat::Left(rest) = busy.seat.replace(Seat::Free) else { return Poll::Pending };
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.extend(self.0.take());
            }
        });
        Poll::Ready(rest)
    }
}
