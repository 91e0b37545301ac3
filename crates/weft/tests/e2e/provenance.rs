//! What a proxy says of a request (`x-weft-why`) is what `weft why` says beforehand, for random rule
//! sets: listener, host, rule, cluster, endpoint, and the resources in their generation.
//! `WEFT_PROVENANCE_SETS` says how many sets of 50 requests; 20 is the full size.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use weft_testkit::{backend, client, wait};

use crate::harness::{self, Flavor, Mesh, Place, WEFT};

const PORT: u16 = 10080;
const REQUESTS: usize = 50;
const SETTLE: Duration = Duration::from_secs(20);
const SERVICES: [&str; 2] = ["apples", "pears"];
const PATHS: [&str; 4] = ["/", "/a", "/a/b", "/c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_says_of_a_request_what_the_files_say() {
    let sets = std::env::var("WEFT_PROVENANCE_SETS").ok().and_then(|text| text.parse().ok());
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let ip = harness::address();
    let addresses: Vec<IpAddr> = (0..4).map(|_| harness::address()).collect();
    let mut backends = Vec::new();
    for address in &addresses {
        backends.push(backend::http(&address.to_string(), &format!("{address}:8080")).await);
    }
    let mesh = Mesh::start(&world(ip, &addresses)).await;
    mesh.write("rules.yaml", &rules(&mut rng, 0));
    let labels = [("app", "edge")];
    let place = Place {
        kind: "router",
        name: "edge-1",
        namespace: "edge",
        service_account: "edge",
        ip,
        labels: &labels,
    };
    let _gateway = mesh.proxy_with(&place, &["--why=everywhere"]).await;
    for set in 1..=sets.unwrap_or(3) {
        mesh.write("rules.yaml", &rules(&mut rng, set));
        let here = Here { mesh: &mesh, gateway: SocketAddr::new(ip, PORT), seed };
        here.until_set_is_in_force(set).await;
        for number in 0..REQUESTS {
            here.compare(&mut rng, number == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_ask_is_not_told() {
    let ip = harness::address();
    let address = harness::address();
    let _backend = backend::http("only", &format!("{address}:8080")).await;
    let mesh = Mesh::start(&world(ip, &[address; 4])).await;
    mesh.write("rules.yaml", &rules(&mut SmallRng::seed_from_u64(1), 1));
    let labels = [("app", "edge")];
    let place = Place {
        kind: "router",
        name: "edge-1",
        namespace: "edge",
        service_account: "edge",
        ip,
        labels: &labels,
    };
    let _gateway = mesh.proxy(Flavor::Weft, &place).await;
    let asked = [("host", "probe.example"), ("x-weft-why", "1")];
    let reply = wait::until("the probe", SETTLE, || async move {
        let reply = client::get(SocketAddr::new(ip, PORT), "/", &asked).await.ok()?;
        (reply.status == 299).then_some(reply)
    })
    .await;
    assert_eq!(reply.header("x-weft-why"), "");
}

struct Here<'m> {
    mesh: &'m Mesh,
    gateway: SocketAddr,
    seed: u64,
}

impl Here<'_> {
    /// The routes of a port are one resource: where the probe is new, so are the others.
    async fn until_set_is_in_force(&self, set: usize) {
        let body = format!("set {set}");
        let (gateway, body) = (self.gateway, &body);
        wait::until(body, SETTLE, || async move {
            let reply = client::get(gateway, "/", &[("host", "probe.example")]).await.ok()?;
            (reply.text() == *body).then_some(())
        })
        .await;
    }

    async fn compare(&self, rng: &mut SmallRng, from_files: bool) {
        let host = format!("h{}.example", rng.random_range(0..4));
        let path = PATHS[rng.random_range(0..PATHS.len())];
        let user = rng.random_range(0..3).to_string();
        let headers = [("host", &*host), ("x-user", &*user), ("x-weft-why", "1")];
        let reply = client::get(self.gateway, path, &headers).await.expect("answered");
        let said = pairs(reply.header("x-weft-why"));
        let url = format!("http://{host}:{PORT}{path}");
        let walk = self.why(&url, &user, None);
        let context = format!("seed {} {url} x-user {user}\n{said:?}\n{walk:#}", self.seed);
        if from_files {
            let files = self.why(&url, &user, Some("edge/edge-1"));
            for part in ["http", "destinations", "answer"] {
                assert_eq!(files[part], walk[part], "files say otherwise\n{context}");
            }
            assert_eq!(walk["live"]["proxy"]["proxy"], "edge-1.edge", "{context}");
        }
        let said = |key: &str| said.get(key).map(String::as_str);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        assert_eq!(said("listener").map(str::to_owned), text(&walk["listener"]), "{context}");
        let http = &walk["http"];
        let rule = text(&http["rule"]["resource"])
            .map(|resource| format!("{resource} {}", http["rule"]["rule"].as_str().unwrap_or("")));
        assert_eq!(said("rule").map(str::to_owned), rule, "{context}");
        let generation = said("rule-generation").map(str::to_owned);
        assert_eq!(generation, text(&http["rule"]["generation"]), "{context}");
        let Some(cluster) = said("cluster") else {
            // Answered by the gateway itself.
            let answer = walk["answer"].as_str().unwrap_or_else(|| panic!("{context}"));
            assert!(answer.starts_with(&reply.status.to_string()), "{}\n{context}", reply.status);
            return;
        };
        let destinations = walk["destinations"].as_array().expect("a list");
        let to = destinations.iter().find(|to| to["cluster"] == cluster);
        let to = to.unwrap_or_else(|| panic!("{context}"));
        assert!(to["percent"].as_f64() > Some(0.0), "{context}");
        assert_eq!(said("policy").map(str::to_owned), text(&to["policy"]["resource"]), "{context}");
        let generation = said("policy-generation").map(str::to_owned);
        assert_eq!(generation, text(&to["policy"]["generation"]), "{context}");
        match said("endpoint") {
            Some(endpoint) => {
                let candidates = to["endpoints"].as_array().expect("a list");
                assert!(candidates.iter().any(|one| one["address"] == endpoint), "{context}");
                let backend = endpoint.split(':').next().unwrap_or_default();
                assert_eq!(reply.header("x-backend"), backend, "{context}");
            }
            None => assert_eq!((reply.status, to["problem"].is_null()), (503, false), "{context}"),
        }
    }

    /// Of the running mesh, or of its files.
    fn why(&self, url: &str, user: &str, files: Option<&str>) -> Value {
        let mut command = Command::new(WEFT);
        command.args(["why", "GET", url, "-H", &format!("x-user: {user}"), "-o", "json"]);
        match files {
            Some(_) => command.arg("-f").arg(self.mesh.folder.path().join("config")),
            None => command.arg(format!("--api=http://{}", self.mesh.http)),
        };
        let output = command.output().expect("weft starts");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// `key="value", …` of a line without quotes inside values.
fn pairs(line: &str) -> BTreeMap<String, String> {
    let pair = |one: &str| {
        let (key, value) = one.split_once('=').unwrap_or_else(|| panic!("{line}"));
        (key.to_owned(), value.trim_matches('"').to_owned())
    };
    line.split(", ").map(pair).collect()
}

/// Two services of two versions each, and a gateway for all hosts.
fn world(ip: IpAddr, addresses: &[IpAddr]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: edge-1, namespace: edge, labels: {{app: edge}}}}\n\
         spec: {{serviceAccountName: edge, containers: [{{name: proxy}}]}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: front, namespace: edge}}\n\
         spec: {{selector: {{app: edge}}, servers: [{{hosts: ['*'], port: {{number: {PORT}, name: http, protocol: HTTP}}}}]}}\n"
    );
    for (number, address) in addresses.iter().enumerate() {
        let (service, version) = (SERVICES[number / 2], number % 2 + 1);
        yaml += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {service}-v{version}, namespace: shop, \
             labels: {{app: {service}, version: v{version}}}}}\n\
             spec: {{containers: [{{name: app}}]}}\n\
             status: {{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
        );
    }
    for service in SERVICES {
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: shop}}\n\
             spec: {{selector: {{app: {service}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
        );
    }
    yaml
}

/// A VirtualService for each of three hosts (the fourth has none), a DestinationRule for each
/// service, and the probe.
fn rules(rng: &mut SmallRng, set: usize) -> String {
    let mut yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: probe, namespace: edge}}\n\
         spec: {{hosts: [probe.example], gateways: [front], http: [{{directResponse: {{status: 299, body: {{string: 'set {set}'}}}}}}]}}\n"
    );
    for host in 0..3 {
        let count = rng.random_range(1..5);
        let http: Vec<String> = (0..count).map(|_| rule(rng)).collect();
        yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: h{host}, namespace: edge}}\n\
             spec: {{hosts: [h{host}.example], gateways: [front], http: [{}]}}\n",
            http.join(", ")
        );
    }
    for service in SERVICES {
        let policy = ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"][rng.random_range(0..3)];
        yaml += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: {service}, namespace: shop}}\n\
             spec: {{host: {service}, trafficPolicy: {{loadBalancer: {{simple: {policy}}}}}, subsets: \
             [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}, \
             {{name: v3, labels: {{version: v3}}}}]}}\n"
        );
    }
    yaml
}

fn rule(rng: &mut SmallRng) -> String {
    let path = PATHS[rng.random_range(0..PATHS.len())];
    let user = rng.random_range(0..3);
    let conditions = match rng.random_range(0..5) {
        0 => String::new(),
        1 => format!("match: [{{uri: {{prefix: {path}}}}}], "),
        2 => format!("match: [{{uri: {{exact: {path}}}}}], "),
        3 => format!("match: [{{headers: {{x-user: {{exact: '{user}'}}}}}}], "),
        _ => format!(
            "match: [{{uri: {{prefix: {path}}}, withoutHeaders: {{x-user: {{exact: '{user}'}}}}}}, \
             {{uri: {{exact: /c}}}}], "
        ),
    };
    let mut destination = || {
        let service = SERVICES[rng.random_range(0..SERVICES.len())];
        // The last is a version without endpoints.
        match rng.random_range(0..8) {
            0..3 => format!("destination: {{host: {service}.shop.svc.cluster.local}}"),
            version => {
                let version = ["v1", "v2", "v1", "v2", "v3"][version - 3];
                format!(
                    "destination: {{host: {service}.shop.svc.cluster.local, subset: {version}}}"
                )
            }
        }
    };
    let (first, second) = (destination(), destination());
    let action = match rng.random_range(0..6) {
        0 => "redirect: {uri: /moved}".to_owned(),
        1 => "directResponse: {status: 418}".to_owned(),
        2 => format!("rewrite: {{uri: /new}}, timeout: 5s, route: [{{{first}}}]"),
        3 => format!("route: [{{{first}, weight: 60}}, {{{second}, weight: 40}}]"),
        _ => format!("route: [{{{first}}}]"),
    };
    format!("{{{conditions}{action}}}")
}
