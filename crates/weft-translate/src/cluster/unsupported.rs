//! DestinationRule fields that neither our proxy's nor Envoy's configuration gets from us yet.

use weft_model::spec::{
    ClientTlsSettings, DestinationRule, LoadBalancerSettings, SimpleLb, TrafficPolicy,
};
use weft_model::{Kind, Resource};

use crate::findings::Findings;
use crate::view::Flavor;

pub(crate) fn report(flavor: Flavor, rule: &Resource<DestinationRule>, findings: &mut Findings) {
    let mut fields = Vec::new();
    // Our own proxy reads no lists of revoked certificates.
    if flavor == Flavor::Weft {
        let policies =
            std::iter::once(("spec".to_owned(), &rule.spec.traffic_policy)).chain(
                rule.spec.subsets.iter().enumerate().map(|(index, subset)| {
                    (format!("spec.subsets[{index}]"), &subset.traffic_policy)
                }),
            );
        for (path, policy) in policies {
            if let Some(policy) = policy {
                revocation(policy, &format!("{path}.trafficPolicy"), &mut fields);
            }
        }
    }
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

fn revocation(policy: &TrafficPolicy, path: &str, fields: &mut Vec<String>) {
    let lists = |tls: &Option<ClientTlsSettings>| {
        tls.as_ref().is_some_and(|settings| !settings.ca_crl.is_empty())
    };
    if lists(&policy.tls) {
        fields.push(format!("{path}.tls.caCrl"));
    }
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        if lists(&port.tls) {
            fields.push(format!("{path}.portLevelSettings[{index}].tls.caCrl"));
        }
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
