//! What Telemetry resources make of Istio's metrics, as the configuration of Istio's own filter
//! (`istio.stats`). Without any there is no filter: proxies count the standard metrics unasked.
//!
//! The resources that apply (mesh, namespace, workload) are gone through in that order; of what they
//! say of one label of one metric the last counts.

use std::collections::BTreeMap;

use prost::Name as _;
use weft_model::spec::{METRICS_PRESET, MetricOverride, TagOperation, Telemetry, TelemetryMetrics};
use weft_model::{Kind, Resource};
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_xds::stats::{FILTER, MetricConfig, PluginConfig};

use crate::build::filter;
use crate::build::hcm::{Side, http_filter};
use crate::findings::{Findings, NOT_IMPLEMENTED};
use crate::listener::Built;
use crate::scope::Scope;
use crate::telemetry::is_for;
use crate::view::Flavor;

/// Istio's metrics by the names of the API and of the filter.
const METRICS: [(&str, &str); 10] = [
    ("REQUEST_COUNT", "requests_total"),
    ("REQUEST_DURATION", "request_duration_milliseconds"),
    ("REQUEST_SIZE", "request_bytes"),
    ("RESPONSE_SIZE", "response_bytes"),
    ("TCP_OPENED_CONNECTIONS", "tcp_connections_opened_total"),
    ("TCP_CLOSED_CONNECTIONS", "tcp_connections_closed_total"),
    ("TCP_SENT_BYTES", "tcp_sent_bytes_total"),
    ("TCP_RECEIVED_BYTES", "tcp_received_bytes_total"),
    ("GRPC_REQUEST_MESSAGES", "request_messages_total"),
    ("GRPC_RESPONSE_MESSAGES", "response_messages_total"),
];

/// What a board of services, workloads and their success rates and latencies does without.
const LEAN_LABELS: [&str; 8] = [
    "source_principal",
    "destination_principal",
    "source_version",
    "destination_version",
    "source_canonical_revision",
    "destination_canonical_revision",
    "source_cluster",
    "destination_cluster",
];
/// What distinguishes outcomes; latencies are looked at without.
const OUTCOME_LABELS: [&str; 3] = ["response_code", "response_flags", "grpc_response_status"];
const MINIMAL_LABELS: [&str; 6] = [
    "source_app",
    "destination_app",
    "source_canonical_service",
    "destination_canonical_service",
    "connection_security_policy",
    "response_flags",
];

/// What is said of one metric: labels by name, `None` where one is removed.
#[derive(Clone, Default, PartialEq)]
struct Metric<'a> {
    disabled: bool,
    labels: BTreeMap<&'a str, Option<&'a str>>,
}

type Metrics<'a> = [Metric<'a>; METRICS.len()];

/// The filter of HTTP connection managers on one side; None: the standard metrics.
pub(crate) fn of_http(scope: &Scope<'_>, side: Side) -> Option<hcm::HttpFilter> {
    Some(http_filter(FILTER, crate::build::any(&config(scope, side)?)))
}

/// Adds the filter to chains that end with a TCP proxy.
pub(crate) fn apply(scope: &Scope<'_>, side: Side, built: &mut Built, findings: &mut Findings) {
    if scope.view.flavor == Flavor::Envoy {
        tell(scope, findings);
    }
    let Some(config) = config(scope, side) else { return };
    let stats = filter(FILTER, &config);
    for listener in &mut built.listeners {
        for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
            if chain.filters.last().is_some_and(is_tcp_proxy) {
                chain.filters.insert(chain.filters.len() - 1, stats.clone());
            }
        }
    }
}

fn is_tcp_proxy(filter: &listener::Filter) -> bool {
    filter.name == "envoy.filters.network.tcp_proxy"
}

/// A stock Envoy has no Istio metrics to change.
fn tell(scope: &Scope<'_>, findings: &mut Findings) {
    for resource in resources(scope) {
        for index in 0..resource.spec.metrics.len() {
            let path = format!("spec.metrics[{index}]");
            let message = "a stock Envoy does not have Istio's metrics; here it has no effect";
            findings.add(Kind::Telemetry, &resource.meta, NOT_IMPLEMENTED, &path, message);
        }
    }
}

fn resources<'a>(scope: &Scope<'a>) -> Vec<&'a std::sync::Arc<Resource<Telemetry>>> {
    scope.snapshot.telemetries_for(&scope.view.namespace, &scope.view.labels)
}

fn config(scope: &Scope<'_>, side: Side) -> Option<PluginConfig> {
    debug_assert_eq!(PluginConfig::full_name(), "stats.PluginConfig");
    if scope.view.flavor != Flavor::Weft {
        return None;
    }
    let mut metrics = Metrics::default();
    for resource in resources(scope) {
        let preset = resource.meta.annotations.get(METRICS_PRESET).map(|name| &**name);
        preset.into_iter().for_each(|name| start_with(name, side, &mut metrics));
        for rule in resource.spec.metrics.iter().filter(|rule| is_counted(scope, rule)) {
            for one in &rule.overrides {
                take(one, side, &mut metrics);
            }
        }
    }
    let said = |metric: &Metric<'_>| metric.disabled || !metric.labels.is_empty();
    if !metrics.iter().any(said) {
        return None;
    }
    let configs = match metrics.iter().all(|metric| *metric == metrics[0]) {
        true => vec![to_config("", &metrics[0])],
        false => {
            let named = METRICS.iter().zip(&metrics).filter(|(_, metric)| said(metric));
            named.map(|((_, name), metric)| to_config(name, metric)).collect()
        }
    };
    Some(PluginConfig { metrics: configs, ..PluginConfig::default() })
}

/// Rules are for Prometheus where they name no other provider.
fn is_counted(scope: &Scope<'_>, rule: &TelemetryMetrics) -> bool {
    let is_prometheus = |name: &str| {
        scope.snapshot.provider(name).is_some_and(|provider| provider.prometheus.is_some())
    };
    rule.providers.is_empty() || rule.providers.iter().any(|one| is_prometheus(&one.name))
}

fn take<'a>(one: &'a MetricOverride, side: Side, metrics: &mut Metrics<'a>) {
    let selector = one.matches.as_ref();
    if !is_for(selector.map(|selector| selector.mode).unwrap_or_default(), side) {
        return;
    }
    if selector.is_some_and(|selector| !selector.custom_metric.is_empty()) {
        return;
    }
    let wanted = selector.and_then(|selector| selector.metric.as_deref());
    for ((name, _), metric) in METRICS.iter().zip(metrics) {
        if wanted.is_some_and(|wanted| wanted != "ALL_METRICS" && wanted != *name) {
            continue;
        }
        metric.disabled = one.disabled.unwrap_or(metric.disabled);
        for (label, tag) in &one.tag_overrides {
            let value = match tag.operation {
                TagOperation::Upsert => Some(tag.value.as_str()),
                TagOperation::Remove => None,
            };
            metric.labels.insert(label, value);
        }
    }
}

/// A preset takes the place of everything that wider scopes say.
fn start_with(preset: &str, side: Side, metrics: &mut Metrics<'_>) {
    *metrics = Metrics::default();
    let minimal = preset == "minimal";
    if preset != "lean" && !minimal {
        return;
    }
    for ((name, _), metric) in METRICS.iter().zip(metrics) {
        metric.disabled = match *name {
            "REQUEST_SIZE" | "RESPONSE_SIZE" => true,
            // The called side tells the same call's latency.
            "REQUEST_DURATION" => minimal && side == Side::Outbound,
            "REQUEST_COUNT" | "TCP_SENT_BYTES" | "TCP_RECEIVED_BYTES" => false,
            _ => minimal,
        };
        let mut remove = |labels: &[&'static str]| {
            metric.labels.extend(labels.iter().map(|label| (*label, None)));
        };
        remove(&LEAN_LABELS);
        if *name == "REQUEST_DURATION" {
            remove(&OUTCOME_LABELS);
        }
        if minimal {
            remove(&MINIMAL_LABELS);
        }
    }
}

fn to_config(name: &str, metric: &Metric<'_>) -> MetricConfig {
    let mut config =
        MetricConfig { name: name.to_owned(), drop: metric.disabled, ..MetricConfig::default() };
    if metric.disabled {
        return config;
    }
    for (label, value) in &metric.labels {
        match value {
            Some(expression) => {
                config.dimensions.insert((*label).to_owned(), (*expression).to_owned());
            }
            None => config.tags_to_remove.push((*label).to_owned()),
        }
    }
    config
}
