//! Lowering never panics, whatever the bytes: random ones, and good messages with bytes changed.

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::*;

const KINDS: [&str; 4] = [
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
];

fn samples() -> Vec<Any> {
    vec![
        pack(&sample_listener()),
        pack(&sample_routes()),
        pack(&sample_cluster()),
        pack(&sample_endpoints()),
    ]
}

/// What can be asked of a lowered resource without sockets must not panic either.
fn exercise(lowered: Lowered) {
    match lowered {
        Lowered::Listener(listener) => {
            let address = "10.0.0.1:80".parse().unwrap();
            let info = crate::ConnInfo {
                dst: address,
                src: address,
                direct_src: address,
                sni: Some("a.example.com"),
                alpn: &[b"h2"],
                tls: true,
            };
            listener.select_chain(&info);
        }
        Lowered::Route(table) => {
            for path in ["/", "/a/b?c=d", ""] {
                let head = crate::route::test_head("GET", "reviews:9080", path, &[("a", "b")]);
                let crate::RouteResult::Found(found) = table.route(&head, 7) else { continue };
                match &found.route.action {
                    crate::Action::Forward(action) => {
                        let rewrite = action.path_rewrite.as_ref();
                        rewrite.map(|r| r.apply(found.route, head.path_and_query()));
                    }
                    crate::Action::Redirect(redirect) => {
                        redirect.location(found.route, &head);
                    }
                    _ => {}
                }
            }
        }
        Lowered::Cluster(cluster) => balance(&cluster),
        Lowered::Endpoints(_, set) => {
            let cluster = super::cluster(&sample_cluster()).unwrap();
            balance(&cluster.with_endpoints(set));
        }
    }
}

fn balance(cluster: &crate::Cluster) {
    use crate::lb::{Balancer, PickInput};
    // A ring of millions of points is legal, but not for a fuzz run.
    if matches!(cluster.config.lb.policy, crate::lb::LbPolicy::RingHash { ring_min: 100_000.., .. })
    {
        return;
    }
    let now = std::time::Instant::now();
    let mut rng = crate::lb::test_rng(1);
    let mut balancer = Balancer::new(cluster, 1, now);
    for _ in 0..3 {
        let Some(picked) = balancer.pick(&PickInput::plain(now), &mut rng) else { return };
        cluster.transport(&picked.endpoint);
    }
}

fn mutate(bytes: &mut Vec<u8>, edits: &[(usize, u8, u8)]) {
    for &(at, value, how) in edits {
        let len = bytes.len().max(1);
        let at = at % len;
        match how % 4 {
            0 if at < bytes.len() => bytes[at] = value,
            1 => bytes.insert(at.min(bytes.len()), value),
            2 if at < bytes.len() => {
                bytes.remove(at);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(kind in 0usize..4, value in prop::collection::vec(any::<u8>(), 0..300)) {
        let message = Any { type_url: format!("type.googleapis.com/{}", KINDS[kind]), value };
        if let Ok(lowered) = super::super::any(&message) {
            exercise(lowered);
        }
    }

    #[test]
    fn mutated_messages_never_panic(
        kind in 0usize..4,
        edits in prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..12),
    ) {
        let mut message = samples().swap_remove(kind);
        mutate(&mut message.value, &edits);
        if let Ok(lowered) = super::super::any(&message) {
            exercise(lowered);
        }
    }
}
