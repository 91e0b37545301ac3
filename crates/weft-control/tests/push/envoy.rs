//! Stock Envoy on our streams: it accepts, warms, follows changes and drops what is gone.

use weft_control::status::Sync;
use weft_testkit::envoy::{Envoy, Join};
use weft_testkit::{peer, wait};

use crate::plane::{LIMIT, Plane, cluster, pod};

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: default}
spec:
  host: a
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: 7s}}}
  subsets: [{name: v1, labels: {app: a}}]
";

async fn follows(delta: bool) {
    let Some(binary) = peer::envoy("stock Envoy on our streams") else { return };
    let plane = Plane::start().await;
    let token = plane.token("a");
    let folder = tempfile::tempdir().expect("works in a test");
    let join = Join {
        kind: "sidecar",
        name: "a-1",
        namespace: "default",
        service_account: "a",
        ip: "127.0.0.1",
        labels: &[("app", "a")],
        interception: "NONE",
        xds: plane.handle.xds,
        token: Some(&token),
        delta,
    };
    let envoy = Envoy::start(&binary, folder.path(), &join);
    envoy.ready().await;
    for ty in ["cds", "eds", "lds"] {
        plane.wait_for(ty, Sync::Synced).await;
    }
    let (a, b, v1) = (cluster("a", ""), cluster("b", ""), cluster("a", "v1"));
    clusters(&envoy, |text| text.contains(&format!("{a}::10.0.97.1:8080"))).await;

    // Endpoints alone.
    plane.write("b2.yaml", &pod("b", 2, true));
    clusters(&envoy, |text| text.contains(&format!("{b}::10.0.98.2:8080"))).await;

    // A changed cluster with unchanged endpoints must not stay warming.
    plane.write("rule.yaml", RULE);
    wait::until("the changed cluster to be active", LIMIT, || async {
        let dump = envoy.admin("/config_dump?resource=dynamic_active_clusters").await;
        (dump.contains("\"7s\"") && dump.contains(&v1)).then_some(())
    })
    .await;
    clusters(&envoy, |text| text.contains(&format!("{v1}::10.0.97.1:8080"))).await;
    assert_eq!(envoy.stat("cluster_manager.warming_clusters").await, 0);

    // Removal.
    plane.remove("rule.yaml");
    clusters(&envoy, |text| !text.contains(&v1)).await;
    plane.wait_for("cds", Sync::Synced).await;

    // Another control plane in its place finds it as it was, and leads it on.
    let plane = plane.restart().await;
    for ty in ["cds", "eds", "lds"] {
        plane.wait_for(ty, Sync::Synced).await;
    }
    plane.write("a.yaml", &pod("a", 3, true));
    clusters(&envoy, |text| text.contains(&format!("{a}::10.0.97.3:8080"))).await;
    assert_eq!(envoy.stat("cluster_manager.warming_clusters").await, 0);
    assert_eq!(envoy.rejected().await, 0, "{}", plane.page("/debug/syncz").await);
}

async fn clusters(envoy: &Envoy, fits: impl Fn(&str) -> bool) {
    wait::until("Envoy's clusters", LIMIT, || async {
        fits(&envoy.admin("/clusters").await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn envoy_follows_delta() {
    follows(true).await;
}

#[tokio::test]
async fn envoy_follows_sotw() {
    follows(false).await;
}
