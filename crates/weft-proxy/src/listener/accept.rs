//! One worker's accept loop for one listening socket, and what becomes of each connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use weft_traffic::Network;

use super::detect::{Refused, detect};
use crate::worker::Worker;

/// Waits when `accept` fails for want of a resource (file descriptors, memory): at once again would
/// spin, since the connection stays in the queue.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Accepts until the task is aborted.
pub async fn accept_loop(socket: TcpListener, listener: Arc<str>, worker: Rc<Worker>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => {
                backoff = BACKOFF_MIN;
                if worker.drain.open_connections() >= worker.limits.connections_max {
                    worker.counters.overflow.inc();
                    continue; // Dropped: closed at once, rather than left to wait.
                }
                tokio::task::spawn_local(serve(tcp, peer, listener.clone(), worker.clone()));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                worker.counters.accept_errors.inc();
                tracing::warn!(%listener, %error, "accept failed; waiting");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

/// Errors of the connection that was about to be accepted, not of the socket: accept(2).
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
    )
}

/// Finds out what a connection is and hands it to a task of its own that serves it: detection and
/// handshake are large and over soon, and nothing of them should stay in memory.
pub async fn serve(tcp: TcpStream, peer: SocketAddr, listener: Arc<str>, worker: Rc<Worker>) {
    worker.counters.connections.inc();
    // Latency over packet count: we write whole messages.
    let _ = tcp.set_nodelay(true);
    let (io, conn) = match detect(tcp, peer, &listener, &worker).await {
        Ok(detected) => detected,
        Err(refused) => return report(&refused, &listener, peer, &worker),
    };
    let Some(chain) = conn.listener.chain(conn.chain) else { return };
    match &chain.network {
        Network::Http(_) => {
            tokio::task::spawn_local(crate::http::serve_connection(io, conn, worker));
        }
        Network::Tcp(tcp) => {
            let tcp = tcp.clone();
            tokio::task::spawn_local(crate::tcp::forward(io, conn, tcp, worker));
        }
    }
}

fn report(refused: &Refused, listener: &str, peer: SocketAddr, worker: &Worker) {
    worker.counters.refused(refused.reason());
    tracing::debug!(listener, %peer, error = %refused, "connection closed before it was served");
}

#[cfg(test)]
mod tests {
    /// Size of the future an async function of three arguments returns.
    fn of_three<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn of_four<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// Every open connection keeps this much in its task: large branches must stay boxed.
    #[test]
    fn futures_of_connections_are_small() {
        let http = of_three(crate::http::serve_connection);
        assert!(http <= 1024, "HTTP: {http} bytes");
        let tcp = of_four(crate::tcp::forward);
        assert!(tcp <= 1024, "TCP: {tcp} bytes");
    }
}
