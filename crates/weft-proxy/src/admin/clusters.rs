//! `/clusters`: every cluster with its endpoints and their counters, summed over workers.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_traffic::cluster::Health;
use weft_traffic::{Cluster, Endpoint};

use crate::runtime::Shared;
use crate::upstream::endpoints::{COUNTER_NAMES, EndpointKey};

type Totals = HashMap<EndpointKey, [u64; 8]>;

/// Envoy's line format.
pub fn text(shared: &Shared) -> String {
    let totals = totals(shared);
    let mut out = String::new();
    for cluster in clusters(shared) {
        let name = &cluster.name;
        let limits = &cluster.config.limits;
        for (priority, limits) in ["default_priority", "high_priority"].iter().zip(limits) {
            out.push_str(&format!(
                "{name}::{priority}::max_connections::{}\n",
                limits.connections_max
            ));
            out.push_str(&format!(
                "{name}::{priority}::max_pending_requests::{}\n",
                limits.pending_max
            ));
            out.push_str(&format!("{name}::{priority}::max_requests::{}\n", limits.requests_max));
            out.push_str(&format!("{name}::{priority}::max_retries::{}\n", limits.retries_max));
        }
        for endpoint in &cluster.endpoints.endpoints {
            let at = format!("{name}::{}", endpoint.address);
            for (counter, value) in COUNTER_NAMES.iter().zip(counters(&totals, &cluster, endpoint))
            {
                out.push_str(&format!("{at}::{counter}::{value}\n"));
            }
            out.push_str(&format!("{at}::hostname::{}\n", endpoint.hostname));
            out.push_str(&format!("{at}::health_flags::{}\n", health(endpoint.health).0));
            out.push_str(&format!("{at}::weight::{}\n", endpoint.weight));
            let locality = &endpoint.locality;
            out.push_str(&format!("{at}::region::{}\n", locality.region));
            out.push_str(&format!("{at}::zone::{}\n", locality.zone));
            out.push_str(&format!("{at}::sub_zone::{}\n", locality.sub_zone));
            out.push_str(&format!("{at}::priority::{}\n", endpoint.priority));
        }
    }
    out
}

/// Envoy's `cluster_statuses`.
pub fn json(shared: &Shared) -> Value {
    let totals = totals(shared);
    let statuses: Vec<Value> = clusters(shared)
        .iter()
        .map(|cluster| {
            let hosts: Vec<Value> = cluster
                .endpoints
                .endpoints
                .iter()
                .map(|endpoint| host(&totals, cluster, endpoint))
                .collect();
            json!({ "name": &*cluster.name, "added_via_api": true, "host_statuses": hosts })
        })
        .collect();
    json!({ "cluster_statuses": statuses })
}

fn host(totals: &Totals, cluster: &Cluster, endpoint: &Endpoint) -> Value {
    let stats: Vec<Value> = COUNTER_NAMES
        .iter()
        .zip(counters(totals, cluster, endpoint))
        .map(|(name, value)| match name.ends_with("_active") {
            true => json!({ "name": name, "value": value.to_string(), "type": "GAUGE" }),
            false => json!({ "name": name, "value": value.to_string() }),
        })
        .collect();
    let address = match endpoint.socket_addr() {
        Some(address) => json!({
            "socket_address": { "address": address.ip().to_string(), "port_value": address.port() }
        }),
        None => json!({ "pipe": { "path": endpoint.address.to_string() } }),
    };
    json!({
        "address": address,
        "stats": stats,
        "health_status": { "eds_health_status": health(endpoint.health).1 },
        "weight": endpoint.weight,
        "hostname": &*endpoint.hostname,
        "locality": {
            "region": &*endpoint.locality.region,
            "zone": &*endpoint.locality.zone,
            "sub_zone": &*endpoint.locality.sub_zone,
        },
        "priority": endpoint.priority,
    })
}

/// Envoy's health flag and EDS health status.
fn health(health: Health) -> (&'static str, &'static str) {
    match health {
        Health::Healthy => ("healthy", "HEALTHY"),
        Health::Degraded => ("/eds_degraded", "DEGRADED"),
        Health::Unhealthy => ("/failed_eds_health", "UNHEALTHY"),
        Health::Draining => ("/eds_draining", "DRAINING"),
    }
}

fn counters(totals: &Totals, cluster: &Cluster, endpoint: &Endpoint) -> [u64; 8] {
    let key = (cluster.name.clone(), endpoint.address.clone());
    totals.get(&key).copied().unwrap_or_default()
}

fn totals(shared: &Shared) -> Totals {
    let mut totals = Totals::new();
    for table in &shared.endpoint_tables {
        table.add_to(&mut totals);
    }
    totals
}

fn clusters(shared: &Shared) -> Vec<Arc<Cluster>> {
    let config = shared.config();
    let mut clusters: Vec<Arc<Cluster>> = config.tables().clusters().cloned().collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    clusters
}
