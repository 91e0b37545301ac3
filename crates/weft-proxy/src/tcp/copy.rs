//! Bytes both ways between two streams, each direction closing on its own. Reads go into one large
//! buffer of the worker, so that an idle connection holds no memory here; only what the other side
//! does not take at once is kept per connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::net::Io;

/// Size of a worker's read buffer: large bodies cost one system call per fill. Bytes.
pub const SCRATCH_BYTES: usize = 128 * 1024;

/// A worker's read buffer; borrowed only inside one poll.
pub type Scratch = RefCell<Box<[u8]>>;

/// How copying ended.
#[derive(Debug)]
pub enum End {
    /// Both sides closed.
    Closed,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The whole connection's time was over.
    Expired,
    /// Reading from or writing to the downstream failed.
    Downstream(io::Error),
    /// Reading from or writing to the upstream failed.
    Upstream(io::Error),
}

/// Told of bytes as they are read, so that long connections show in metrics while they live.
pub trait Meter {
    /// Bytes from the downstream.
    fn received(&self, bytes: u64);
    /// Bytes from the upstream.
    fn sent(&self, bytes: u64);
}

/// When to give up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// Since now.
    pub whole: Option<Duration>,
}

/// Copies until both directions have ended or something fails.
pub async fn bidirectional(
    down: &mut Io,
    up: &mut Io,
    scratch: &Scratch,
    limits: Limits,
    meter: &impl Meter,
) -> End {
    let start = Instant::now();
    let expires = limits.whole.map(|whole| start + whole);
    let mut last = start;
    // One timer for both limits, re-armed when it fires, not for every byte.
    let far = start + Duration::from_secs(365 * 24 * 3600);
    let due = |last: Instant| {
        let idle = limits.idle.map(|idle| last + idle);
        idle.into_iter().chain(expires).min().unwrap_or(far)
    };
    let mut timer = pin!(sleep_until(due(start)));
    let mut to_up = Half::default();
    let mut to_down = Half::default();
    poll_fn(|cx| {
        let received = to_up.poll(cx, down, up, scratch);
        let sent = to_down.poll(cx, up, down, scratch);
        let moved = (to_up.take_read(), to_down.take_read());
        if moved != (0, 0) {
            meter.received(moved.0);
            meter.sent(moved.1);
            last = Instant::now();
        }
        match (received, sent) {
            (Poll::Ready(Err(Side::From(error))), _) | (_, Poll::Ready(Err(Side::To(error)))) => {
                return Poll::Ready(End::Downstream(error));
            }
            (Poll::Ready(Err(Side::To(error))), _) | (_, Poll::Ready(Err(Side::From(error)))) => {
                return Poll::Ready(End::Upstream(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            _ => {}
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if expires.is_some_and(|expires| expires <= now) {
                return Poll::Ready(End::Expired);
            }
            if due(last) <= now {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(due(last));
        }
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read but not yet taken by the other side.
    pending: BytesMut,
    stage: Stage,
    /// Bytes read since last asked.
    read: u64,
    /// The writer may hold encrypted bytes back.
    unflushed: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Copying,
    Closing,
    Closed,
}

/// Which end of a direction failed.
enum Side {
    From(io::Error),
    To(io::Error),
}

impl Half {
    fn take_read(&mut self) -> u64 {
        std::mem::take(&mut self.read)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        scratch: &Scratch,
    ) -> Poll<Result<(), Side>> {
        loop {
            if self.stage == Stage::Closed {
                return Poll::Ready(Ok(()));
            }
            while !self.pending.is_empty() {
                let n =
                    ready!(Pin::new(&mut *to).poll_write(cx, &self.pending)).map_err(Side::To)?;
                if n == 0 {
                    return Poll::Ready(Err(Side::To(io::ErrorKind::WriteZero.into())));
                }
                self.pending.advance(n);
                self.unflushed = true;
            }
            self.pending = BytesMut::new();
            if self.stage == Stage::Closing {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))
                    .or_else(ignore_gone)
                    .map_err(Side::To)?;
                self.stage = Stage::Closed;
                continue;
            }
            let mut scratch = scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Pending => return self.poll_flush(cx, to),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::From(error))),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => self.stage = Stage::Closing,
                Poll::Ready(Ok(())) => self.pass_on(cx, to, buf.filled()).map_err(Side::To)?,
            }
        }
    }

    /// Writes fresh bytes straight out of the worker's buffer; keeps the rest.
    fn pass_on(&mut self, cx: &mut Context<'_>, to: &mut Io, mut bytes: &[u8]) -> io::Result<()> {
        self.read += bytes.len() as u64;
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    bytes = &bytes[n..];
                    self.unflushed = true;
                }
                Poll::Pending => {
                    self.pending.extend_from_slice(bytes);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<Result<(), Side>> {
        if self.unflushed && Pin::new(to).poll_flush(cx).map_err(Side::To)?.is_ready() {
            self.unflushed = false;
        }
        Poll::Pending
    }
}

/// Half-closing towards a peer that has already gone is no failure.
fn ignore_gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    }
}
