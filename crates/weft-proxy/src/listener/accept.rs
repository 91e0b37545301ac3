//! One worker's accept loop for one listening socket, and what becomes of each connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use weft_traffic::Network;

use super::detect::{Refused, detect};
use crate::drain::OpenGuard;
use crate::handover::{Idle, Passed};
use crate::worker::{ToWorker, Worker};

/// Waits when `accept` fails for want of a resource (file descriptors, memory): at once again would
/// spin, since the connection stays in the queue.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection between two requests is closed after this when the process drains.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Accepts until the task is aborted.
pub async fn accept_loop(socket: TcpListener, listener: Arc<str>, worker: Rc<Worker>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => {
                backoff = BACKOFF_MIN;
                if worker.drain.open_connections() >= worker.limits.connections_max {
                    worker.counters.limits.overload.inc();
                    continue; // Dropped: closed at once, rather than left to wait.
                }
                let target = worker.crew.choose(worker.id);
                let open = worker.drain.open().of_worker(worker.crew.admit(target));
                let (listener, worker) = (listener.clone(), worker.clone());
                if target == worker.id {
                    tokio::task::spawn_local(serve(tcp, peer, listener, worker, open));
                } else if let Ok(socket) = tcp.into_std() {
                    worker.counters.moved.inc();
                    worker.crew.tell(target, ToWorker::Serve { socket, peer, listener, open });
                }
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
pub async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    listener: Arc<str>,
    worker: Rc<Worker>,
    open: OpenGuard,
) {
    worker.counters.connections.inc();
    serve_known(tcp, peer, listener, worker, open).await;
}

async fn serve_known(
    tcp: TcpStream,
    peer: SocketAddr,
    listener: Arc<str>,
    worker: Rc<Worker>,
    open: OpenGuard,
) {
    // Latency over packet count: we write whole messages.
    let _ = tcp.set_nodelay(true);
    let (io, conn) = match detect(tcp, peer, &listener, &worker, open).await {
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

/// Waits for the next request on a connection that an older proxy passed on between two requests,
/// and then serves it as if it had just come.
pub async fn serve_adopted(tcp: TcpStream, idle: Idle, worker: Rc<Worker>) {
    let Ok(peer) = tcp.peer_addr() else { return };
    let open = worker.drain.open().of_worker(worker.crew.admit(worker.id));
    let since = Instant::now();
    let limit = Duration::from_millis(idle.idle_ms);
    let mut byte = [0; 1];
    let mut read = tokio::select! {
        biased;
        read = tcp.peek(&mut byte) => Some(read),
        () = worker.drain.draining() => None,
        () = tokio::time::sleep(limit) => return,
    };
    if read.is_none() && worker.heir.has_taken_over() {
        let left = limit.saturating_sub(since.elapsed());
        let idle_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let Ok(socket) = tcp.into_std() else { return };
        // When nobody is there to take it, it ends here.
        let _ = worker.heir.pass(Passed { socket, idle: Idle { idle_ms, ..idle }, open });
        return;
    }
    if read.is_none() {
        read = tokio::time::timeout(DRAIN_IDLE, tcp.peek(&mut byte)).await.ok();
    }
    // The end of a connection between two requests is nobody's error.
    if matches!(read, Some(Ok(1..))) {
        serve_known(tcp, peer, idle.listener, worker, open).await;
    }
}

fn report(refused: &Refused, listener: &str, peer: SocketAddr, worker: &Worker) {
    worker.counters.refused(refused.reason());
    if matches!(refused, Refused::DetectTimeout) {
        worker.counters.limits.detect_timeout.inc();
    }
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
        assert!(http <= 512, "HTTP: {http} bytes");
        let tcp = of_four(crate::tcp::forward);
        assert!(tcp <= 1024, "TCP: {tcp} bytes");
    }
}
