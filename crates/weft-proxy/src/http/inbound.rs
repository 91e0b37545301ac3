//! Requests to this proxy's own workload: the server's side of a call.
//!
//! The caller's proxy is believed about itself (and only about itself: its identity comes from
//! TLS), the application never sees the mesh's own headers, and the caller learns who answered.

use std::sync::Arc;

use weft_http::{Known, ResponseHead};
use weft_telemetry::PeerInfo;
use weft_telemetry::trace::Side;
use weft_traffic::HttpConfig;

use super::conn::HttpConn;
use super::request::Request;
use super::trace;

/// Takes the caller's word about itself out of the request; continues the trace.
pub(crate) fn sanitize(request: &mut Request, http: &HttpConfig, conn: &HttpConn) {
    let headers = &mut request.head.headers;
    if let Some(metadata) = headers.get_known(Known::XEnvoyPeerMetadata) {
        request.caller = Some(conn.worker.pools.peers.told_by(metadata, conn.peer_spiffe()));
        headers.remove_known(Known::XEnvoyPeerMetadata);
    }
    headers.remove_known(Known::XEnvoyPeerMetadataId);
    request.parent = trace::carry_on(&mut request.head, http, Side::Server, conn);
}

/// Tells a calling proxy who answered. What the application says of that is not believed.
pub(crate) fn on_response(
    head: &mut ResponseHead,
    request: &Request,
    conn: &HttpConn,
) -> Option<Arc<PeerInfo>> {
    head.headers.remove_known(Known::XEnvoyPeerMetadata);
    head.headers.remove_known(Known::XEnvoyPeerMetadataId);
    if request.caller.is_some() {
        let node = &conn.worker.node;
        head.headers
            .append_known(Known::XEnvoyPeerMetadata, conn.worker.pools.peers.own_metadata(node));
        head.headers.append_known(Known::XEnvoyPeerMetadataId, &node.id);
    }
    None
}
