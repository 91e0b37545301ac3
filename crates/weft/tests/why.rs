//! `weft why`: where a request goes and which resource decided it, from files.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.1.0.2, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1, namespace: shop, labels: {app: reviews, version: v1, security.istio.io/tlsMode: istio}}
spec: {containers: [{name: app}]}
status: {podIP: 10.2.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2, namespace: shop, labels: {app: reviews, version: v2}}
spec: {containers: [{name: app}]}
status: {podIP: 10.2.0.2, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {containers: [{name: app}]}
status: {podIP: 10.2.0.9, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews, reviews.example]
  gateways: [mesh, front]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - name: canary
    match: [{headers: {x-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
    timeout: 3s
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: reviews, subset: v3}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: versions, namespace: shop}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers: [{hosts: [reviews.example], port: {number: 80, name: http, protocol: HTTP}}]
";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("mesh.yaml"), MESH).expect("a file");
        Files(dir)
    }

    fn why(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("why").args(args).arg("-f").arg(Path::new(self.0.path()));
        command.output().expect("the program starts")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.why(&[args, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

const CLIENT: &[&str] = &["--from", "shop/client"];

#[test]
fn shares_endpoints_and_the_resources_that_decided() {
    let files = Files::new();
    let walk = files.json(&[&["GET", "http://reviews:9080/x"], CLIENT].concat());
    assert_eq!(walk["to"], "10.1.0.2:9080");
    assert_eq!(walk["http"]["rule"]["resource"], "VirtualService shop/reviews");
    assert_eq!(walk["http"]["rule"]["rule"], "http[3]");
    let written_in = walk["http"]["rule"]["written_in"].as_str().unwrap();
    let line = MESH.lines().position(|line| line == "kind: VirtualService").unwrap();
    assert!(written_in.ends_with(&format!("mesh.yaml:{line}")), "{written_in}, {line}");
    let [first, second] = walk["destinations"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!((&first["percent"], &second["percent"]), (&90.0.into(), &10.0.into()));
    assert_eq!(first["policy"]["resource"], "DestinationRule shop/versions");
    let endpoint = &first["endpoints"][0];
    assert_eq!(endpoint["address"], "10.2.0.1:9080");
    assert_eq!(endpoint["workload"], "shop/reviews-v1");
    assert_eq!((&endpoint["tls"], &second["endpoints"][0]["tls"]), (&true.into(), &false.into()));
}

#[test]
fn headers_choose_the_rule() {
    let files = Files::new();
    let asked = [&["GET", "http://reviews:9080/x", "-H", "X-User: jason"], CLIENT].concat();
    let walk = files.json(&asked);
    assert_eq!(walk["http"]["route"], "canary");
    assert_eq!(walk["http"]["actions"][0], "timeout 3s");
    assert_eq!(
        walk["destinations"][0]["cluster"],
        "outbound|9080|v2|reviews.shop.svc.cluster.local"
    );
    let output = files.why(&asked);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("by VirtualService shop/reviews spec.http[1] ("), "{text}");
    assert!(output.status.success());
}

#[test]
fn from_outside_through_the_gateway_that_knows_the_host() {
    let files = Files::new();
    let walk = files.json(&["GET", "http://reviews.example/x"]);
    assert_eq!(walk["from"], "outside");
    assert_eq!(walk["destinations"][0]["endpoints"][0]["address"], "10.2.0.1:9080");
    let redirected = files.json(&["GET", "http://reviews.example/old"]);
    assert_eq!(redirected["answer"], "301 to http://reviews.example/new");
    let unknown = files.why(&["GET", "http://elsewhere.example/"]);
    assert!(!unknown.status.success());
    let text = String::from_utf8(unknown.stdout).unwrap();
    assert!(text.contains("answer     404"), "{text}");
}

#[test]
fn gateway_api_routes_are_named() {
    let files = Files::new();
    let routes = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: web}, {group: '', kind: Service, name: reviews}]
  hostnames: [web.example]
  rules:
  - {matches: [{path: {value: /a}}], backendRefs: [{name: nosuch, port: 9080}]}
  - {backendRefs: [{name: reviews, port: 9080}]}
";
    std::fs::write(files.0.path().join("routes.yaml"), routes).expect("a file");
    for asked in [
        &["GET", "http://web.example/x"][..],
        &["GET", "http://reviews:9080/x", "--from", "shop/client"],
    ] {
        let walk = files.json(asked);
        assert_eq!(walk["http"]["rule"]["resource"], "HTTPRoute shop/web", "{walk:#}");
        assert_eq!(walk["http"]["rule"]["rule"], "rules[1]");
        assert!(walk["http"]["rule"]["written_in"].as_str().unwrap().ends_with("routes.yaml:7"));
        assert_eq!(walk["destinations"][0]["endpoints"][0]["address"], "10.2.0.1:9080");
    }
    let broken = files.json(&["GET", "http://web.example/a"]);
    assert_eq!(broken["answer"], "500", "{broken:#}");
}

#[test]
fn what_leads_nowhere_says_why() {
    let files = Files::new();
    let gone = files.why(&[&["GET", "http://reviews:9080/gone"], CLIENT].concat());
    assert_eq!(gone.status.code(), Some(1));
    let text = String::from_utf8(gone.stdout).unwrap();
    assert!(text.contains("problem    503: no such cluster"), "{text}");
    let nobody = files.why(&["GET", "http://reviews/", "--from", "shop/nobody"]);
    let error = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        error.contains("no Pod or WorkloadEntry shop/nobody; there are: shop/client"),
        "{error}"
    );
    let wrong = files.why(&["GET", "ftp://reviews/"]);
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("http or https"));
}
