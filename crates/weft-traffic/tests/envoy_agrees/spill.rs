//! Which share of requests each endpoint gets when some are down: spill-over between priorities and
//! localities, and panic, for random clusters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use weft_traffic::lb::{Balancer, PickInput};
use weft_traffic::lower;

use crate::rig::{Answer, Ask, Client, Envoy, backend, random};

const CLUSTERS: u64 = 10;
const BACKENDS: usize = 12;
/// Requests to Envoy for each cluster; five standard deviations of a share are 7.9 points.
const REQUESTS: usize = 1000;
const POINTS: f64 = 8.0;
/// Picks of ours, so that the chance is Envoy's alone.
const PICKS: usize = 50_000;
/// Where a request for which there is no endpoint is counted.
const NOBODY: &str = "none";

#[test]
fn shares_spill_over_alike() {
    let Some(binary) = weft_testkit::peer::envoy("shares_spill_over_alike") else { return };
    let backends: Vec<SocketAddr> = (0..BACKENDS).map(|_| backend(Answer::Address)).collect();
    let clusters: Vec<Value> = (0..CLUSTERS).map(|seed| cluster(seed, &backends)).collect();
    let routes: Vec<Value> = clusters
        .iter()
        .map(|cluster| {
            let name = &cluster["name"];
            json!({"match": {"path": format!("/{}", name.as_str().unwrap())}, "route": {"cluster": name}})
        })
        .collect();
    let config = json!({
        "name": "test",
        "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}],
    });
    let envoy = Envoy::start(&binary, &config, &clusters);
    let mut client = Client::connect(envoy.address);
    let mut differences = Vec::new();
    for message in &clusters {
        let (theirs, ours) = (theirs(&mut client, message), ours(message));
        let names = theirs.keys().chain(ours.keys());
        let share =
            |all: &BTreeMap<String, f64>, name: &String| all.get(name).copied().unwrap_or(0.0);
        let apart = names.filter(|name| (share(&theirs, name) - share(&ours, name)).abs() > POINTS);
        if apart.count() > 0 {
            differences.push(format!("{message}\nEnvoy {theirs:.1?}\nours  {ours:.1?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// One to three priorities of one to three localities, some endpoints down.
fn cluster(seed: u64, backends: &[SocketAddr]) -> Value {
    let mut dice = random(seed);
    let mut below = |end: u64| dice() % end;
    let mut backends = backends.iter();
    let mut localities = Vec::new();
    let weighted = below(2) == 0;
    for priority in 0..=below(3) {
        for zone in 0..=below(2 + u64::from(weighted)) {
            let endpoints: Vec<Value> = (0..=below(3))
                .filter_map(|_| {
                    let address = backends.next()?;
                    let socket =
                        json!({"address": address.ip().to_string(), "port_value": address.port()});
                    let health = if below(5) < 3 { "HEALTHY" } else { "UNHEALTHY" };
                    Some(json!({
                        "endpoint": {"address": {"socket_address": socket}},
                        "health_status": health,
                        "load_balancing_weight": 1 + below(2),
                    }))
                })
                .collect();
            let mut locality = json!({
                "priority": priority,
                "locality": {"zone": format!("z{zone}")},
                "lb_endpoints": endpoints,
            });
            if weighted {
                locality["load_balancing_weight"] = json!(10 + below(90));
            }
            localities.push(locality);
        }
    }
    let mut common = json!({"healthy_panic_threshold": {"value": 50 * below(2)}});
    if weighted {
        common["locality_weighted_lb_config"] = json!({});
    }
    let name = format!("c{seed}");
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": if below(2) == 0 { "RANDOM" } else { "ROUND_ROBIN" },
        "common_lb_config": common,
        "load_assignment": {"cluster_name": name, "endpoints": localities},
    })
}

/// Shares in percent.
fn theirs(client: &mut Client, cluster: &Value) -> BTreeMap<String, f64> {
    let path = format!("/{}", cluster["name"].as_str().unwrap());
    let mut shares = BTreeMap::new();
    for _ in 0..REQUESTS {
        let reply = client.ask(&Ask::new("a.com", &path, &[]));
        let who = if reply.status == 200 { reply.body } else { NOBODY.to_owned() };
        *shares.entry(who).or_default() += 100.0 / REQUESTS as f64;
    }
    shares
}

fn ours(cluster: &Value) -> BTreeMap<String, f64> {
    let cluster = lower::cluster(&weft_xds::json::message_from_json(cluster).unwrap()).unwrap();
    let now = Instant::now();
    let mut balancer = Balancer::new(&cluster, 7, now);
    let mut dice = random(99);
    let mut shares = BTreeMap::new();
    for _ in 0..PICKS {
        let picked = balancer.pick(&PickInput::plain(now), &mut dice);
        let who = picked.map_or(NOBODY.to_owned(), |picked| picked.endpoint.address.to_string());
        *shares.entry(who).or_default() += 100.0 / PICKS as f64;
    }
    shares
}
