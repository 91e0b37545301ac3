//! Requests from outside the mesh at a gateway: nothing in them is believed that only the mesh
//! itself may say. Towards the mesh a gateway is a client like any other (`outbound`).

use weft_http::{HeaderList, Known, Lengths, rules};
use weft_telemetry::trace::Side;
use weft_telemetry::{PEER_METADATA, PEER_METADATA_ID};
use weft_traffic::HttpConfig;

use super::conn::HttpConn;
use super::request::Request;
use super::trace;

/// Headers by which Envoy's family of proxies instruct each other; a stranger must not.
const INTERNAL: [&str; 10] = [
    PEER_METADATA,
    PEER_METADATA_ID,
    "x-envoy-internal",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-original-path",
    "x-envoy-upstream-alt-stat-name",
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

/// Takes off what an application told its sidecar, once it is heeded: it is not for the endpoint.
pub(crate) fn strip_instructions(headers: &mut HeaderList) {
    let told = headers.has_other_of(&INSTRUCTION_LENGTHS) || headers.contains_any(&KNOWN);
    if !told {
        return;
    }
    headers.retain(|header| !(is_envoys(header.name) && listed(&INSTRUCTIONS, header.name)));
}

/// How to serve the one request that says so.
const INSTRUCTIONS: [&str; 10] = [
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-ms",
];

/// Those of them that lists index, and the lengths of the others: hardly any request has either.
const KNOWN: [Known; 2] =
    [Known::XEnvoyUpstreamRqTimeoutMs, Known::XEnvoyUpstreamRqPerTryTimeoutMs];
static INSTRUCTION_LENGTHS: Lengths = Lengths::of(&INSTRUCTIONS);

fn is_internal(name: &[u8]) -> bool {
    is_envoys(name) && (listed(&INTERNAL, name) || listed(&INSTRUCTIONS, name))
}

/// The common prefix keeps ordinary headers at one comparison: bit 0x20 lower-cases letters and
/// leaves the dash alone.
fn is_envoys(name: &[u8]) -> bool {
    const PREFIX: u64 = u64::from_le_bytes(*b"x-envoy-");
    const LOWER: u64 = u64::from_le_bytes([0x20; 8]);
    name.first_chunk().is_some_and(|start| u64::from_le_bytes(*start) | LOWER == PREFIX)
}

fn listed(names: &[&str], name: &[u8]) -> bool {
    names.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(name))
}
