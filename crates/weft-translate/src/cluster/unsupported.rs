//! DestinationRule fields that neither our proxy's nor Envoy's configuration gets from us yet.

use weft_model::spec::{DestinationRule, LoadBalancerSettings, SimpleLb, TrafficPolicy};
use weft_model::{Kind, Resource};

use crate::findings::Findings;

pub(crate) fn report(rule: &Resource<DestinationRule>, findings: &mut Findings) {
    let mut fields = Vec::new();
    if let Some(policy) = &rule.spec.traffic_policy {
        of_policy(policy, "spec.trafficPolicy", &mut fields);
    }
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            of_policy(policy, &format!("spec.subsets[{index}].trafficPolicy"), &mut fields);
        }
    }
    for field in fields {
        findings.not_implemented(Kind::DestinationRule, &rule.meta, &field);
    }
}

fn of_policy(policy: &TrafficPolicy, path: &str, fields: &mut Vec<String>) {
    let TrafficPolicy {
        load_balancer,
        connection_pool: _,
        outlier_detection: _,
        tls: _,
        port_level_settings,
        tunnel,
        proxy_protocol: _,
        retry_budget: _,
    } = policy;
    let balancers = std::iter::once((path.to_owned(), load_balancer)).chain(
        port_level_settings.iter().enumerate().map(|(index, port)| {
            (format!("{path}.portLevelSettings[{index}]"), &port.load_balancer)
        }),
    );
    for (path, balancer) in balancers {
        if let Some(balancer) = balancer {
            of_balancer(balancer, &path, fields);
        }
    }
    if tunnel.is_some() {
        fields.push(format!("{path}.tunnel"));
    }
}

/// Only round robin and least request warm hosts up, in Istio and in Envoy.
fn of_balancer(balancer: &LoadBalancerSettings, path: &str, fields: &mut Vec<String>) {
    let warms = balancer.consistent_hash.is_none()
        && !matches!(balancer.simple, Some(SimpleLb::Random | SimpleLb::Passthrough));
    for (field, set) in [
        ("warmup", balancer.warmup.is_some()),
        ("warmupDurationSecs", balancer.warmup_duration_secs.is_some()),
    ] {
        if set && !warms {
            fields.push(format!("{path}.loadBalancer.{field}"));
        }
    }
}
