//! One HTTP/1 connection as bytes: the stream, what was read and not parsed, what is written and
//! not sent. Both sides of the proxy use it. Owns buffer sizes; must not know messages.
//!
//! Per turn there is one read and one write. The read buffer grows with what the peer sends at once,
//! so that large bodies move in large reads. Buffers go from connection to connection: one that idles
//! gives its own to the worker's spare ones, which are few and warm in the cache.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncWrite;
use weft_http::h1::OutBuf;

use crate::net::Io;

/// First read of a message: a head and a small body fit. Bytes.
const FILL_BYTES_MIN: u32 = 8 * 1024;
/// Largest read. With 16 KiB reads a 64 KiB body cost three times the CPU. Bytes.
const FILL_BYTES_MAX: u32 = 128 * 1024;
/// Output held back before a turn must flush; more waits in the source. Bytes.
const OUT_BYTES_MAX: u32 = 256 * 1024;
/// Slices of one vectored write; the kernel takes up to 1024.
const SLICES_MAX: usize = 64;

/// Largest output buffer that is kept for another connection. Bytes.
const SPARE_OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// Spare buffers a worker keeps of either kind: 4 MiB at most.
const SPARE_MAX: usize = 512;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { input: Vec::new(), output: Vec::new() }) };
}

/// Buffers of this thread that no connection has.
struct Spare {
    input: Vec<BytesMut>,
    output: Vec<OutBuf>,
}

/// Frees half of this worker's spare buffers; called about once a second, so that what a burst
/// needed is soon given back.
pub(crate) fn trim_spare() {
    SPARE.with_borrow_mut(|Spare { input, output }| {
        input.truncate(input.len() / 2);
        output.truncate(output.len() / 2);
        if input.is_empty() && output.is_empty() {
            (*input, *output) = (Vec::new(), Vec::new());
        }
    });
    super::busy::trim_spare();
    crate::net::pipe::trim_spare();
}

/// Reads the first bytes of a connection that has no buffer: takes a spare one, which it gives back
/// unless something came. Empty: the stream has ended.
pub(crate) fn poll_first(io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
    let spare = SPARE.with_borrow_mut(|spare| spare.input.pop());
    let mut input = spare.unwrap_or_else(|| BytesMut::with_capacity(FILL_BYTES_MIN as usize));
    match io.poll_read_bytes(cx, &mut input) {
        Poll::Ready(Ok(1..)) => Poll::Ready(Ok(input)),
        other => {
            keep_input(input);
            other.map_ok(|_| BytesMut::new())
        }
    }
}

/// Puts an empty input buffer among the spare ones.
fn keep_input(input: BytesMut) {
    SPARE.with_borrow_mut(|spare| {
        if spare.input.len() < SPARE_MAX {
            spare.input.push(input);
        }
    });
}

/// Puts an output buffer among the spare ones, if it is worth keeping.
fn keep_output(output: OutBuf) {
    if (1..=SPARE_OUTPUT_BYTES_MAX).contains(&output.capacity()) {
        SPARE.with_borrow_mut(|spare| {
            if spare.output.len() < SPARE_MAX {
                spare.output.push(output);
            }
        });
    }
}

/// A byte stream with its buffers.
pub(crate) struct Wire {
    io: Io,
    /// Read and not yet parsed.
    pub(crate) input: BytesMut,
    /// Written and not yet sent.
    pub(crate) output: OutBuf,
    fill_bytes: u32,
    /// Neither buffer holds more for long: a read goes no further, a turn flushes first.
    buffer_bytes_max: u32,
    input_ended: bool,
    /// Bytes the socket has taken since [`Wire::start_message`].
    sent_bytes: u64,
}

impl Wire {
    pub(crate) fn new(io: Io) -> Self {
        Self::with_input(io, BytesMut::new(), false)
    }

    /// A stream of which `input` was read, or that has ended.
    #[inline]
    pub(crate) fn with_input(io: Io, input: BytesMut, input_ended: bool) -> Self {
        let fill_bytes = match input.len() == input.capacity() && !input.is_empty() {
            true => FILL_BYTES_MIN * 4,
            false => FILL_BYTES_MIN,
        };
        Self {
            io,
            input,
            output: OutBuf::new(),
            fill_bytes,
            buffer_bytes_max: OUT_BYTES_MAX,
            input_ended,
            sent_bytes: 0,
        }
    }

    /// Buffers less than we would otherwise (`per_connection_buffer_limit_bytes`), but always enough
    /// for one small message.
    pub(crate) fn limit_buffers(&mut self, bytes: u32) {
        self.buffer_bytes_max = bytes.clamp(FILL_BYTES_MIN, OUT_BYTES_MAX);
    }

    /// Bytes the socket has taken since the last call of [`Wire::start_message`].
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Starts counting sent bytes anew; output will follow.
    pub(crate) fn start_message(&mut self) {
        self.sent_bytes = 0;
        self.warm_output();
    }

    /// Takes a spare output buffer, if there is one and none is in use: output will follow.
    pub(crate) fn warm_output(&mut self) {
        if self.output.is_empty()
            && self.output.capacity() == 0
            && let Some(spare) = SPARE.with_borrow_mut(|spare| spare.output.pop())
        {
            self.output = spare;
        }
    }

    /// The socket, when bytes go through it as they are.
    pub(crate) fn socket(&self) -> Option<&tokio::net::TcpStream> {
        match &self.io {
            Io::Plain(_) if !self.io.has_read_ahead() => Some(self.io.tcp()),
            Io::Plain(_) | Io::Tls(_) => None,
        }
    }

    pub(crate) fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Nothing is under way in either direction, and the peer has not finished.
    pub(crate) fn is_quiet(&self) -> bool {
        self.input.is_empty() && self.output.is_empty() && !self.input_ended
    }

    /// Takes the stream and what was read from it.
    pub(crate) fn into_parts(self) -> (Io, BytesMut) {
        (self.io, self.input)
    }

    /// Takes the stream of a connection that goes idle and gives its buffers back.
    pub(crate) fn into_idle(mut self) -> Io {
        self.release_buffers();
        self.io
    }

    /// Whether the peer has finished sending.
    pub(crate) fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Whether another frame may be queued before flushing.
    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < self.buffer_bytes_max as usize
    }

    /// Reads once into `input`. `Ok(false)` is the end of the stream. A connection that waits for
    /// the first byte of a message keeps no buffer meanwhile.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.input_ended {
            return Poll::Ready(Ok(false));
        }
        let bare = self.input.capacity() == 0;
        if self.input.capacity() - self.input.len() < self.fill_bytes as usize / 2 {
            self.grow_input();
        }
        let spare = self.input.capacity() - self.input.len();
        let Poll::Ready(count) = self.io.poll_read_bytes(cx, &mut self.input) else {
            if bare && self.fill_bytes == FILL_BYTES_MIN {
                keep_input(std::mem::take(&mut self.input));
            }
            return Poll::Pending;
        };
        let count = count?;
        if count == 0 {
            self.input_ended = true;
        } else if count == spare {
            self.fill_bytes = (self.fill_bytes * 4).min(FILL_BYTES_MAX).min(self.buffer_bytes_max);
        }
        Poll::Ready(Ok(count > 0))
    }

    /// As [`Wire::poll_fill`] where nothing need come: takes no buffer before something is there.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.input_ended && !self.io.has_read_ahead() {
            ready!(self.io.tcp().poll_read_ready(cx))?;
        }
        self.poll_fill(cx)
    }

    #[inline(never)]
    fn grow_input(&mut self) {
        if self.input.capacity() == 0
            && self.fill_bytes == FILL_BYTES_MIN
            && let Some(spare) = SPARE.with_borrow_mut(|spare| spare.input.pop())
        {
            self.input = spare;
            return;
        }
        self.input.reserve(self.fill_bytes as usize);
    }

    /// Sends everything in `output`.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let stream = Pin::new(&mut self.io);
            let sent = match self.output.single() {
                // The system call for one slice costs the kernel less than the one for several.
                Some(bytes) => ready!(stream.poll_write(cx, bytes))?,
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let count = self.output.io_slices(&mut slices);
                    ready!(stream.poll_write_vectored(cx, &slices[..count]))?
                }
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.consume(sent);
            self.sent_bytes += sent as u64;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Gives the buffers back; call when nothing is expected soon.
    pub(crate) fn release_buffers(&mut self) {
        self.fill_bytes = FILL_BYTES_MIN;
        let mut input = match self.input.is_empty() {
            true => std::mem::take(&mut self.input),
            false => BytesMut::new(),
        };
        // A buffer whose bytes are still shared cannot be reused, one that has grown should not be.
        let least = FILL_BYTES_MIN as usize;
        if input.try_reclaim(least) && input.capacity() <= 2 * least {
            keep_input(input);
        }
        self.release_output();
    }

    /// Gives the output buffer back if nothing is left in it.
    pub(crate) fn release_output(&mut self) {
        if self.output.is_empty() && self.output.capacity() > 0 {
            keep_output(std::mem::take(&mut self.output));
        }
    }
}
