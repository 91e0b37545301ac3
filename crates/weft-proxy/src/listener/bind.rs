//! Listening sockets: one per worker on the same address (SO_REUSEPORT), made in one place so that
//! a failure is known once and port 0 means the same port for all. Must not know tables.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel completes ahead of `accept`; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BindAddress {
    /// As configured; port 0 takes any.
    pub address: SocketAddr,
    /// IP_TRANSPARENT, for TPROXY capture. Needs CAP_NET_ADMIN.
    pub transparent: bool,
}

/// Binds `count` sockets to one address; returns the address bound and the sockets. Fails when
/// anyone, also another proxy of the same user, has the port.
pub fn bind(wanted: BindAddress, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if wanted.address.port() != 0 {
        refuse_other_owner(wanted)?;
    }
    bind_shared(wanted, count)
}

/// As [`bind`], beside sockets of ours that are still open on the port.
pub fn bind_shared(
    wanted: BindAddress,
    count: usize,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let mut address = wanted.address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let socket = socket(BindAddress { address, ..wanted }, Share::WithWorkers)?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok((address, sockets))
}

/// SO_REUSEPORT would silently share the port with another proxy of the same user, and each would
/// get a part of the connections. A bind without it tells.
fn refuse_other_owner(wanted: BindAddress) -> io::Result<()> {
    socket(wanted, Share::No).map(drop)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    No,
    WithWorkers,
}

fn socket(wanted: BindAddress, share: Share) -> io::Result<Socket> {
    let BindAddress { address, transparent } = wanted;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share == Share::WithWorkers {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `::` takes IPv4 too unless told otherwise, which would collide with a 0.0.0.0 listener.
        socket.set_only_v6(true)?;
    }
    if transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_and_others_do_not() {
        let any = BindAddress { address: "127.0.0.1:0".parse().unwrap(), transparent: false };
        let (address, sockets) = bind(any, 3).unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        let again = bind(BindAddress { address, transparent: false }, 1);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
