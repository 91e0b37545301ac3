//! The gRPC server on accepted connections: hyper's HTTP/2 with a short queue.
//!
//! In place of tonic's own, which lets a stream queue 400 KB for a client that reads slowly: of a
//! thousand proxies that start at once each would hold as much of its first configuration. Must not
//! know what the services say.

use std::io;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tower::Service;

use crate::listen::Io;

/// Of a stream's answer, what may wait for the client's window or for the socket. Bytes.
const SEND_QUEUE_BYTES: usize = 64 * 1024;
/// Streams of one connection: ADS, certificate requests, and room for old ones that end.
const STREAMS_MAX: u32 = 100;
/// Between PINGs to a proxy; a dead one is noticed within this and the time-out.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown`, and then what is open to its end.
pub(crate) async fn serve(
    routes: Routes,
    mut incoming: ReceiverStream<io::Result<Io>>,
    shutdown: CancellationToken,
) {
    let routes = routes.prepare();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Some(Ok(io)) => {
                connections.spawn(connection(io, routes.clone(), shutdown.clone()));
            }
            Some(Err(error)) => tracing::debug!(%error, "no connection"),
            None => break,
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(io: Io, routes: Routes, shutdown: CancellationToken) {
    let peer = io.connect_info();
    let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        let request: http::Request<hyper::body::Incoming> = request;
        // Routes are always ready.
        routes.clone().call(request)
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_QUEUE_BYTES)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the xDS port ended");
    }
}
