//! The HTTP request path. `server_h1` and `server_h2` read requests off connections, `request` is
//! the path of one request, `attempt` and `exchange` carry it to an endpoint and the response
//! back. Versions meet only in `weft_http`'s message and the two enums for the two sides.

mod busy;
pub(crate) mod parking;
mod server_h1;
pub(crate) mod server_h2;

pub(crate) mod attempt;
mod exchange;
pub(crate) mod limits;
pub(crate) mod mirror;
pub(crate) mod request;
mod spelling;

mod filter;
mod gateway;
mod grpc;
mod grpc_web;
mod h2c;
mod head_rules;
mod inbound;
mod outbound;
mod trace;

pub(crate) mod call;
mod local_reply;
pub(crate) mod log;
mod rate_limit;
mod record;
pub(crate) mod span;
pub(crate) mod upgrade;
mod why;

pub(crate) mod conn;
mod downstream;
pub(crate) mod h1_body;
pub(crate) mod h2_link;
pub(crate) mod peers;
pub mod policy;
pub(crate) mod wire;

use std::rc::Rc;

use bytes::BytesMut;
use weft_traffic::http::Codec;

use crate::net::Io;
use crate::tls::SPELLING_ALPN;
use crate::worker::{ConnContext, Worker};
use conn::HttpConn;

/// Serves one downstream connection until it is closed or drained.
pub async fn serve_connection(io: Io, context: Rc<ConnContext>, worker: Rc<Worker>) {
    let Some(conn) = HttpConn::new(worker, context) else {
        tracing::error!("a connection of a chain without HTTP was handed to HTTP");
        return;
    };
    let conn = Rc::new(conn);
    let alpn = conn.context.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
    // HTTP/2's state is the larger and lives for fewer connections: boxed.
    match (conn.http.codec, alpn) {
        (Codec::H2, _) | (Codec::Auto, Some("h2" | SPELLING_ALPN)) => {
            Box::pin(server_h2::serve(io, BytesMut::new(), conn, None)).await;
        }
        (Codec::H1, _) | (Codec::Auto, Some("http/1.1" | "http/1.0")) => {
            server_h1::serve(io, conn).await;
        }
        // Without ALPN the first bytes tell.
        (Codec::Auto, _) => {
            if let Some(h2) = server_h1::serve_unless_h2(io, conn.clone()).await {
                Box::pin(server_h2::serve(h2.io, h2.read, conn, h2.upgraded)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
