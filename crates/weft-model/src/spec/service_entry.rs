//! networking.istio.io ServiceEntry and WorkloadEntry.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Labels;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntry {
    pub hosts: Vec<String>,
    /// Addresses or CIDR prefixes.
    pub addresses: Vec<String>,
    pub ports: Vec<ServiceEntryPort>,
    pub location: Location,
    pub resolution: ServiceEntryResolution,
    pub endpoints: Vec<WorkloadEntry>,
    pub workload_selector: Option<WorkloadSelector>,
    pub export_to: Vec<String>,
    pub subject_alt_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceEntryPort {
    pub number: u32,
    pub protocol: String,
    pub name: String,
    pub target_port: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryResolution {
    #[default]
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

/// Istio's WorkloadSelector in its `labels` form.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WorkloadSelector {
    pub labels: Labels,
}

/// A workload outside Kubernetes, or one inline endpoint of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// IP address, DNS name (in a DNS ServiceEntry), or `unix:///path`.
    pub address: String,
    /// Port name to port number.
    pub ports: BTreeMap<String, u32>,
    pub labels: Labels,
    pub network: String,
    /// `region/zone/subzone`.
    pub locality: String,
    pub weight: Option<u32>,
    pub service_account: String,
    /// From `status`: the condition `Healthy`, if somebody looks after it.
    #[serde(skip)]
    pub healthy: Option<bool>,
}
