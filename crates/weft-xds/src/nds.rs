//! Istio's name tables, `istio.networking.nds.v1`: which addresses the hosts of the mesh have, for
//! proxies that answer their workload's DNS.
//!
//! Owns the two messages. Must not know which hosts belong into a table, nor DNS.

use std::collections::BTreeMap;

/// What a table is called where resources have names; Istio gives it none.
pub const NAME: &str = "nametable";
/// Registry of hosts that have short names, too.
pub const KUBERNETES: &str = "Kubernetes";
/// Registry of ServiceEntries.
pub const EXTERNAL: &str = "External";

/// `istio.networking.nds.v1.NameTable`
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameTable {
    /// By host, in lower case and without the last dot; `*.` in front is a wildcard.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// `istio.networking.nds.v1.NameTable.NameInfo`
#[derive(Clone, PartialEq, prost::Message)]
pub struct NameInfo {
    /// Addresses of both IP versions.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// [`KUBERNETES`] or [`EXTERNAL`].
    #[prost(string, tag = "2")]
    pub registry: String,
    /// Of a Kubernetes host: what comes before the namespace.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Of a Kubernetes host.
    #[prost(string, tag = "4")]
    pub namespace: String,
}

impl prost::Name for NameTable {
    const NAME: &'static str = "NameTable";
    const PACKAGE: &'static str = "istio.networking.nds.v1";

    fn type_url() -> String {
        crate::type_url::NAME_TABLE.to_owned()
    }
}
