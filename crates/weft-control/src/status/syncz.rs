//! What each proxy was sent and has acknowledged: the JSON of `/debug/syncz`, and the table
//! `weft proxy-status` prints from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use weft_translate::{Flavor, ProxyKind};
use weft_xds::ResourceType;
use weft_xds::session::{Mode, TypeStatus};

use crate::push::Proxy;

/// One connected proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// `NAME.NAMESPACE`
    pub proxy: String,
    /// `sidecar`, `gateway`, `grpc`
    pub kind: String,
    /// `weft`, `envoy`, `grpc`
    pub flavor: String,
    /// `delta`, `sotw`
    pub protocol: String,
    pub node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub connected_seconds: u64,
    /// By short type name: `cds`, `eds`, `lds`, `rds`, `sds`.
    pub types: BTreeMap<String, TypeSync>,
}

/// The state of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeSync {
    pub status: Sync,
    /// Resources the proxy should have.
    pub resources: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sent_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sent_nonce: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub acked_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub acked_nonce: String,
    /// Why the proxy rejected the last response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a proxy has what it should have, in Istio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sync {
    /// It acknowledged everything it was sent.
    #[serde(rename = "SYNCED")]
    Synced,
    /// It has not answered yet.
    #[serde(rename = "STALE")]
    Stale,
    /// It did not ask, or there is nothing to send.
    #[serde(rename = "NOT SENT")]
    NotSent,
    /// It rejected the last response.
    #[serde(rename = "ERROR")]
    Error,
}

impl Sync {
    /// As the table writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::NotSent => "NOT SENT",
            Self::Error => "ERROR",
        }
    }
}

impl ProxyStatus {
    pub(super) fn of(proxy: &Proxy) -> Self {
        let view = &proxy.view;
        let types = match proxy.status() {
            Some(types) => ResourceType::PUSH_ORDER
                .into_iter()
                .zip(types)
                .map(|(ty, status)| (ty.short().to_owned(), TypeSync::of(status)))
                .collect(),
            None => BTreeMap::new(),
        };
        let connected = SystemTime::now().duration_since(proxy.connected).unwrap_or_default();
        Self {
            proxy: format!("{}.{}", view.name, view.namespace),
            kind: match view.kind {
                ProxyKind::Sidecar => "sidecar",
                ProxyKind::Gateway => "gateway",
                ProxyKind::Grpc => "grpc",
            }
            .to_owned(),
            flavor: match view.flavor {
                Flavor::Weft => "weft",
                Flavor::Envoy => "envoy",
                Flavor::Grpc => "grpc",
            }
            .to_owned(),
            protocol: match proxy.mode {
                Mode::Sotw => "sotw",
                Mode::Delta => "delta",
            }
            .to_owned(),
            node: proxy.node.id(),
            identity: proxy.identity.as_ref().map(ToString::to_string),
            address: proxy.address.map(|address| address.to_string()),
            connected_seconds: connected.as_secs(),
            types,
        }
    }
}

impl TypeSync {
    fn of(status: TypeStatus) -> Self {
        let TypeStatus { asked, resources, sent, acked, nacked, outstanding, version: _ } = status;
        let sync = match (&nacked, &sent) {
            (Some(_), _) => Sync::Error,
            (None, _) if outstanding > 0 => Sync::Stale,
            (None, Some(_)) => Sync::Synced,
            // It came back with everything it should have.
            (None, None) if asked && resources > 0 => Sync::Synced,
            (None, None) => Sync::NotSent,
        };
        let text = |stamp: &std::sync::Arc<str>| stamp.to_string();
        Self {
            status: sync,
            resources,
            sent_version: sent.as_ref().map(|s| text(&s.version)).unwrap_or_default(),
            sent_nonce: sent.as_ref().map(|s| text(&s.nonce)).unwrap_or_default(),
            acked_version: acked.as_ref().map(|s| text(&s.version)).unwrap_or_default(),
            acked_nonce: acked.as_ref().map(|s| text(&s.nonce)).unwrap_or_default(),
            error: nacked.map(|nack| nack.message),
        }
    }
}

/// The table for people; rejections are listed below it.
pub fn table(proxies: &[ProxyStatus]) -> String {
    let header = ["PROXY", "KIND", "CDS", "EDS", "LDS", "RDS", "SDS", "FLAVOR", "PROTOCOL"];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    let mut errors = String::new();
    for proxy in proxies {
        let mut row = vec![proxy.proxy.clone(), proxy.kind.clone()];
        for ty in ["cds", "eds", "lds", "rds", "sds"] {
            let sync = proxy.types.get(ty);
            row.push(sync.map_or("NOT SENT", |sync| sync.status.text()).to_owned());
            if let Some(error) = sync.and_then(|sync| sync.error.as_ref()) {
                _ = writeln!(errors, "{} {ty}: {error}", proxy.proxy);
            }
        }
        row.extend([proxy.flavor.clone(), proxy.protocol.clone()]);
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            _ = write!(line, "{cell:width$}   ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    if !errors.is_empty() {
        out.push_str("\nRejected:\n");
        out.push_str(&errors);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_states_and_reasons() {
        let sync = |status, error: Option<&str>| TypeSync {
            status,
            resources: 1,
            sent_version: "v".into(),
            sent_nonce: "1".into(),
            acked_version: String::new(),
            acked_nonce: String::new(),
            error: error.map(str::to_owned),
        };
        let proxy = ProxyStatus {
            proxy: "servicea-v1.default".into(),
            kind: "sidecar".into(),
            flavor: "weft".into(),
            protocol: "delta".into(),
            node: "n".into(),
            identity: None,
            address: None,
            connected_seconds: 3,
            types: BTreeMap::from([
                ("cds".to_owned(), sync(Sync::Synced, None)),
                ("lds".to_owned(), sync(Sync::Error, Some("no such filter"))),
            ]),
        };
        let json = serde_json::to_string(&proxy).unwrap();
        assert!(json.contains("\"SYNCED\""), "{json}");
        assert_eq!(serde_json::from_str::<ProxyStatus>(&json).unwrap(), proxy);
        let text = table(&[proxy]);
        let expect = "\
PROXY                 KIND      CDS      EDS        LDS     RDS        SDS        FLAVOR   PROTOCOL
servicea-v1.default   sidecar   SYNCED   NOT SENT   ERROR   NOT SENT   NOT SENT   weft     delta

Rejected:
servicea-v1.default lds: no such filter
";
        assert_eq!(text, expect);
    }
}
