//! TLS over one socket. rustls keeps the keys and judges the records; the bytes are kept here, and
//! only while some are under way: records are read, decrypted and encrypted in the worker's own
//! buffers, so a session that idles is its keys. Must not know certificates or configuration.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Plain bytes in one record (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// What a record weighs besides, in TLS 1.2 as in 1.3 (RFC 8446 §5.2).
const RECORD_OVERHEAD_MAX: usize = 5 + 256;
/// Records that are read, or written, at once.
const RECORDS_AT_ONCE: usize = 4;
/// Also the longest handshake message: rustls takes up to 64 KiB.
const BUFFER_BYTES: usize = RECORDS_AT_ONCE * (RECORD_BYTES_MAX + RECORD_OVERHEAD_MAX);

thread_local! {
    static BUFFERS: RefCell<Buffers> = const { RefCell::new(Buffers { records: Vec::new(), plain: Vec::new() }) };
}

/// What the sessions of this thread work in; nothing stays there between two calls.
#[derive(Default)]
struct Buffers {
    /// Of [`BUFFER_BYTES`].
    records: Vec<u8>,
    /// Small slices that share a record.
    plain: Vec<u8>,
}

impl Buffers {
    fn take() -> Buffers {
        let mut buffers = BUFFERS.take();
        if buffers.records.is_empty() {
            buffers.records = vec![0; BUFFER_BYTES];
        }
        buffers
    }

    fn give_back(self) {
        BUFFERS.set(self);
    }
}

/// A TLS session and its socket.
pub struct TlsStream {
    tcp: TcpStream,
    state: Box<TlsState>,
}

/// A session without its socket.
pub struct TlsState {
    session: Session,
    /// Records that are not complete, or not looked at.
    incoming: Vec<u8>,
    /// There may be complete ones.
    unread: bool,
    /// Decrypted and not taken.
    plain: BytesMut,
    /// Encrypted and not sent.
    outgoing: BytesMut,
    /// Nothing more comes: close_notify, or the end of the socket.
    ended: bool,
    close_notify_sent: bool,
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What is to be encrypted as soon as the session may send.
struct Sending<'s> {
    slices: &'s [IoSlice<'s>],
    close_notify: bool,
    /// Plain bytes taken from the slices.
    taken: usize,
    /// Bytes of records made of them.
    made: usize,
    buffers: &'s mut Buffers,
}

/// Where a turn of the session takes from and puts to.
struct Turn<'t, 'b> {
    /// For what is read; the rest goes to `plain`.
    out: Option<&'t mut ReadBuf<'b>>,
    plain: &'t mut BytesMut,
    outgoing: &'t mut BytesMut,
    ended: &'t mut bool,
}

/// How a turn goes on.
enum Step {
    Again,
    /// Enough is read.
    Full,
    /// More bytes are needed.
    Wait,
}

impl TlsStream {
    /// Ends TLS for a client of which `read` was read.
    pub async fn accept(
        tcp: TcpStream,
        read: &[u8],
        config: Arc<ServerConfig>,
    ) -> io::Result<TlsStream> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        TlsStream::shake_hands(tcp, read, Session::Server(session)).await
    }

    /// Starts TLS towards a server.
    pub async fn connect(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<TlsStream> {
        let session = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        TlsStream::shake_hands(tcp, &[], Session::Client(session)).await
    }

    async fn shake_hands(tcp: TcpStream, read: &[u8], session: Session) -> io::Result<TlsStream> {
        let state = TlsState {
            session,
            incoming: read.to_vec(),
            unread: true,
            plain: BytesMut::new(),
            outgoing: BytesMut::new(),
            ended: false,
            close_notify_sent: false,
        };
        let mut stream = TlsStream { tcp, state: Box::new(state) };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.state.unread {
                self.take_in_held(cx, None)?;
            }
            ready!(self.poll_send(cx))?;
            if !self.session().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.state.ended || ready!(self.poll_receive(cx, None))? == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
                return Poll::Ready(Err(error));
            }
        }
    }

    /// What the handshake told.
    pub fn session(&self) -> &CommonState {
        match &self.state.session {
            Session::Client(session) => session,
            Session::Server(session) => session,
        }
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Bytes for the reader are here already, whatever the socket says.
    pub fn has_read_ahead(&self) -> bool {
        self.state.unread || !self.state.plain.is_empty()
    }

    /// Nothing is under way in either direction.
    pub fn is_quiet(&self) -> bool {
        let TlsState { incoming, plain, outgoing, ended, .. } = &*self.state;
        incoming.is_empty() && plain.is_empty() && outgoing.is_empty() && !ended
    }

    /// The socket and the session by themselves, for [`TlsStream::from_parts`].
    pub fn into_parts(self) -> (TcpStream, Box<TlsState>) {
        (self.tcp, self.state)
    }

    /// Both together again.
    pub fn from_parts(tcp: TcpStream, state: Box<TlsState>) -> TlsStream {
        TlsStream { tcp, state }
    }

    /// Reads the socket once and takes in what came; 0 is its end.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        out: Option<&mut ReadBuf<'_>>,
    ) -> Poll<io::Result<usize>> {
        let mut buffers = Buffers::take();
        let result = self.poll_receive_in(cx, out, &mut buffers.records);
        buffers.give_back();
        result
    }

    fn poll_receive_in(
        &mut self,
        cx: &mut Context<'_>,
        out: Option<&mut ReadBuf<'_>>,
        records: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // No more than is asked for: what does not fit had better wait with the sender.
        let wanted = out.as_ref().map_or(0, |out| out.remaining());
        let most = wanted.clamp(RECORD_BYTES_MAX, RECORDS_AT_ONCE * RECORD_BYTES_MAX);
        let held = self.state.incoming.len();
        let end = records.len().min(held + most + RECORDS_AT_ONCE * RECORD_OVERHEAD_MAX);
        if held >= end {
            return Poll::Ready(Err(invalid("a TLS message is too long")));
        }
        let mut space = ReadBuf::new(&mut records[held..end]);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        if count == 0 {
            self.state.ended = true;
            return Poll::Ready(Ok(0));
        }
        records[..held].copy_from_slice(&self.state.incoming);
        let bytes = &mut records[..held + count];
        let done = self.take_in(cx, bytes, out)?;
        self.state.incoming.clear();
        self.state.keep(&bytes[done..]);
        Poll::Ready(Ok(count))
    }

    /// Looks at the records that wait from an earlier read.
    fn take_in_held(
        &mut self,
        cx: &mut Context<'_>,
        out: Option<&mut ReadBuf<'_>>,
    ) -> io::Result<()> {
        let mut incoming = std::mem::take(&mut self.state.incoming);
        let done = self.take_in(cx, &mut incoming, out)?;
        self.state.keep(&incoming[done..]);
        Ok(())
    }

    /// Lets the session look at records; returns how many bytes are done with.
    fn take_in(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
        out: Option<&mut ReadBuf<'_>>,
    ) -> io::Result<usize> {
        let done = self.state.turn(bytes, out, None);
        if !self.state.outgoing.is_empty() {
            // Answers to what was read, or the alert that says why it is refused.
            let _ = self.poll_send(cx)?;
        }
        done
    }

    /// Sends what is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outgoing = &mut self.state.outgoing;
        while !outgoing.is_empty() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => outgoing.advance(sent),
            }
        }
        *outgoing = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Encrypts and sends as much as is good at once; what the socket does not take waits in
    /// `outgoing`. Returns how many plain bytes were taken.
    fn encrypt(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        close_notify: bool,
    ) -> io::Result<usize> {
        let mut buffers = Buffers::take();
        let mut sending =
            Sending { slices, close_notify, taken: 0, made: 0, buffers: &mut buffers };
        let mut incoming = std::mem::take(&mut self.state.incoming);
        let done = self.state.turn(&mut incoming, None, Some(&mut sending));
        let Sending { taken, made, .. } = sending;
        let result = match done {
            Ok(done) => {
                self.state.keep(&incoming[done..]);
                self.send(cx, &buffers.records[..made])
            }
            Err(error) => Err(error),
        };
        buffers.give_back();
        result.map(|()| taken)
    }

    fn send(&mut self, cx: &mut Context<'_>, mut records: &[u8]) -> io::Result<()> {
        // In order: the session may have had something to say before.
        while self.state.outgoing.is_empty() && !records.is_empty() {
            match Pin::new(&mut self.tcp).poll_write(cx, records) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => records = &records[sent..],
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.state.outgoing.extend_from_slice(records);
        Ok(())
    }
}

impl TlsState {
    /// Keeps what is not done with, and no more room than it needs.
    fn keep(&mut self, rest: &[u8]) {
        self.incoming = rest.to_vec();
        self.unread &= !rest.is_empty();
    }

    /// Lets the session look at records, and send if it may; returns how many bytes are done with.
    fn turn(
        &mut self,
        bytes: &mut [u8],
        out: Option<&mut ReadBuf<'_>>,
        mut sending: Option<&mut Sending<'_>>,
    ) -> io::Result<usize> {
        let TlsState { session, plain, outgoing, ended, unread, .. } = self;
        let mut turn = Turn { out, plain, outgoing, ended };
        *unread = false;
        let mut done = 0;
        loop {
            let rest = &mut bytes[done..];
            let sending = sending.as_deref_mut();
            let (discard, step) = match session {
                Session::Client(session) => turn.step(session.process_tls_records(rest), sending),
                Session::Server(session) => turn.step(session.process_tls_records(rest), sending),
            };
            done += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return Ok(done),
                Ok(Step::Full) => {
                    *unread = true;
                    return Ok(done);
                }
                Err(error) => {
                    let rest = &mut bytes[done..];
                    match session {
                        Session::Client(session) => turn.alert(session.process_tls_records(rest)),
                        Session::Server(session) => turn.alert(session.process_tls_records(rest)),
                    }
                    return Err(invalid(error));
                }
            }
        }
    }
}

impl Turn<'_, '_> {
    /// Does what the session asks for; returns the bytes that are done with as well.
    fn step<D>(
        &mut self,
        status: UnbufferedStatus<'_, '_, D>,
        sending: Option<&mut Sending<'_>>,
    ) -> (usize, Result<Step, rustls::Error>) {
        let UnbufferedStatus { mut discard, state } = status;
        let step = match state {
            Err(error) => Err(error),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        self.put(record.payload);
                    }
                    Some(Err(error)) => break Err(error),
                    None if self.is_full() => break Ok(Step::Full),
                    None => break Ok(Step::Again),
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(|space| data.encode(space), self.outgoing);
                Ok(Step::Again)
            }
            // Sent in order by us, whenever the socket takes it.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match sending {
                Some(sending) => sending.make(&mut traffic).map(|()| Step::Wait),
                None => Ok(Step::Wait),
            },
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Wait),
            Ok(ConnectionState::PeerClosed) => {
                *self.ended = true;
                Ok(Step::Again)
            }
            Ok(ConnectionState::Closed) => {
                *self.ended = true;
                Ok(Step::Wait)
            }
            // We never allow early data.
            Ok(_) => Err(rustls::Error::General("an unknown state of the session".into())),
        };
        (discard, step)
    }

    /// After a failure: the alert that tells the peer, if there is one.
    fn alert<D>(&mut self, status: UnbufferedStatus<'_, '_, D>) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state {
            encode(|space| data.encode(space), self.outgoing);
        }
    }

    fn is_full(&self) -> bool {
        // Without a reader everything must be taken in before something can be sent.
        self.out.as_ref().is_some_and(|out| out.remaining() == 0)
    }

    fn put(&mut self, payload: &[u8]) {
        let fits = match &mut self.out {
            Some(out) if self.plain.is_empty() => {
                let fits = payload.len().min(out.remaining());
                out.put_slice(&payload[..fits]);
                fits
            }
            _ => 0,
        };
        self.plain.extend_from_slice(&payload[fits..]);
    }
}

/// Appends what `encode` makes.
fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    outgoing: &mut BytesMut,
) {
    let start = outgoing.len();
    if let Err(EncodeError::InsufficientSize(error)) = encode(&mut []) {
        outgoing.resize(start + error.required_size, 0);
        let made = encode(&mut outgoing[start..]).unwrap_or(0);
        outgoing.truncate(start + made);
    }
}

impl Sending<'_> {
    /// Encrypts until the buffer is full or nothing is left.
    fn make<D>(&mut self, traffic: &mut WriteTraffic<'_, D>) -> Result<(), rustls::Error> {
        let Buffers { records, plain } = &mut *self.buffers;
        let exhausted = |error: EncryptError| rustls::Error::General(error.to_string());
        let mut rest = Rest { slices: self.slices, offset: 0 };
        while records.len() - self.made >= RECORD_BYTES_MAX + RECORD_OVERHEAD_MAX {
            let payload = match rest.front() {
                [] => break,
                whole if whole.len() >= RECORD_BYTES_MAX || rest.slices.len() == 1 => {
                    rest.take(RECORD_BYTES_MAX)
                }
                _ => {
                    plain.clear();
                    while plain.len() < RECORD_BYTES_MAX && !rest.front().is_empty() {
                        plain.extend_from_slice(rest.take(RECORD_BYTES_MAX - plain.len()));
                    }
                    &plain[..]
                }
            };
            self.made += traffic.encrypt(payload, &mut records[self.made..]).map_err(exhausted)?;
            self.taken += payload.len();
        }
        if self.close_notify {
            let space = &mut records[self.made..];
            self.made += traffic.queue_close_notify(space).map_err(exhausted)?;
        }
        Ok(())
    }
}

/// Slices of which the beginning is taken.
struct Rest<'s> {
    slices: &'s [IoSlice<'s>],
    offset: usize,
}

impl<'s> Rest<'s> {
    /// The first slice that is not empty; empty: nothing is left.
    fn front(&mut self) -> &'s [u8] {
        while let [first, slices @ ..] = self.slices {
            if self.offset < first.len() {
                return &first[self.offset..];
            }
            (self.slices, self.offset) = (slices, 0);
        }
        &[]
    }

    fn take(&mut self, most: usize) -> &'s [u8] {
        let front = self.front();
        let part = &front[..front.len().min(most)];
        self.offset += part.len();
        part
    }
}

impl AsyncRead for TlsStream {
    /// A socket that ends without close_notify is an end like any other: framed protocols notice a
    /// cut message themselves, and most real clients do this.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            let TlsState { plain, unread, ended, .. } = &mut *this.state;
            if !plain.is_empty() {
                let count = plain.len().min(buf.remaining());
                buf.put_slice(&plain[..count]);
                plain.advance(count);
                if plain.is_empty() {
                    *plain = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if buf.filled().len() > before || buf.remaining() == 0 || (*ended && !*unread) {
                return Poll::Ready(Ok(()));
            }
            match *unread {
                true => this.take_in_held(cx, Some(buf))?,
                false => drop(ready!(this.poll_receive(cx, Some(buf)))?),
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        match this.encrypt(cx, slices, false)? {
            // Both sides have said that they are done.
            0 => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.state.close_notify_sent, true) {
            this.encrypt(cx, &[], true)?;
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TlsState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsState").finish_non_exhaustive()
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
