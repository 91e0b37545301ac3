//! Which traffic policy applies to one port of one subset.
//!
//! Istio's order: a subset's settings replace the rule's field by field; a setting for the port
//! then replaces them all, and what it leaves out becomes the default, not the rule's value.

use weft_model::spec::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings,
    OutlierDetection, ProxyProtocol, RetryBudget, Subset, TrafficPolicy, TunnelSettings,
};

/// The settings that apply; `None` is Istio's default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policy<'a> {
    pub(crate) load_balancer: Option<&'a LoadBalancerSettings>,
    pub(crate) connection_pool: Option<&'a ConnectionPoolSettings>,
    pub(crate) outlier_detection: Option<&'a OutlierDetection>,
    pub(crate) tls: Option<&'a ClientTlsSettings>,
    pub(crate) proxy_protocol: Option<&'a ProxyProtocol>,
    pub(crate) retry_budget: Option<&'a RetryBudget>,
}

pub(crate) fn policy<'a>(
    rule: Option<&'a DestinationRule>,
    subset: Option<&'a Subset>,
    port: u16,
) -> Policy<'a> {
    let of_rule = rule.and_then(|rule| rule.traffic_policy.as_ref());
    let of_subset = subset.and_then(|subset| subset.traffic_policy.as_ref());
    let port_level = of_subset
        .and_then(|policy| for_port(policy, port))
        .or_else(|| of_rule.and_then(|policy| for_port(policy, port)));
    if let Some(port_level) = port_level {
        return port_level;
    }
    let wide = of_rule.map(whole).unwrap_or_default();
    let narrow = of_subset.map(whole).unwrap_or_default();
    Policy {
        load_balancer: narrow.load_balancer.or(wide.load_balancer),
        connection_pool: narrow.connection_pool.or(wide.connection_pool),
        outlier_detection: narrow.outlier_detection.or(wide.outlier_detection),
        tls: narrow.tls.or(wide.tls),
        proxy_protocol: narrow.proxy_protocol.or(wide.proxy_protocol),
        retry_budget: narrow.retry_budget.or(wide.retry_budget),
    }
}

/// The proxy that connections go through: the subset's, else the rule's. Ports have none of their own.
pub(crate) fn tunnel<'a>(
    rule: Option<&'a DestinationRule>,
    subset_name: &str,
) -> Option<&'a TunnelSettings> {
    let of = |policy: Option<&'a TrafficPolicy>| policy.and_then(|policy| policy.tunnel.as_ref());
    let narrow = subset(rule, subset_name).and_then(|subset| of(subset.traffic_policy.as_ref()));
    narrow.or_else(|| of(rule?.traffic_policy.as_ref()))
}

/// The subset of this name, if the rule has it.
pub(crate) fn subset<'a>(rule: Option<&'a DestinationRule>, name: &str) -> Option<&'a Subset> {
    rule?.subsets.iter().find(|subset| subset.name == name)
}

fn whole(policy: &TrafficPolicy) -> Policy<'_> {
    Policy {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
        proxy_protocol: policy.proxy_protocol.as_ref(),
        retry_budget: policy.retry_budget.as_ref(),
    }
}

fn for_port(policy: &TrafficPolicy, port: u16) -> Option<Policy<'_>> {
    let selected = policy.port_level_settings.iter().find(|settings| {
        settings.port.is_some_and(|selector| selector.number == u32::from(port))
    })?;
    Some(Policy {
        load_balancer: selected.load_balancer.as_ref(),
        connection_pool: selected.connection_pool.as_ref(),
        outlier_detection: selected.outlier_detection.as_ref(),
        tls: selected.tls.as_ref(),
        // These two have no settings for a port; a policy for one leaves them as they are.
        proxy_protocol: policy.proxy_protocol.as_ref(),
        retry_budget: policy.retry_budget.as_ref(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::spec::{PortSelector, PortTrafficPolicy, SimpleLb};

    fn lb(simple: SimpleLb) -> LoadBalancerSettings {
        LoadBalancerSettings { simple: Some(simple), ..Default::default() }
    }

    fn rule() -> DestinationRule {
        let port_level = PortTrafficPolicy {
            port: Some(PortSelector { number: 9090 }),
            load_balancer: Some(lb(SimpleLb::Random)),
            ..Default::default()
        };
        DestinationRule {
            traffic_policy: Some(TrafficPolicy {
                load_balancer: Some(lb(SimpleLb::RoundRobin)),
                connection_pool: Some(Default::default()),
                port_level_settings: vec![port_level],
                ..Default::default()
            }),
            subsets: vec![Subset {
                name: "v2".to_owned(),
                traffic_policy: Some(TrafficPolicy {
                    load_balancer: Some(lb(SimpleLb::LeastRequest)),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn subset_replaces_field_by_field() {
        let rule = rule();
        let found = policy(Some(&rule), subset(Some(&rule), "v2"), 80);
        assert_eq!(found.load_balancer.and_then(|lb| lb.simple), Some(SimpleLb::LeastRequest));
        assert!(found.connection_pool.is_some());
    }

    #[test]
    fn port_level_replaces_everything() {
        let rule = rule();
        let found = policy(Some(&rule), subset(Some(&rule), "v2"), 9090);
        assert_eq!(found.load_balancer.and_then(|lb| lb.simple), Some(SimpleLb::Random));
        assert!(found.connection_pool.is_none());
    }
}
