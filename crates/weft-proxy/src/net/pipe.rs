//! Content from one socket to another through a kernel pipe: pages change hands and no byte is
//! copied, which is half of what a large body costs. A worker keeps a few pipes; who finds none left
//! copies. Must not know messages.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Pipes of one worker in use: each takes two open files that connections could have.
const IN_USE_MAX: usize = 64;
/// Empty pipes that a worker keeps.
const SPARE_MAX: usize = 16;
/// Moved at once at most. Bytes.
const MOVE_BYTES_MAX: usize = 1 << 20;
/// What a pipe is asked to hold: it counts buffers, and a socket's are a page each at worst. Bytes.
const PIPE_BYTES: usize = 256 * 1024;
/// What a sender may have on its way while its content goes through a pipe. Bytes.
const WINDOW_BYTES: i32 = 512 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// Opens the window of a socket whose content is about to be moved. The kernel widens it by what a
/// reader copies out in a round trip, and who moves pages never looks like a reader in a hurry:
/// the sender would wait for each 64 KiB to be acknowledged.
#[allow(unsafe_code, reason = "no library has this option")]
fn widen(socket: &TcpStream) {
    // A mark at which the socket counts as readable makes room for as much, and unlike a fixed
    // buffer size leaves the kernel free to give more. It goes back to one byte at once.
    for mark in [WINDOW_BYTES, 1] {
        // SAFETY: the descriptor is open, and the value is one `int` that lives through the call.
        let failed = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const mark).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        debug_assert_eq!(failed, 0, "the option exists for every TCP socket");
    }
}

/// A pipe that belongs to one exchange.
pub struct Pipe {
    /// There until the end.
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
    /// The sender's window was opened.
    wide: bool,
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
            // Users without privileges share what pipes may hold; a small one works too.
            let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
            Some(Ends { read, write })
        })?;
        IN_USE.set(IN_USE.get() + 1);
        Some(Box::new(Pipe { ends: Some(ends), held: 0, wide: false }))
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
        if !std::mem::replace(&mut self.wide, true) {
            widen(from);
        }
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
