//! Endpoint pushes, configuration pushes, rejections, reconnects.

use std::collections::BTreeSet;

use weft_control::status::{Sync, table};
use weft_xds::ResourceType::{Cluster, Endpoint};
use weft_xds::session::{Mode, Wanted};

use crate::client::{Behaviour, Seen, TestProxy, carries, removes};
use crate::plane::{Plane, cluster, pod};

fn endpoints_of(names: &[&str]) -> Seen {
    let upserts = names.iter().map(|name| cluster(name, "")).collect();
    Seen::Update { ty: Endpoint, upserts, removes: Vec::new() }
}

async fn endpoint_changes_are_eds_to_their_users(mode: Mode) {
    let plane = Plane::start().await;
    let both = Behaviour::new(mode, "a-1");
    let only_b = Behaviour { uses: "|b.default", ..Behaviour::new(mode, "b-1") };
    let mut both = TestProxy::start(plane.target(), both);
    let mut only_b = TestProxy::start(plane.target(), only_b);
    both.until(carries(Endpoint, &cluster("b", ""))).await;
    only_b.until(carries(Endpoint, &cluster("b", ""))).await;
    // LDS comes after EDS, and its answer is the last of the first push.
    for ty in ["cds", "eds", "lds"] {
        plane.wait_for(ty, Sync::Synced).await;
    }

    plane.write("a.yaml", &pod("a", 1, false));
    assert_eq!(settled(&mut both).await, endpoints_of(&["a"]));
    plane.write("b.yaml", &pod("b", 1, false));
    assert_eq!(settled(&mut both).await, endpoints_of(&["b"]));
    // The change of a never reached it: this is the first it sees.
    assert_eq!(settled(&mut only_b).await, endpoints_of(&["b"]));

    let metrics = plane.page("/metrics").await;
    assert!(metrics.contains("pilot_push_triggers{type=\"endpoint\"} 2"), "{metrics}");
    assert!(metrics.contains("pilot_xds 2"), "{metrics}");
}

/// The next update that is not part of the first push (listeners).
async fn settled(proxy: &mut TestProxy) -> Seen {
    loop {
        match proxy.next().await {
            Seen::Update { ty: Cluster | Endpoint, upserts, removes } if !upserts.is_empty() => {
                return Seen::Update { ty: Endpoint, upserts, removes };
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn endpoint_changes_are_eds_to_their_users_delta() {
    endpoint_changes_are_eds_to_their_users(Mode::Delta).await;
}

#[tokio::test]
async fn endpoint_changes_are_eds_to_their_users_sotw() {
    endpoint_changes_are_eds_to_their_users(Mode::Sotw).await;
}

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: default}
spec:
  host: a
  subsets: [{name: v1, labels: {version: v1}}]
";

async fn only_what_changed_is_sent(mode: Mode) {
    let plane = Plane::start().await;
    let mut proxy = TestProxy::start(plane.target(), Behaviour::new(mode, "a-1"));
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;

    plane.write("rule.yaml", SUBSETS);
    let subset = cluster("a", "v1");
    let seen = proxy.until(carries(Endpoint, &subset)).await;
    let named = |name: &str| {
        let name = name.to_owned();
        seen.iter().any(|seen| match seen {
            Seen::Update { ty: Cluster, upserts, .. } => upserts.contains(&name),
            _ => false,
        })
    };
    assert!(named(&subset), "{seen:?}");
    assert!(!named(&cluster("b", "")), "an unchanged cluster was sent: {seen:?}");

    plane.remove("rule.yaml");
    proxy.until(removes(Cluster, &subset)).await;
    plane.wait_for("cds", Sync::Synced).await;
}

#[tokio::test]
async fn only_what_changed_is_sent_delta() {
    only_what_changed_is_sent(Mode::Delta).await;
}

#[tokio::test]
async fn only_what_changed_is_sent_sotw() {
    only_what_changed_is_sent(Mode::Sotw).await;
}

#[tokio::test]
async fn a_rejection_is_shown_and_others_go_on() {
    let plane = Plane::start().await;
    let behaviour = Behaviour { rejects: "|v1|", ..Behaviour::new(Mode::Delta, "a-1") };
    let mut proxy = TestProxy::start(plane.target(), behaviour);
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;

    plane.write("rule.yaml", SUBSETS);
    proxy.until(carries(Cluster, &cluster("a", "v1"))).await;
    let status = plane.wait_for("cds", Sync::Error).await;
    let error = status.types["cds"].error.as_deref();
    let expect = format!("{}: this cluster is not to my taste", cluster("a", "v1"));
    assert_eq!(error, Some(expect.as_str()));
    assert!(table(&[status]).contains("not to my taste"));

    // Endpoints still flow, and the rejected version is not tried again.
    plane.write("b.yaml", &pod("b", 1, false));
    let seen = proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    let again = seen.iter().any(carries(Cluster, &cluster("a", "v1")));
    assert!(!again, "{seen:?}");

    plane.write("rule.yaml", &SUBSETS.replace("name: v1,", "name: v2,"));
    proxy.until(carries(Endpoint, &cluster("a", "v2"))).await;
    plane.wait_for("cds", Sync::Synced).await;
    let metrics = plane.page("/metrics").await;
    assert!(metrics.contains("pilot_total_xds_rejects{type=\"cds\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_restarted_control_plane_resends_nothing() {
    let plane = Plane::start().await;
    let mut proxy = TestProxy::start(plane.target(), Behaviour::new(Mode::Delta, "a-1"));
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    plane.wait_for("lds", Sync::Synced).await;

    let plane = plane.restart().await;
    proxy.until(|seen| *seen == Seen::Connected).await;
    for ty in ["cds", "eds"] {
        plane.wait_for(ty, Sync::Synced).await;
    }
    plane.write("a.yaml", &pod("a", 1, false));
    let tells = |seen: &Seen| match seen {
        Seen::Update { upserts, removes, .. } => !upserts.is_empty() || !removes.is_empty(),
        Seen::Connected | Seen::Disconnected(_) => false,
    };
    let first = proxy.until(tells).await.pop();
    assert_eq!(first, Some(endpoints_of(&["a"])), "the first it hears is what changed");
}

#[tokio::test]
async fn sotw_follows_a_restarted_control_plane() {
    let plane = Plane::start().await;
    let mut proxy = TestProxy::start(plane.target(), Behaviour::new(Mode::Sotw, "a-1"));
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    let plane = plane.restart().await;
    proxy.until(|seen| *seen == Seen::Connected).await;
    plane.write("a.yaml", &pod("a", 1, false));
    let seen = proxy.until(carries(Endpoint, &cluster("a", ""))).await;
    let changed = |seen: &&Seen| match seen {
        Seen::Update { upserts, removes, .. } => !upserts.is_empty() || !removes.is_empty(),
        _ => false,
    };
    assert_eq!(seen.iter().filter(changed).count(), 1, "{seen:?}");
}

#[tokio::test]
async fn subscriptions_to_nothing_are_answered() {
    let plane = Plane::start().await;
    let behaviour = Behaviour { uses: "|b.default", ..Behaviour::new(Mode::Delta, "a-1") };
    let mut proxy = TestProxy::start(plane.target(), behaviour);
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    let names = BTreeSet::from([cluster("b", "").into(), cluster("nobody", "").into()]);
    proxy.subscribe(Endpoint, Wanted::Names(names)).await;
    proxy.until(removes(Endpoint, &cluster("nobody", ""))).await;
}

#[tokio::test]
async fn pages_show_the_mesh() {
    let plane = Plane::start().await;
    assert_eq!(plane.page("/ready").await, "ready\n");
    let mut proxy = TestProxy::start(plane.target(), Behaviour::new(Mode::Delta, "a-1"));
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    let registry = plane.page("/debug/registryz").await;
    assert!(registry.contains("a.default.svc.cluster.local"), "{registry}");
    let config = plane.page("/debug/configz").await;
    assert!(config.contains("\"services\":2"), "{config}");
    let dump = plane.page("/debug/config_dump?proxy=a-1.default").await;
    assert!(dump.contains(&cluster("a", "")), "{dump}");
    let status = plane.wait_for("eds", Sync::Synced).await;
    assert_eq!((status.proxy.as_str(), status.kind.as_str()), ("a-1.default", "sidecar"));
    assert_eq!((status.flavor.as_str(), status.protocol.as_str()), ("weft", "delta"));
    let metrics = plane.page("/metrics").await;
    for name in [
        "pilot_xds_pushes",
        "pilot_xds_push_time_bucket",
        "pilot_proxy_convergence_time_count",
        "pilot_proxy_queue_time_count",
        "pilot_push_triggers",
        "pilot_debounce_time_count",
        "pilot_pushcontext_init_seconds_count",
        "pilot_xds_config_size_bytes_sum",
        "pilot_total_xds_rejects",
        "pilot_total_rejected_configs",
        "pilot_services 2",
        "pilot_xds 1",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
}
