//! The Gateway API end to end: the same resources on stock Envoy and on our proxy, the same
//! requests at a gateway and at a client, the same answers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Method;
use serde_json::Value;
use weft_testkit::{
    backend,
    client::{self, Wire},
    peer, wait,
};

use crate::harness::{self, Flavor, Mesh, Place, Proxy};

const SETTLE: Duration = Duration::from_secs(20);
/// The pod port behind the gateway's port 80.
const GATEWAY_PORT: u16 = 10080;
const CLIENT_PORT: u16 = 15080;
const APP_PORT: u16 = 8080;

/// Where it is asked (`edge` or `mesh`), method, URL, headers `=>` status, backend, and what the
/// backend saw (`path`, `host`, `x-` headers) or where the client is sent.
const CASES: &str = "
edge GET http://web.example.com/ => 200 v1 /
edge GET http://web.example.com/v2 => 200 v2 /v2
edge GET http://web.example.com/v2/a => 200 v2 /v2/a
edge GET http://web.example.com/v22 => 200 v1 /v22
edge POST http://web.example.com/v2/a => 200 v1 /v2/a
edge GET http://web.example.com/ x-user=jason => 200 v2 / x-user=jason
edge GET http://web.example.com/?page=12 => 200 v2 /?page=12
edge GET http://web.example.com/old/a?b=c => 301 https://web.example.com/a?b=c
edge GET http://web.example.com/moved => 302 http://other.example.com/moved
edge GET http://web.example.com/strip/a?b=c => 200 v1 /a?b=c
edge GET http://web.example.com/strip => 200 v1 /
edge GET http://web.example.com/whole/a?b=c => 200 v1 /all?b=c
edge GET http://web.example.com/host => 200 v1 /host host=inner.example.com
edge GET http://web.example.com/edit x-gone=1 x-set=0 => 200 v1 /edit x-set=100% x-add=a
edge GET http://web.example.com/nosuch => 500
edge GET http://web.example.com/away => 500
edge GET http://web.example.com/unknown-filter => 500
edge GET http://one.wild.example.org/w => 200 v2 /w
edge GET http://wild.example.org/w => 404
edge GET http://one.wild.example.org/other => 404
edge GET http://elsewhere.example.net/ => 404
mesh GET http://app:8080/v2 => 200 v2 /v2
mesh GET http://app:8080/v1 => 200 v1 /v1
mesh GET http://app:8080/other => 404
mesh GET http://v2:8080/any => 200 v2 /any
";

const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: default}
spec:
  gatewayClassName: istio
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.example.com'}
  - {name: wild, port: 80, protocol: HTTP, hostname: '*.wild.example.org'}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: default}
spec:
  parentRefs: [{name: web, sectionName: http}]
  hostnames: [web.example.com]
  rules:
  - backendRefs: [{name: v1, port: 8080}]
  - matches:
    - {path: {value: /v2}, method: GET}
    - {headers: [{name: X-User, value: jason}]}
    - {queryParams: [{name: page, type: RegularExpression, value: '[0-9]+'}]}
    backendRefs: [{name: v2, port: 8080}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example.com}}]
  - matches: [{path: {value: /strip}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: v1, port: 8080}]
  - matches: [{path: {value: /whole}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /all}}}]
    backendRefs: [{name: v1, port: 8080}]
  - matches: [{path: {value: /host}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example.com}}]
    backendRefs: [{name: v1, port: 8080}]
  - matches: [{path: {value: /edit}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: '100%'}], add: [{name: x-add, value: a}], remove: [x-gone]}}]
    backendRefs: [{name: v1, port: 8080}]
  - matches: [{path: {value: /nosuch}}]
    backendRefs: [{name: nosuch, port: 8080}]
  - matches: [{path: {value: /away}}]
    backendRefs: [{name: v1, namespace: away, port: 8080}]
  - matches: [{path: {value: /unknown-filter}}]
    filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: F, name: f}}]
    backendRefs: [{name: v1, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: wild, namespace: default}
spec:
  parentRefs: [{name: web}]
  hostnames: ['*.example.org', '*.wild.example.org']
  rules: [{matches: [{path: {value: /w}}], backendRefs: [{name: v2, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mesh, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: app, port: 8080}]
  rules:
  - {matches: [{path: {value: /v2}}], backendRefs: [{name: v2, port: 8080}]}
  - {matches: [{path: {value: /v1}}], backendRefs: [{name: v1, port: 8080}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn gateway_api_on_weft() {
    run(Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_api_on_envoy() {
    if peer::envoy("gateway_api_on_envoy").is_some() {
        run(Flavor::Envoy).await;
    }
}

struct World {
    mesh: Mesh,
    edge: SocketAddr,
    client: SocketAddr,
    _proxies: [Proxy; 2],
    _backends: [backend::Backend; 2],
}

async fn run(flavor: Flavor) {
    let world = World::start(flavor).await;
    let cases = CASES.lines().filter_map(|line| line.split_once(" => "));
    let mut answered = String::new();
    for (index, (asked, expect)) in cases.enumerate() {
        if index == 0 {
            // The first right answer says that all has arrived.
            let right = || async { (world.ask(asked).await? == expect).then_some(()) };
            wait::until(asked, SETTLE, right).await;
        }
        let answer = world.ask(asked).await.unwrap_or_else(|| "nothing".to_owned());
        answered.push_str(&format!("{asked} => {answer}\n"));
    }
    assert_eq!(answered.trim(), CASES.trim());
    world.check_status().await;
}

impl World {
    async fn start(flavor: Flavor) -> Self {
        let [edge, client, v1, v2] = [(); 4].map(|()| harness::address());
        let backends = [
            backend::http("v1", &format!("{v1}:{APP_PORT}")).await,
            backend::http("v2", &format!("{v2}:{APP_PORT}")).await,
        ];
        let mut yaml = RULES.to_owned();
        yaml.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: client, namespace: default}}\n\
             spec:\n  workloadSelector: {{labels: {{app: client}}}}\n  egress:\n  \
             - {{hosts: ['./*'], captureMode: NONE, bind: {client}, port: {{number: {CLIENT_PORT}, protocol: HTTP_PROXY, name: http}}}}\n"
        ));
        let gateway = "gateway.networking.k8s.io/gateway-name: web";
        yaml.push_str(&service("web-istio", gateway, 80, GATEWAY_PORT));
        yaml.push_str(&service("app", "part: app", APP_PORT, APP_PORT));
        yaml.push_str(&service("v1", "version: v1", APP_PORT, APP_PORT));
        yaml.push_str(&service("v2", "version: v2", APP_PORT, APP_PORT));
        yaml.push_str(&pod("web", gateway, edge));
        yaml.push_str(&pod("client", "app: client", client));
        yaml.push_str(&pod("v1", "part: app, version: v1", v1));
        yaml.push_str(&pod("v2", "part: app, version: v2", v2));
        let mesh = Mesh::start(&yaml).await;
        let labels = [("gateway.networking.k8s.io/gateway-name", "web")];
        let place = |kind, name, ip, labels| Place {
            kind,
            name,
            namespace: "default",
            service_account: "default",
            ip,
            labels,
        };
        let proxies = [
            mesh.proxy(flavor, &place("router", "web", edge, &labels)).await,
            mesh.proxy(flavor, &place("sidecar", "client", client, &[("app", "client")])).await,
        ];
        let edge = SocketAddr::new(edge, GATEWAY_PORT);
        let client = SocketAddr::new(client, CLIENT_PORT);
        Self { mesh, edge, client, _proxies: proxies, _backends: backends }
    }

    /// The answer to one line of [`CASES`]; `None`: nobody answers yet.
    async fn ask(&self, asked: &str) -> Option<String> {
        let mut words = asked.split_whitespace();
        let to = if words.next()? == "edge" { self.edge } else { self.client };
        let method: Method = words.next()?.parse().ok()?;
        let (host, path) = words.next()?.strip_prefix("http://")?.split_once('/')?;
        let mut headers = vec![("host", host)];
        headers.extend(words.filter_map(|word| word.split_once('=')));
        let path = format!("/{path}");
        let body = bytes::Bytes::new();
        let reply = client::send(Wire::H1, to, method, &path, &headers, body).await.ok()?;
        let mut answer = reply.status.to_string();
        let location = reply.header("location");
        if !location.is_empty() {
            answer.push_str(&format!(" {location}"));
        }
        if reply.status == 200 {
            answer.push_str(&seen(&reply.json(), host));
        }
        Some(answer)
    }

    /// The control plane says so too: what is attached, what is refused and why.
    async fn check_status(&self) {
        let reply = client::get(self.mesh.http, "/debug/gateway_api", &[]).await.expect("a page");
        let all: Value = reply.json();
        let of = |kind: &str, name: &str| {
            let list = all.as_array().expect("a list");
            let found = list.iter().find(|one| one["kind"] == kind && one["name"] == name);
            found.unwrap_or_else(|| panic!("no {kind} {name} in {all:#}"))["status"].clone()
        };
        let gateway = of("Gateway", "web");
        let attached: Vec<&Value> =
            (0..2).map(|index| &gateway["listeners"][index]["attachedRoutes"]).collect();
        assert_eq!(attached, [1, 1], "{gateway:#}");
        for condition in gateway["conditions"].as_array().expect("conditions") {
            assert_eq!(condition["status"], "True", "{gateway:#}");
        }
        let route = of("HTTPRoute", "web");
        let conditions = &route["parents"][0]["conditions"];
        assert_eq!(conditions[0]["status"], "True", "{route:#}");
        // The first of its bad references: an unknown filter.
        assert_eq!(conditions[1]["reason"], "InvalidKind", "{route:#}");
    }
}

/// What the backend saw of a request for `host`.
fn seen(body: &Value, host: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut line = format!(" {} {}", text(&body["name"]), text(&body["path"]));
    for header in body["headers"].as_array().into_iter().flatten() {
        let (name, value) = (text(&header[0]), text(&header[1]));
        let ours = ["x-user", "x-set", "x-add", "x-gone"].contains(&name.as_str());
        if ours || (name == "host" && value != host) {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line
}

fn service(name: &str, selector: &str, port: u16, target: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{selector: {{{selector}}}, ports: [{{name: http, port: {port}, targetPort: {target}}}]}}\n"
    )
}

fn pod(name: &str, labels: &str, ip: IpAddr) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}\n\
         spec: {{serviceAccountName: default}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    )
}
