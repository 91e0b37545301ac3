//! The configuration of Istio's metrics filter, `istio.stats`: which metrics a proxy keeps and what
//! their labels say. Not one of Envoy's messages; a stock Envoy does not have the filter.

use std::collections::BTreeMap;

use prost::Name;

use crate::pb::google::protobuf::Duration;

/// Name of the filter, of HTTP and of connections.
pub const FILTER: &str = "istio.stats";

/// `stats.PluginConfig`
#[derive(Clone, PartialEq, prost::Message)]
pub struct PluginConfig {
    /// What a request's host says is not to name an unknown destination.
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<Duration>,
    /// Applied in order.
    #[prost(message, repeated, tag = "8")]
    pub metrics: Vec<MetricConfig>,
    /// Metrics beyond the standard ones.
    #[prost(message, repeated, tag = "9")]
    pub definitions: Vec<MetricDefinition>,
    /// 0: told by the listener's direction.
    #[prost(int32, tag = "10")]
    pub reporter: i32,
}

/// `stats.MetricConfig`
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricConfig {
    /// CEL expressions by label.
    #[prost(btree_map = "string, string", tag = "1")]
    pub dimensions: BTreeMap<String, String>,
    /// Without `istio_`; empty: all metrics.
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub tags_to_remove: Vec<String>,
    /// Not acted on, in Istio neither.
    #[prost(string, tag = "4")]
    pub r#match: String,
    #[prost(bool, tag = "5")]
    pub drop: bool,
}

/// `stats.MetricDefinition`
#[derive(Clone, PartialEq, prost::Message)]
pub struct MetricDefinition {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(int32, tag = "3")]
    pub r#type: i32,
}

impl Name for PluginConfig {
    const NAME: &'static str = "PluginConfig";
    const PACKAGE: &'static str = "stats";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn its_json_is_that_of_istio() {
        let config = serde_json::json!({
            "metrics": [{
                "name": "requests_total",
                "dimensions": {"method": "request.method"},
                "tags_to_remove": ["source_version"],
                "drop": true,
            }],
            "tcp_reporting_duration": "5s",
        });
        let read: PluginConfig = json::message_from_json(&config).unwrap();
        assert_eq!(read.metrics[0].dimensions["method"], "request.method");
        assert!(read.metrics[0].drop);
        assert_eq!(json::message_to_json(&read).unwrap(), config);
    }
}
