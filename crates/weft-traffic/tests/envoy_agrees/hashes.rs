//! Consistent hashing: a key goes to the same endpoint, by ring and by Maglev table, and to the same
//! other one when that is gone.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use weft_traffic::lb::{Balancer, PickInput};
use weft_traffic::{Action, Cluster, RouteResult, lower};

use crate::rig::{Answer, Ask, Client, Envoy, backend};

pub(crate) fn cluster(name: &str, policy: &str, backends: &[(SocketAddr, u32)]) -> Value {
    let endpoints: Vec<Value> = backends
        .iter()
        .map(|(address, weight)| {
            let socket = json!({"address": address.ip().to_string(), "port_value": address.port()});
            json!({
                "endpoint": {"address": {"socket_address": socket}},
                "load_balancing_weight": weight,
            })
        })
        .collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": policy,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

#[test]
fn keys_go_to_the_same_endpoint() {
    let Some(binary) = weft_testkit::peer::envoy("keys_go_to_the_same_endpoint") else { return };
    let even: Vec<_> = (0..5).map(|_| (backend(Answer::Address), 1)).collect();
    let uneven: Vec<_> = even.iter().enumerate().map(|(i, (a, _))| (*a, i as u32 + 1)).collect();
    // Where keys of these four went before and where those of the fifth go now are the same for
    // both, so the same keys move.
    let without_one = [&even[..2], &even[3..]].concat();
    let clusters = [
        cluster("ring", "RING_HASH", &even),
        cluster("ring-weighted", "RING_HASH", &uneven),
        cluster("maglev", "MAGLEV", &even),
        cluster("maglev-weighted", "MAGLEV", &uneven),
        // Asked with the client's address alone.
        cluster("ring-by-source", "RING_HASH", &even),
        cluster("maglev-by-source", "MAGLEV", &even),
        cluster("ring-without-one", "RING_HASH", &without_one),
        cluster("maglev-without-one", "MAGLEV", &without_one),
    ];
    let sources = json!([
        {"header": {"header_name": "x-user"}},
        {"query_parameter": {"name": "u"}},
        {"cookie": {"name": "session"}},
    ]);
    let routes: Vec<Value> = clusters
        .iter()
        .map(|cluster| {
            let name = cluster["name"].as_str().unwrap();
            let by_source = json!([{"connection_properties": {"source_ip": true}}]);
            let sources = if name.ends_with("by-source") { &by_source } else { &sources };
            json!({
                "match": {"path": format!("/{name}")},
                "route": {"cluster": name, "hash_policy": sources},
            })
        })
        .collect();
    let config = json!({
        "name": "test",
        "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": routes}],
    });
    let envoy = Envoy::start(&binary, &config, &clusters);
    let table = lower::route_config(&weft_xds::json::message_from_json(&config).unwrap()).unwrap();
    let mut client = Client::connect(envoy.address);
    let mut differences = Vec::new();
    for message in &clusters {
        let cluster = lower::cluster(&weft_xds::json::message_from_json(message).unwrap()).unwrap();
        let mut balancer = Balancer::new(&cluster, 1, Instant::now());
        for key in 0..1000 {
            let ask = ask(&cluster.name, key);
            let theirs = client.ask(&ask).body;
            let ours = ours(&table, &cluster, &mut balancer, &ask);
            if ours != theirs {
                differences
                    .push(format!("{} {ask:?}: ours {ours}, Envoy's {theirs}", cluster.name));
            }
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

/// Keys in one place or in several at once.
fn ask(cluster: &str, key: u32) -> Ask {
    let (user, session) = (format!("user-{key}"), format!("session={key}"));
    let path = format!("/{cluster}");
    match key % 4 {
        0 => Ask::new("a.com", &path, &[("x-user", &user)]),
        3 => Ask::new("a.com", &path, &[("x-user", &user), ("x-user", "also")]),
        1 => Ask::new("a.com", &format!("{path}?u={key}"), &[("cookie", &session)]),
        _ => Ask::new(
            "a.com",
            &format!("{path}?u={key}"),
            &[("x-user", &user), ("cookie", &session)],
        ),
    }
}

fn ours(
    table: &weft_traffic::RouteTable,
    cluster: &Cluster,
    balancer: &mut Balancer,
    ask: &Ask,
) -> String {
    let head = ask.head();
    let RouteResult::Found(found) = table.route(&head, 0) else { panic!("no route") };
    let Action::Forward(action) = &found.route.action else { panic!("not forwarding") };
    assert_eq!(found.cluster.unwrap().resolve(&head), Some(&*cluster.name));
    let (hash, _) = action.hash.hash(&head, [127, 0, 0, 1].into(), 0);
    let input = PickInput { hash, ..PickInput::plain(Instant::now()) };
    let mut no_randomness = || panic!("a hashed pick needs no randomness");
    balancer.pick(&input, &mut no_randomness).unwrap().endpoint.address.to_string()
}
