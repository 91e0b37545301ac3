//! Who a proxy says it is: Istio's node id and metadata.
//!
//! Owns building and parsing of `envoy.config.core.v3.Node`. Must not trust it:
//! identity comes from a verified token or certificate, these are only claims.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::pb::envoy::config::core::v3::{Locality, Node, node::UserAgentVersionType};
use crate::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};

/// Longest id, metadata string or label we keep, in bytes.
const TEXT_MAX: usize = 1024;
/// Istio's annotation with settings of one workload's proxy.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Most labels or addresses we keep.
const ITEMS_MAX: usize = 256;

/// What kind of proxy a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKind {
    /// `sidecar~…`
    Sidecar,
    /// `router~…`: a gateway.
    Router,
}

/// A node's identity fields, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// First part of the id.
    pub kind: NodeKind,
    /// Second part of the id; also the first of `INSTANCE_IPS`.
    pub ip: Option<IpAddr>,
    /// Workload instance (Pod or WorkloadEntry) name: third part of the id before its last dot.
    pub name: String,
    /// Namespace, from metadata `NAMESPACE`, else from the id.
    pub namespace: String,
    /// Fourth part of the id, such as `default.svc.cluster.local`.
    pub dns_domain: String,
    /// Node cluster, by habit the app's name; Envoy's `--service-cluster`.
    pub service_cluster: String,
    /// Metadata `SERVICE_ACCOUNT`.
    pub service_account: String,
    /// Metadata `WORKLOAD_NAME`: the owner (Deployment) name.
    pub workload_name: String,
    /// Metadata `CLUSTER_ID`.
    pub cluster_id: String,
    /// Metadata `LABELS`.
    pub labels: BTreeMap<String, String>,
    /// Metadata `INSTANCE_IPS`.
    pub instance_ips: Vec<IpAddr>,
    /// Metadata `INTERCEPTION_MODE`: `REDIRECT`, `TPROXY`, `NONE` or empty.
    pub interception_mode: String,
    /// Metadata `GENERATOR`: `grpc` for proxyless clients, else empty.
    pub generator: String,
    /// Metadata `WEFT_VERSION`: set by our own proxy only.
    pub weft_version: Option<String>,
    /// Locality as `region/zone/subzone`, empty if none.
    pub locality: String,
    /// All metadata that is text, by key.
    pub metadata: BTreeMap<String, String>,
    /// Metadata `PROXY_CONFIG` as given.
    pub proxy_config: Option<Struct>,
}

/// Why a node was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// The id has not four parts.
    #[error("node id `{0}` is not of the form sidecar|router~IP~NAME.NAMESPACE~DOMAIN")]
    Id(String),
    /// The first part of the id is not one we serve.
    #[error("node type `{0}` is not served (sidecar and router are)")]
    Kind(String),
    /// A text is longer than we keep.
    #[error("node {0} is longer than {TEXT_MAX} bytes")]
    TooLong(&'static str),
}

impl NodeView {
    /// A sidecar with only its id fields set.
    pub fn new(kind: NodeKind, ip: Option<IpAddr>, name: &str, namespace: &str) -> Self {
        Self {
            kind,
            ip,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            dns_domain: format!("{namespace}.svc.cluster.local"),
            service_cluster: format!("{name}.{namespace}"),
            service_account: String::new(),
            workload_name: String::new(),
            cluster_id: String::new(),
            labels: BTreeMap::new(),
            instance_ips: ip.into_iter().collect(),
            interception_mode: String::new(),
            generator: String::new(),
            weft_version: None,
            locality: String::new(),
            metadata: BTreeMap::new(),
            proxy_config: None,
        }
    }

    /// The node id: `sidecar~IP~NAME.NS~DOMAIN`.
    pub fn id(&self) -> String {
        let kind = match self.kind {
            NodeKind::Sidecar => "sidecar",
            NodeKind::Router => "router",
        };
        let ip = self.ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
        format!("{kind}~{ip}~{}.{}~{}", self.name, self.namespace, self.dns_domain)
    }

    /// Parses what a client sent on its first request.
    ///
    /// # Errors
    /// An id of another shape, a node type we do not serve, or too long a text.
    pub fn parse(node: &Node) -> Result<Self, NodeError> {
        if node.id.len() > TEXT_MAX {
            return Err(NodeError::TooLong("id"));
        }
        if node.cluster.len() > TEXT_MAX {
            return Err(NodeError::TooLong("cluster"));
        }
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, ip, name, domain] = parts[..] else {
            return Err(NodeError::Id(node.id.clone()));
        };
        let kind = match kind {
            "sidecar" => NodeKind::Sidecar,
            "router" => NodeKind::Router,
            other => return Err(NodeError::Kind(other.to_owned())),
        };
        let meta = Meta(node.metadata.as_ref());
        // Pod names may hold dots, namespaces may not.
        let (name, id_namespace) = name.rsplit_once('.').unwrap_or((name, ""));
        let namespace = match meta.text("NAMESPACE")? {
            text if text.is_empty() => id_namespace.to_owned(),
            text => text,
        };
        let weft_version = meta.text("WEFT_VERSION")?;
        let ip = ip.parse().ok();
        let mut instance_ips: Vec<IpAddr> = meta
            .text("INSTANCE_IPS")?
            .split(',')
            .take(ITEMS_MAX)
            .filter_map(|ip| ip.trim().parse().ok())
            .collect();
        if instance_ips.is_empty() {
            instance_ips.extend(ip);
        }
        Ok(Self {
            kind,
            ip,
            name: name.to_owned(),
            namespace,
            dns_domain: domain.to_owned(),
            service_cluster: node.cluster.clone(),
            service_account: meta.text("SERVICE_ACCOUNT")?,
            workload_name: meta.text("WORKLOAD_NAME")?,
            cluster_id: meta.text("CLUSTER_ID")?,
            labels: meta.map("LABELS"),
            instance_ips,
            interception_mode: meta.text("INTERCEPTION_MODE")?,
            generator: meta.text("GENERATOR")?,
            weft_version: (!weft_version.is_empty()).then_some(weft_version),
            locality: node.locality.as_ref().map(locality_text).unwrap_or_default(),
            metadata: meta.texts(),
            proxy_config: match meta.get("PROXY_CONFIG") {
                Some(Kind::StructValue(config)) => Some(config.clone()),
                _ => None,
            },
        })
    }

    /// The node a client of ours sends.
    pub fn to_node(&self) -> Node {
        let mut fields = HashMap::new();
        let texts = [
            ("NAME", &self.name),
            ("NAMESPACE", &self.namespace),
            ("SERVICE_ACCOUNT", &self.service_account),
            ("WORKLOAD_NAME", &self.workload_name),
            ("CLUSTER_ID", &self.cluster_id),
            ("INTERCEPTION_MODE", &self.interception_mode),
            ("GENERATOR", &self.generator),
        ];
        for (key, value) in texts {
            if !value.is_empty() {
                fields.insert(key.to_owned(), text_value(value));
            }
        }
        for (key, value) in &self.metadata {
            fields.entry(key.clone()).or_insert_with(|| text_value(value));
        }
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(k, v)| (k.clone(), text_value(v))).collect();
            let labels = Kind::StructValue(Struct { fields: labels });
            fields.insert("LABELS".to_owned(), Value { kind: Some(labels) });
        }
        if !self.instance_ips.is_empty() {
            let ips: Vec<String> = self.instance_ips.iter().map(IpAddr::to_string).collect();
            fields.insert("INSTANCE_IPS".to_owned(), text_value(&ips.join(",")));
        }
        if let Some(version) = &self.weft_version {
            fields.insert("WEFT_VERSION".to_owned(), text_value(version));
        }
        if let Some(config) = &self.proxy_config {
            let config = Kind::StructValue(config.clone());
            fields.insert("PROXY_CONFIG".to_owned(), Value { kind: Some(config) });
        }
        Node {
            id: self.id(),
            cluster: self.service_cluster.clone(),
            metadata: Some(Struct { fields }),
            locality: (!self.locality.is_empty()).then(|| parse_locality(&self.locality)),
            user_agent_name: if self.weft_version.is_some() {
                "weft".into()
            } else {
                String::new()
            },
            user_agent_version_type: self
                .weft_version
                .clone()
                .map(UserAgentVersionType::UserAgentVersion),
            ..Node::default()
        }
    }
}

/// Reads of a metadata struct with our limits.
struct Meta<'a>(Option<&'a Struct>);

impl<'a> Meta<'a> {
    fn get(&self, key: &str) -> Option<&'a Kind> {
        self.0?.fields.get(key)?.kind.as_ref()
    }

    fn text(&self, key: &'static str) -> Result<String, NodeError> {
        match self.get(key) {
            Some(Kind::StringValue(text)) if text.len() > TEXT_MAX => Err(NodeError::TooLong(key)),
            Some(Kind::StringValue(text)) => Ok(text.clone()),
            // Some agents send lists for INSTANCE_IPS.
            Some(Kind::ListValue(list)) => Ok(list_text(list)),
            _ => Ok(String::new()),
        }
    }

    fn texts(&self) -> BTreeMap<String, String> {
        let text = |(key, value): (&String, &Value)| match &value.kind {
            Some(Kind::StringValue(text)) if text.len() <= TEXT_MAX => {
                Some((key.clone(), text.clone()))
            }
            _ => None,
        };
        let fields = self.0.map(|meta| &meta.fields);
        let mut texts: BTreeMap<String, String> =
            fields.into_iter().flatten().filter_map(text).take(ITEMS_MAX).collect();
        // The one annotation that configures the proxy itself.
        if let Some(config) = self.map("ANNOTATIONS").remove(PROXY_CONFIG) {
            texts.insert(PROXY_CONFIG.to_owned(), config);
        }
        texts
    }

    fn map(&self, key: &str) -> BTreeMap<String, String> {
        let Some(Kind::StructValue(map)) = self.get(key) else { return BTreeMap::new() };
        let text = |value: &Value| match &value.kind {
            Some(Kind::StringValue(text)) if text.len() <= TEXT_MAX => Some(text.clone()),
            _ => None,
        };
        map.fields
            .iter()
            .take(ITEMS_MAX)
            .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
            .collect()
    }
}

fn list_text(list: &ListValue) -> String {
    let mut out = String::new();
    for value in list.values.iter().take(ITEMS_MAX) {
        if let Some(Kind::StringValue(text)) = &value.kind {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(text);
        }
    }
    out
}

fn text_value(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn locality_text(locality: &Locality) -> String {
    let Locality { region, zone, sub_zone } = locality;
    match (zone.is_empty(), sub_zone.is_empty()) {
        (true, _) => region.clone(),
        (false, true) => format!("{region}/{zone}"),
        (false, false) => format!("{region}/{zone}/{sub_zone}"),
    }
}

fn parse_locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_round_trips() {
        let mut view =
            NodeView::new(NodeKind::Sidecar, "10.0.0.7".parse().ok(), "servicea-v1-abc", "shop");
        view.service_account = "servicea".into();
        view.workload_name = "servicea-v1".into();
        view.cluster_id = "Kubernetes".into();
        view.interception_mode = "NONE".into();
        view.weft_version = Some("0.1.0".into());
        view.locality = "cn-east/a".into();
        view.labels.insert("app".into(), "servicea".into());
        view.instance_ips.push("fd00::7".parse().unwrap());
        let node = view.to_node();
        assert_eq!(node.id, "sidecar~10.0.0.7~servicea-v1-abc.shop~shop.svc.cluster.local");
        let mut parsed = NodeView::parse(&node).unwrap();
        assert_eq!(parsed.metadata["NAMESPACE"], "shop");
        parsed.metadata.clear();
        assert_eq!(parsed, view);
    }

    #[test]
    fn bad_nodes_are_refused() {
        let parse = |id: &str| NodeView::parse(&Node { id: id.into(), ..Node::default() });
        assert!(matches!(parse(""), Err(NodeError::Id(_))));
        assert!(matches!(parse("sidecar~1~2"), Err(NodeError::Id(_))));
        assert!(matches!(parse("waypoint~1~a.b~c"), Err(NodeError::Kind(_))));
        assert!(matches!(parse(&"x".repeat(2000)), Err(NodeError::TooLong(_))));
        let view = parse("router~nonsense~ingress.istio-system~x").unwrap();
        assert_eq!((view.kind, view.ip), (NodeKind::Router, None));
        assert_eq!((view.name.as_str(), view.namespace.as_str()), ("ingress", "istio-system"));
    }
}
