//! Packets with file descriptors over a Unix socket that keeps packets apart. Must not know what
//! is in them, beyond that it is JSON.

use std::fs::DirBuilder;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Descriptors in one packet; the kernel takes up to 253.
pub const DESCRIPTORS_MAX: usize = 64;
/// Longest packet: 64 sockets with long names. Bytes.
const PACKET_BYTES_MAX: usize = 64 * 1024;
/// Waits when the kernel has no room for more descriptors under way.
const CROWDED: Duration = Duration::from_millis(5);

/// A packet as received.
pub struct Packet<T> {
    pub message: T,
    pub descriptors: Vec<OwnedFd>,
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Connects; reads and writes of [`send`] and [`receive`] then take at most `timeout` each.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = socket()?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens on `path`, in the place of whatever was there; only our user may connect.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket()?;
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Bound beside it and renamed: at no moment is there no socket.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    rustix::net::bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    rustix::fs::chmod(&fresh, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::listen(&socket, 8)?;
    std::fs::rename(&fresh, path)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    UnixListener::from_std(socket.into())
}

/// The next connection, if its process may give us orders.
pub async fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (session, _) = listener.accept().await?;
    let peer = sockopt::socket_peercred(&session)?.uid;
    if peer != rustix::process::geteuid() && !peer.is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(session)
}

/// For use with [`send_async`] and [`receive_async`]. The type only waits and names the socket,
/// which keeps packets apart all the same.
pub fn asynchronous(socket: OwnedFd) -> io::Result<UnixStream> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    UnixStream::from_std(socket.into())
}

/// Sends one packet, waiting as long as the socket's timeout says.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one packet"));
    }
    let slices = [IoSlice::new(&text)];
    rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet. `UnexpectedEof`: the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Packet<T>> {
    let mut text = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long"));
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Packet { message: serde_json::from_slice(&text[..received.bytes])?, descriptors })
}

/// As [`send`], for as long as it takes.
pub async fn send_async(
    session: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    loop {
        let sent =
            session.async_io(Interest::WRITABLE, || send(session, message, descriptors)).await;
        match sent {
            // The other side has not taken in the descriptors that are under way.
            Err(error) if error.raw_os_error() == Some(TOO_MANY_REFERENCES) => {
                tokio::time::sleep(CROWDED).await;
            }
            sent => return sent,
        }
    }
}

const TOO_MANY_REFERENCES: i32 = rustix::io::Errno::TOOMANYREFS.raw_os_error();

/// As [`receive`], for as long as it takes.
pub async fn receive_async<T: DeserializeOwned>(session: &UnixStream) -> io::Result<Packet<T>> {
    session.async_io(Interest::READABLE, || receive(session)).await
}
