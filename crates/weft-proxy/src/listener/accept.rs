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

/// Serves one connection to its end.
pub async fn serve(tcp: TcpStream, peer: SocketAddr, listener: Arc<str>, worker: Rc<Worker>) {
    let _open = worker.drain.open();
    worker.counters.connections.inc();
    // Latency over packet count: we write whole messages.
    let _ = tcp.set_nodelay(true);
    // Boxed: detection and handshake are large and over soon, the connection's own future stays.
    let (io, conn) = match Box::pin(detect(tcp, peer, &listener, &worker)).await {
        Ok(detected) => detected,
        Err(refused) => return report(&refused, &listener, peer, &worker),
    };
    let Some(chain) = conn.listener.chain(conn.chain) else { return };
    match &chain.network {
        Network::Http(_) => crate::http::serve_connection(io, conn, worker).await,
        Network::Tcp(tcp) => {
            let tcp = tcp.clone();
            Box::pin(crate::tcp::forward(io, conn, tcp, worker)).await;
        }
    }
}

fn report(refused: &Refused, listener: &str, peer: SocketAddr, worker: &Worker) {
    worker.counters.refused(refused.reason());
    tracing::debug!(listener, %peer, error = %refused, "connection closed before it was served");
}
