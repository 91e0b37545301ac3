//! Name tables: to whom asks for them, again when addresses change, and not when they do not.

use weft_xds::ResourceType::{Endpoint, NameTable};
use weft_xds::nds::{self, NameTable as Table};
use weft_xds::session::{Mode, Wanted};

use crate::client::{Behaviour, TestProxy, carries};
use crate::plane::{Plane, cluster, pod};

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: h, namespace: default}
spec:
  clusterIP: None
  selector: {app: a}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

async fn addresses(proxy: &mut TestProxy) -> Vec<String> {
    let table: Table = proxy.resource(nds::NAME).await.decode().expect("a name table");
    table.table["h.default.svc.cluster.local"].ips.clone()
}

async fn names_follow_the_pods_of_headless_services(mode: Mode) {
    let plane = Plane::with(HEADLESS, |_| {}).await;
    let mut proxy = TestProxy::start(plane.target(), Behaviour::new(mode, "a-1"));
    proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    proxy.subscribe(NameTable, Wanted::All).await;
    assert_eq!(addresses(&mut proxy).await, ["10.0.97.1"]);

    // Endpoints of others are no news for names.
    plane.write("b.yaml", &pod("b", 1, false));
    plane.write("second.yaml", &pod("a", 2, true));
    assert_eq!(addresses(&mut proxy).await, ["10.0.97.1", "10.0.97.2"]);
}

#[tokio::test]
async fn names_follow_the_pods_of_headless_services_delta() {
    names_follow_the_pods_of_headless_services(Mode::Delta).await;
}

#[tokio::test]
async fn names_follow_the_pods_of_headless_services_sotw() {
    names_follow_the_pods_of_headless_services(Mode::Sotw).await;
}
