//! Content from one socket to another through a kernel pipe: pages change hands and no byte is
//! copied, which is half of what a large body costs. A worker keeps a few pipes; who finds none left
//! copies. Must not know messages.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipes of one worker in use: each takes two open files that connections could have.
const IN_USE_MAX: usize = 64;
/// Empty pipes that a worker keeps.
const SPARE_MAX: usize = 16;
/// Moved at once at most; a pipe of the usual size holds sixteen of a socket's buffers. Bytes.
const MOVE_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that belongs to one exchange.
pub struct Pipe {
    /// There until the end.
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` when all are in use or the system gives none.
    pub fn take() -> Option<Box<Pipe>> {
        if IN_USE.get() >= IN_USE_MAX {
            return None;
        }
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let ends = spare.or_else(|| {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            Some(Ends { read, write })
        })?;
        IN_USE.set(IN_USE.get() + 1);
        Some(Box::new(Pipe { ends: Some(ends), held: 0 }))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes at most `bytes_max` bytes off a socket; the pipe must be empty. `Ok(0)`: it has ended.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        bytes_max: u64,
    ) -> Poll<io::Result<usize>> {
        let max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(MOVE_BYTES_MAX);
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || {
                Ok(splice(from, None, &ends.write, None, max, FLAGS)?)
            });
            match moved {
                Ok(moved) => {
                    self.held += moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Puts what is in the pipe on a socket, as far as it takes it.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || {
                Ok(splice(&ends.read, None, to, None, self.held, FLAGS)?)
            });
            match moved {
                Ok(moved) => {
                    self.held -= moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get() - 1);
        // What is left in one belongs to an exchange that failed.
        let ends = self.ends.take().filter(|_| self.held == 0);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.extend(ends);
            }
        });
    }
}

/// Closes half of this worker's spare pipes; see `wire::trim_spare`.
pub fn trim_spare() {
    SPARE.with_borrow_mut(|spare| {
        spare.truncate(spare.len() / 2);
        if spare.is_empty() {
            *spare = Vec::new();
        }
    });
}
