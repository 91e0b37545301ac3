//! networking.istio.io WorkloadGroup: what workloads outside Kubernetes that register themselves have
//! in common.

use serde::Deserialize;
use serde_json::Value;

use super::WorkloadEntry;
use crate::Labels;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadGroup {
    pub metadata: GroupMetadata,
    /// Without an address: that is each workload's own.
    pub template: WorkloadEntry,
    /// How each workload's proxy finds out whether it is well.
    pub probe: Option<GroupProbe>,
}

/// What each registered WorkloadEntry gets besides.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GroupMetadata {
    pub labels: Labels,
    pub annotations: Labels,
}

/// Kubernetes' probe, with port numbers only. Times in seconds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GroupProbe {
    pub initial_delay_seconds: i32,
    pub timeout_seconds: i32,
    pub period_seconds: i32,
    pub success_threshold: i32,
    pub failure_threshold: i32,
    /// For the workload's proxy to read.
    pub http_get: Option<Value>,
    pub tcp_socket: Option<Value>,
    pub exec: Option<Value>,
    pub grpc: Option<Value>,
}

impl WorkloadGroup {
    /// Whom its workloads run as.
    pub fn service_account(&self) -> &str {
        match &*self.template.service_account {
            "" => "default",
            account => account,
        }
    }
}
