//! Load assignments.

use std::sync::Arc;

use super::{Result, Within, error, list, refuse, value};
use crate::cluster::{Endpoint, EndpointAddress, EndpointSet, Health, IstioWorkload, Locality};
use crate::pb::envoy::config::endpoint::v3 as pb;

/// Whether host names may stand where an IP address is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Names {
    /// DNS clusters.
    Allow,
    /// EDS and static clusters.
    Refuse,
}

pub(super) fn lower(message: &pb::ClusterLoadAssignment, names: Names) -> Result<EndpointSet> {
    let pb::ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints: _, policy } =
        message;
    let policy = policy.clone().unwrap_or_default();
    let mut set = EndpointSet::default();
    if let Some(factor) = value::uint(&policy.overprovisioning_factor) {
        set.overprovisioning = factor.max(100);
    }
    set.drops = list("policy.drop_overloads", &policy.drop_overloads, |drop| {
        match &drop.drop_percentage {
            Some(fraction) => value::fraction(fraction).at("drop_percentage"),
            None => error("drop_percentage", "is required"),
        }
    })?;
    for (index, group) in endpoints.iter().enumerate() {
        add_group(&mut set, group, names).item("endpoints", index)?;
    }
    Ok(set)
}

/// Envoy's bound on priorities.
const PRIORITY_MAX: u32 = 128;

#[allow(deprecated)] // `load_balancer_endpoints` was never widely used, but costs nothing to read.
fn add_group(set: &mut EndpointSet, group: &pb::LocalityLbEndpoints, names: Names) -> Result<()> {
    let pb::LocalityLbEndpoints {
        locality,
        metadata: _,
        lb_endpoints,
        load_balancing_weight,
        priority,
        proximity: _,
        lb_config,
    } = group;
    use pb::locality_lb_endpoints::LbConfig;
    refuse(
        matches!(lb_config, Some(LbConfig::LedsClusterLocalityConfig(_))),
        "leds_cluster_locality_config",
    )?;
    if *priority > PRIORITY_MAX {
        return error("priority", format!("{priority} is above {PRIORITY_MAX}"));
    }
    let locality = locality.clone().unwrap_or_default();
    let shared = Arc::new(Locality {
        region: locality.region.into(),
        zone: locality.zone.into(),
        sub_zone: locality.sub_zone.into(),
        weight: value::uint(load_balancing_weight).unwrap_or(0),
    });
    let inline = match lb_config {
        Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        _ => lb_endpoints,
    };
    for (index, message) in inline.iter().enumerate() {
        let endpoint = endpoint(message, &shared, *priority, names).item("lb_endpoints", index)?;
        set.endpoints.push(Arc::new(endpoint));
    }
    Ok(())
}

fn endpoint(
    message: &pb::LbEndpoint,
    locality: &Arc<Locality>,
    priority: u32,
    names: Names,
) -> Result<Endpoint> {
    let pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier } =
        message;
    let endpoint = match host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(_)) => {
            return error("endpoint_name", "is not supported");
        }
        None => return error("endpoint", "is required"),
    };
    let pb::Endpoint {
        address,
        // Active health checks are not ours.
        health_check_config: _,
        hostname,
        // For dual-stack hosts; the first address is used.
        additional_addresses: _,
        observability_name: _,
    } = endpoint;
    let address = match value::address(address).at("endpoint.address")? {
        value::Address::Ip(address) => EndpointAddress::Ip(address),
        value::Address::Pipe(path) => EndpointAddress::Pipe(path),
        value::Address::Name { host, port } if names == Names::Allow => {
            EndpointAddress::Name { host, port }
        }
        value::Address::Name { host, .. } => {
            return error("endpoint.address", format!("{host:?} is not an IP address"));
        }
    };
    let istio = value::metadata(metadata, "istio");
    let labels = value::metadata(metadata, "envoy.transport_socket_match");
    Ok(Endpoint {
        address,
        hostname: Arc::from(&**hostname),
        health: match health_status {
            2 | 4 => Health::Unhealthy,
            3 => Health::Draining,
            5 => Health::Degraded,
            _ => Health::Healthy,
        },
        weight: value::uint(load_balancing_weight).unwrap_or(1).max(1),
        priority,
        locality: locality.clone(),
        transport_labels: labels.map(value::labels).unwrap_or_default(),
        workload: istio
            .and_then(|istio| value::text_field(istio, "workload"))
            .map(|text| Arc::new(IstioWorkload::parse(text))),
    })
}
