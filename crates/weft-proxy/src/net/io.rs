//! One byte stream, plain or TLS, with the bytes that protocol detection already read replayed
//! first. Owns reading, vectored writing and the "is this idle connection still good" check.
//! Must not know HTTP, configuration or metrics.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::tls_stream::{TlsState, TlsStream};

/// A connection's byte stream. Downstream and upstream connections are the same type.
#[derive(Debug)]
pub enum Io {
    /// No TLS, or TLS that is passed through untouched.
    Plain(Prefixed),
    /// TLS ended here.
    Tls(TlsStream),
}

/// A TCP stream in front of which already read bytes are put back.
#[derive(Debug)]
pub struct Prefixed {
    tcp: TcpStream,
    /// Boxed: it is there for a moment of the connection's life.
    prefix: Option<Box<BytesMut>>,
}

/// The stream of a connection that idles, outside the runtime's reactor.
#[derive(Debug)]
pub enum ParkedIo {
    /// As [`Io::Plain`].
    Plain(std::net::TcpStream),
    /// As [`Io::Tls`].
    Tls(std::net::TcpStream, Box<TlsState>),
}

/// What [`Io::idle_state`] found on a connection nobody is reading from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Open, nothing to read: may be reused.
    Quiet,
    /// Bytes nobody asked for: must not be reused for HTTP/1.
    Readable,
    /// The peer has closed or reset it.
    Closed,
}

impl Io {
    /// A plain stream with nothing to replay.
    pub fn plain(tcp: TcpStream) -> Io {
        Io::Plain(Prefixed::new(tcp, BytesMut::new()))
    }

    /// The socket below, for options and addresses. Reading from it would lose the prefix.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(stream) => &stream.tcp,
            Io::Tls(stream) => stream.tcp(),
        }
    }

    /// The socket alone, if it has no TLS and everything read from it was taken.
    pub fn into_plain_socket(self) -> Option<std::net::TcpStream> {
        match self {
            Io::Plain(stream) if stream.prefix.is_none() => stream.tcp.into_std().ok(),
            Io::Plain(_) | Io::Tls(_) => None,
        }
    }

    /// Whether [`Io::park`] keeps everything: nothing is held but the socket.
    pub fn can_park(&self) -> bool {
        match self {
            Io::Plain(stream) => stream.prefix.is_none(),
            Io::Tls(stream) => stream.is_quiet(),
        }
    }

    /// Bytes are here already that the socket will not announce.
    pub fn has_read_ahead(&self) -> bool {
        match self {
            Io::Plain(stream) => stream.prefix.is_some(),
            Io::Tls(stream) => stream.has_read_ahead(),
        }
    }

    /// Takes the stream out of the reactor; ask [`Io::can_park`] first.
    pub fn park(self) -> io::Result<ParkedIo> {
        match self {
            Io::Plain(stream) if stream.prefix.is_none() => {
                Ok(ParkedIo::Plain(stream.tcp.into_std()?))
            }
            Io::Plain(_) => Err(io::ErrorKind::InvalidInput.into()),
            Io::Tls(stream) => {
                let (tcp, state) = stream.into_parts();
                Ok(ParkedIo::Tls(tcp.into_std()?, state))
            }
        }
    }

    /// Peer address of the socket.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// Whether TLS ends here.
    pub fn is_tls(&self) -> bool {
        matches!(self, Io::Tls(_))
    }

    /// Reads what is there into `buf`'s spare capacity (reserve first) without waiting. `Ok(0)` is
    /// the end of the stream, `WouldBlock` means nothing is there: wait with [`Io::readable`] or
    /// `poll_read`, which also register for wake-up.
    pub fn try_read(&mut self, buf: &mut BytesMut) -> io::Result<usize> {
        match self {
            Io::Plain(stream) if stream.prefix.is_none() => stream.tcp.try_read_buf(buf),
            _ => match self.poll_read_bytes(&mut Context::from_waker(Waker::noop()), buf) {
                Poll::Ready(result) => result,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            },
        }
    }

    /// Writes the slices without waiting, as far as the socket takes them.
    pub fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Io::Plain(stream) => stream.tcp.try_write_vectored(slices),
            Io::Tls(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                match Pin::new(stream).poll_write_vectored(&mut cx, slices) {
                    Poll::Ready(result) => result,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// As `poll_read`, into the spare capacity of `buf` (which the caller has reserved; with none,
    /// 4 KiB is). `Ok(0)` is the end of the stream.
    pub fn poll_read_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        use bytes::BufMut;
        if buf.capacity() == buf.len() {
            buf.reserve(READ_RESERVE);
        }
        // The safe way to read into spare capacity: tokio's ReadBuf over `chunk_mut` needs unsafe,
        // `poll_read_buf` of tokio-util does that for us.
        debug_assert!(buf.has_remaining_mut());
        tokio_util::io::poll_read_buf(Pin::new(self), cx, buf)
    }

    /// Waits until the socket has something to read. On TLS this is the socket, not the plaintext:
    /// use it only when the session holds no decrypted bytes.
    pub async fn readable(&self) -> io::Result<()> {
        self.tcp().readable().await
    }

    /// Looks at an idle connection with one `recv(MSG_PEEK)`, not trusting the reactor, which may
    /// not have seen a FIN that is already in the kernel. TLS records that carry no data (session
    /// tickets) are consumed.
    pub fn idle_state(&mut self) -> IdleState {
        // Two rounds: the second looks again after tickets have been taken in.
        for _ in 0..2 {
            match peek(self.tcp()) {
                IdleState::Readable => {}
                state => return state,
            }
            let Io::Tls(stream) = self else { return IdleState::Readable };
            let mut byte = [0u8; 1];
            let mut buf = ReadBuf::new(&mut byte);
            let mut cx = Context::from_waker(Waker::noop());
            match Pin::new(stream).poll_read(&mut cx, &mut buf) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => return IdleState::Readable,
                Poll::Ready(_) => return IdleState::Closed,
            }
        }
        IdleState::Readable
    }
}

impl ParkedIo {
    /// The socket.
    pub fn socket(&self) -> &std::net::TcpStream {
        match self {
            ParkedIo::Plain(socket) | ParkedIo::Tls(socket, _) => socket,
        }
    }

    /// Puts the stream into the reactor again.
    pub fn resume(self) -> io::Result<Io> {
        match self {
            ParkedIo::Plain(socket) => Ok(Io::plain(TcpStream::from_std(socket)?)),
            ParkedIo::Tls(socket, state) => {
                Ok(Io::Tls(TlsStream::from_parts(TcpStream::from_std(socket)?, state)))
            }
        }
    }
}

/// Read buffer growth when the caller reserved none. Bytes.
const READ_RESERVE: usize = 4096;

fn peek(tcp: &TcpStream) -> IdleState {
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    match socket2::SockRef::from(tcp).peek(&mut byte) {
        Ok(0) => IdleState::Closed,
        Ok(_) => IdleState::Readable,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => IdleState::Quiet,
        Err(_) => IdleState::Closed,
    }
}

impl Prefixed {
    /// `prefix` is read before the socket.
    pub fn new(tcp: TcpStream, prefix: BytesMut) -> Prefixed {
        let prefix = (!prefix.is_empty()).then(|| Box::new(prefix));
        Prefixed { tcp, prefix }
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, and what was read from it.
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.tcp, self.prefix.map(|prefix| *prefix).unwrap_or_default())
    }

    /// Bytes read from the socket that have not been taken yet.
    pub fn prefix(&self) -> &[u8] {
        self.prefix.as_deref().map_or(&[], |prefix| &prefix[..])
    }

    /// Reads more from the socket behind the prefix, for protocol detection. `Ok(0)` is the end.
    pub async fn read_ahead(&mut self) -> io::Result<usize> {
        use tokio::io::AsyncReadExt;
        let prefix = self.prefix.get_or_insert_default();
        prefix.reserve(READ_AHEAD);
        let read = self.tcp.read_buf(&mut **prefix).await;
        self.forget_empty();
        read
    }

    /// Drops the first `n` bytes of the prefix (a PROXY protocol header).
    pub fn skip(&mut self, n: usize) {
        if let Some(prefix) = &mut self.prefix {
            prefix.advance(n);
        }
        self.forget_empty();
    }

    fn forget_empty(&mut self) {
        if self.prefix.as_ref().is_some_and(|prefix| prefix.is_empty()) {
            self.prefix = None;
        }
    }
}

/// How much protocol detection reads at once: a ClientHello or a request head mostly fits. Bytes.
const READ_AHEAD: usize = 2048;

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(prefix) = &mut self.prefix else {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        };
        let n = prefix.len().min(buf.remaining());
        buf.put_slice(&prefix[..n]);
        prefix.advance(n);
        self.forget_empty();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// On TLS: encrypted bytes may wait inside the session, so flush at the end of every turn.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Half-close: FIN, on TLS close_notify first.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
