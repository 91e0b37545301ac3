//! Requests of this proxy's own workload, and a gateway's requests into the mesh: the client's side
//! of a call.
//!
//! What the application says about the mesh is not believed; the endpoint's proxy is told who
//! calls, but only an endpoint that has a proxy, so that nothing leaks outside the mesh.

use std::sync::Arc;

use weft_http::{Known, RequestHead, ResponseHead};
use weft_telemetry::PeerInfo;
use weft_telemetry::trace::Side;
use weft_traffic::{Endpoint, HttpConfig};

use super::conn::HttpConn;
use super::request::Request;
use super::trace;
use crate::upstream::connect::Negotiated;

/// Begins or continues the trace.
pub(crate) fn sanitize(request: &mut Request, http: &HttpConfig, conn: &HttpConn) {
    request.parent = trace::carry_on(&mut request.head, http, Side::Client, conn);
}

/// Tells the endpoint's proxy who calls; takes such claims off requests that go elsewhere.
pub(crate) fn introduce(head: &mut RequestHead, endpoint: &Endpoint, conn: &HttpConn) {
    if endpoint.istio_mtls() {
        let node = &conn.worker.node;
        head.headers
            .set_known(Known::XEnvoyPeerMetadata, conn.worker.pools.peers.own_metadata(node));
        head.headers.set_known(Known::XEnvoyPeerMetadataId, &node.id);
    } else {
        head.headers.remove_known(Known::XEnvoyPeerMetadata);
        head.headers.remove_known(Known::XEnvoyPeerMetadataId);
    }
}

/// Takes the answering proxy's word about itself out of the response; else what the endpoint's
/// configuration says of its workload.
pub(crate) fn on_response(
    head: &mut ResponseHead,
    endpoint: &Endpoint,
    session: &Negotiated,
    conn: &HttpConn,
) -> Option<Arc<PeerInfo>> {
    let peers = &conn.worker.pools.peers;
    let principal = session.peer_spiffe.as_ref();
    let told = match head.headers.get_known(Known::XEnvoyPeerMetadata) {
        // Without mTLS anybody could claim to be any workload.
        Some(metadata) if session.mtls => Some(peers.told_by(metadata, principal)),
        _ => None,
    };
    head.headers.remove_known(Known::XEnvoyPeerMetadata);
    head.headers.remove_known(Known::XEnvoyPeerMetadataId);
    told.or_else(|| peers.of_endpoint(endpoint, principal))
}
