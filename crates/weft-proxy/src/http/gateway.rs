//! Requests from outside the mesh at a gateway: nothing in them is believed that only the mesh
//! itself may say. Towards the mesh a gateway is a client like any other (`outbound`).

use weft_http::{Known, rules};
use weft_telemetry::trace::Side;
use weft_telemetry::{PEER_METADATA, PEER_METADATA_ID};
use weft_traffic::HttpConfig;

use super::conn::HttpConn;
use super::request::Request;
use super::trace;

/// Headers by which Envoy's family of proxies instruct each other; a stranger must not.
const INTERNAL: [&str; 17] = [
    PEER_METADATA,
    PEER_METADATA_ID,
    "x-envoy-internal",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-path",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
];

/// Removes what strangers may not say, notes who they are, begins or continues the trace.
pub(crate) fn sanitize(request: &mut Request, http: &HttpConfig, conn: &HttpConn) {
    let head = &mut request.head;
    head.headers.retain(|header| !is_internal(header.name));
    let rules = &http.client_address;
    if rules.use_remote_address {
        if !rules.skip_xff_append {
            rules::append_forwarded_for(&mut head.headers, conn.context.peer.ip());
        }
        // As Envoy 1.32 and later, for which no address is internal unless configured.
        let client = request.client.to_string();
        head.headers.remove_known(Known::XEnvoyExternalAddress);
        head.headers.append_known(Known::XEnvoyExternalAddress, &client);
    }
    let trusted = rules.xff_trusted_hops > 0 || !rules.use_remote_address;
    rules::set_forwarded_proto(&mut head.headers, head.scheme, trusted);
    trace::carry_on(head, http, Side::Client, conn);
}

fn is_internal(name: &[u8]) -> bool {
    // The common prefix keeps ordinary headers at one comparison.
    name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"x-envoy-"))
        && INTERNAL.iter().any(|internal| internal.as_bytes().eq_ignore_ascii_case(name))
}
