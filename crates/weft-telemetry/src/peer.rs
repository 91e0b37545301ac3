//! Who is at the other end: the facts Istio's metrics name a workload by, and their wire form.
//!
//! Wire form: Istio's `x-envoy-peer-metadata`, base64 of a `google.protobuf.Struct`, and the
//! endpoint metadata text `workload;namespace;canonical-name;canonical-revision;cluster`.
//! Both come from peers, so both are bounded.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use std::sync::{Arc, OnceLock};

/// Header that carries a workload's facts between proxies, both ways.
pub const PEER_METADATA: &str = "x-envoy-peer-metadata";
/// Header that carries the sender's node id; its value lets a receiver cache the facts.
pub const PEER_METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// Longest header value decoded, in base64 characters. Istio's own stay below 2 KiB.
const ENCODED_BYTES_MAX: usize = 8 * 1024;
/// Longest single fact kept; Kubernetes limits labels to 63 and names to 253 bytes.
const FACT_BYTES_MAX: usize = 253;

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// One workload as metrics name it. An empty field is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PeerInfo {
    /// Pod or instance name.
    pub name: String,
    /// Deployment or other owner, for example `servicea-v1`.
    pub workload: String,
    pub namespace: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// SPIFFE id as proved by TLS, for example `spiffe://cluster.local/ns/default/sa/servicea`.
    /// Never taken from a header.
    pub principal: String,
    /// Cluster id, `Kubernetes` by Istio's default.
    pub cluster: String,
    pub canonical_service: String,
    pub canonical_revision: String,
}

impl PeerInfo {
    /// The peer nothing is known about; one shared value.
    pub fn unknown() -> Arc<Self> {
        static UNKNOWN: OnceLock<Arc<PeerInfo>> = OnceLock::new();
        UNKNOWN.get_or_init(|| Arc::new(Self::default())).clone()
    }

    /// True when no fact but perhaps the principal is known.
    pub fn is_unknown(&self) -> bool {
        self.workload.is_empty() && self.namespace.is_empty() && self.name.is_empty()
    }

    /// The value for `x-envoy-peer-metadata`. Deterministic, principal left out.
    pub fn encode(&self) -> String {
        let mut labels = Struct::default();
        put(&mut labels, "app", &self.app);
        put(&mut labels, "version", &self.version);
        put(&mut labels, CANONICAL_NAME, &self.canonical_service);
        put(&mut labels, CANONICAL_REVISION, &self.canonical_revision);
        let mut facts = Struct::default();
        put(&mut facts, "NAME", &self.name);
        put(&mut facts, "NAMESPACE", &self.namespace);
        put(&mut facts, "WORKLOAD_NAME", &self.workload);
        put(&mut facts, "CLUSTER_ID", &self.cluster);
        facts.fields.insert("LABELS".into(), Value { kind: Some(Kind::StructValue(labels)) });
        STANDARD.encode(facts.encode_to_vec())
    }

    /// Reads an `x-envoy-peer-metadata` value. `None` when it is too long or malformed;
    /// over-long facts are cut, unknown fields ignored.
    pub fn decode(value: &[u8]) -> Option<Self> {
        if value.len() > ENCODED_BYTES_MAX {
            return None;
        }
        let trimmed = value.trim_ascii_end();
        let unpadded = match trimmed {
            [rest @ .., b'=', b'='] | [rest @ .., b'='] => rest,
            all => all,
        };
        let bytes = STANDARD_NO_PAD.decode(unpadded).ok()?;
        let facts = Struct::decode(bytes.as_slice()).ok()?;
        let labels = match facts.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => labels,
            _ => &Struct::default(),
        };
        let mut workload = take(&facts, "WORKLOAD_NAME");
        if workload.is_empty() {
            // Older proxies name only the owner: kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME
            workload = take(&facts, "OWNER")
                .rsplit_once('/')
                .map(|(_, n)| n.to_owned())
                .unwrap_or_default();
        }
        let app = take(labels, "app");
        let or_app = |text: String| if text.is_empty() { app.clone() } else { text };
        let version = take(labels, "version");
        let revision = take(labels, CANONICAL_REVISION);
        Some(Self {
            name: take(&facts, "NAME"),
            namespace: take(&facts, "NAMESPACE"),
            cluster: take(&facts, "CLUSTER_ID"),
            canonical_service: or_app(take(labels, CANONICAL_NAME)),
            canonical_revision: if revision.is_empty() { version.clone() } else { revision },
            principal: String::new(),
            workload,
            app,
            version,
        })
    }

    /// Reads endpoint metadata (`filter_metadata["istio"].workload`):
    /// `workload;namespace;canonical-name;canonical-revision;cluster`.
    pub fn from_endpoint(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, ';').map(bounded);
        let workload = parts.next()?;
        let namespace = parts.next()?;
        let canonical_service = parts.next().unwrap_or_default();
        let canonical_revision = parts.next().unwrap_or_default();
        let cluster = parts.next().unwrap_or_default();
        if workload.is_empty() && namespace.is_empty() {
            return None;
        }
        Some(Self {
            workload,
            namespace,
            app: canonical_service.clone(),
            version: canonical_revision.clone(),
            canonical_service,
            canonical_revision,
            cluster,
            ..Self::default()
        })
    }
}

fn put(fields: &mut Struct, key: &str, text: &str) {
    if !text.is_empty() {
        let value = Value { kind: Some(Kind::StringValue(bounded(text))) };
        fields.fields.insert(key.to_owned(), value);
    }
}

fn take(fields: &Struct, key: &str) -> String {
    match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => bounded(text),
        _ => String::new(),
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(FACT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servicea() -> PeerInfo {
        PeerInfo {
            name: "servicea-v1-0".into(),
            workload: "servicea-v1".into(),
            namespace: "default".into(),
            app: "servicea".into(),
            version: "v1".into(),
            principal: String::new(),
            cluster: "Kubernetes".into(),
            canonical_service: "servicea".into(),
            canonical_revision: "v1".into(),
        }
    }

    #[test]
    fn header_round_trips() {
        let peer = servicea();
        assert_eq!(PeerInfo::decode(peer.encode().as_bytes()), Some(peer));
    }

    #[test]
    fn owner_stands_in_for_a_missing_workload_name() {
        let mut facts = Struct::default();
        put(&mut facts, "OWNER", "kubernetes://apis/apps/v1/namespaces/default/deployments/web");
        let text = STANDARD.encode(facts.encode_to_vec());
        assert_eq!(PeerInfo::decode(text.as_bytes()).unwrap().workload, "web");
    }

    #[test]
    fn hostile_values_are_refused_or_cut() {
        assert_eq!(PeerInfo::decode(b"not base64!"), None);
        assert_eq!(PeerInfo::decode(&vec![b'A'; ENCODED_BYTES_MAX + 1]), None);
        let long = PeerInfo { workload: "é".repeat(1000), ..PeerInfo::default() };
        let read = PeerInfo::decode(long.encode().as_bytes()).unwrap();
        assert!(read.workload.len() <= FACT_BYTES_MAX);
    }

    #[test]
    fn endpoint_metadata_names_the_destination() {
        let peer = PeerInfo::from_endpoint("servicea-v1;default;servicea;v1;Kubernetes").unwrap();
        assert_eq!(PeerInfo { name: "servicea-v1-0".into(), ..peer }, servicea());
        assert_eq!(PeerInfo::from_endpoint(";"), None);
    }
}
