//! How long a change takes to reach many proxies. Not part of every run: it measures.
//! `cargo test --release -p weft-control --test push scale -- --ignored --nocapture`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use weft_xds::ResourceType::Endpoint;
use weft_xds::session::Mode;

use crate::client::{Behaviour, TestProxy, carries};
use crate::plane::{Plane, SERVICES, cluster, pod};

const SERVICES_MORE: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; needs a release build and a quiet machine"]
async fn an_endpoint_change_reaches_a_thousand_proxies() {
    let proxies = std::env::var("PROXIES").ok().and_then(|text| text.parse().ok());
    let count: usize = proxies.unwrap_or(1000);
    let mut more = String::new();
    for i in 0..SERVICES_MORE {
        let service = SERVICES.split("---").next().unwrap_or_default();
        let service = service.replace("name: a,", &format!("name: s{i},"));
        _ = write!(more, "{}---", service.replace("app: a", &format!("app: s{i}")));
        for index in 1..4 {
            _ = write!(more, "{}---", pod(&format!("s{i}"), index, true));
        }
    }
    let plane = Plane::with(&more, |_| {}).await;
    let begun = Instant::now();
    let mut proxies: Vec<TestProxy> = (0..count)
        .map(|i| {
            let name: &'static str = format!("p-{i}").leak();
            TestProxy::start(plane.target(), Behaviour::new(Mode::Delta, name))
        })
        .collect();
    for proxy in &mut proxies {
        proxy.until(carries(Endpoint, &cluster("b", ""))).await;
    }
    println!("{count} proxies connected and configured in {:?}", begun.elapsed());

    for round in 0..3 {
        plane.write("a.yaml", &pod("a", 1, round % 2 == 1));
        let written = Instant::now();
        let mut times: Vec<Duration> = Vec::new();
        for proxy in &mut proxies {
            proxy.until(carries(Endpoint, &cluster("a", ""))).await;
            times.push(written.elapsed());
        }
        let at = |share: usize| times[times.len() * share / 100 - 1];
        println!("endpoint change: half of them by {:?}, 99 % by {:?}", at(50), at(99));
    }
    plane.write(
        "rule.yaml",
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: default}
spec: {host: a, subsets: [{name: v1, labels: {app: a}}]}
",
    );
    let written = Instant::now();
    for proxy in &mut proxies {
        proxy.until(carries(Endpoint, &cluster("a", "v1"))).await;
    }
    println!("configuration change: all by {:?}", written.elapsed());
}
