//! DestinationRule fields that the reader of this configuration does not act on.

use weft_model::spec::{
    ClientTlsSettings, DestinationRule, LoadBalancerSettings, SimpleLb, TrafficPolicy,
};
use weft_model::{Kind, MeshService, Resource};

use super::tls::names_credential;
use crate::findings::{Findings, NOT_IMPLEMENTED};
use crate::view::{ProxyKind, ProxyView};

const NOT_FOR_SIDECARS: &str = "sidecars get credentials from rules with a workloadSelector only; \
                                their connections go out in plain text";

const NOT_FOR_HTTP: &str =
    "only bytes and TLS are tunnelled, and every port of the host speaks HTTP";

pub(crate) fn report(
    view: &ProxyView,
    service: &MeshService,
    rule: &Resource<DestinationRule>,
    findings: &mut Findings,
) {
    let policies = std::iter::once(("spec".to_owned(), &rule.spec.traffic_policy)).chain(
        rule.spec
            .subsets
            .iter()
            .enumerate()
            .map(|(index, subset)| (format!("spec.subsets[{index}]"), &subset.traffic_policy)),
    );
    let unreachable = view.kind == ProxyKind::Sidecar && rule.spec.workload_selector.is_none();
    let mut fields = Vec::new();
    for (path, policy) in policies {
        let Some(policy) = policy else { continue };
        let path = format!("{path}.trafficPolicy");
        of_policy(policy, &path, &mut fields);
        let only_http = service.ports.iter().all(|port| port.protocol.is_http());
        if policy.tunnel.is_some() && only_http {
            let (kind, path) = (Kind::DestinationRule, format!("{path}.tunnel"));
            findings.add(kind, &rule.meta, NOT_IMPLEMENTED, &path, NOT_FOR_HTTP);
        }
        for (path, settings) in client_tls(policy, &path) {
            if unreachable && names_credential(settings) {
                let (kind, path) = (Kind::DestinationRule, format!("{path}.credentialName"));
                findings.add(kind, &rule.meta, NOT_IMPLEMENTED, &path, NOT_FOR_SIDECARS);
            }
        }
    }
    for field in fields {
        findings.not_implemented(Kind::DestinationRule, &rule.meta, &field);
    }
}

/// TLS settings of a policy and of its ports.
fn client_tls<'a>(policy: &'a TrafficPolicy, path: &str) -> Vec<(String, &'a ClientTlsSettings)> {
    let own = policy.tls.iter().map(|tls| (format!("{path}.tls"), tls));
    let ports = policy.port_level_settings.iter().enumerate().filter_map(|(index, port)| {
        port.tls.as_ref().map(|tls| (format!("{path}.portLevelSettings[{index}].tls"), tls))
    });
    own.chain(ports).collect()
}

fn of_policy(policy: &TrafficPolicy, path: &str, fields: &mut Vec<String>) {
    let TrafficPolicy {
        load_balancer,
        connection_pool: _,
        outlier_detection: _,
        tls: _,
        port_level_settings,
        tunnel: _,
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
