//! Istio's own samples, unchanged: accepted, pushed without a NACK, and requests land as they say.
//!
//! One control plane, one sidecar and one gateway of each kind of proxy; the sample under test is
//! swapped in the watched folder, so every case is a live configuration change too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use weft_testkit::{
    backend::{self, Backend},
    client, peer, wait,
};

use crate::harness::{self, Flavor, Mesh, Place, Proxy};

const HTTP_PROXY_PORT: u16 = 15080;
/// The gateway's pod port behind its service's port 80.
const GATEWAY_HTTP: u16 = 10080;
const GATEWAY_8080: u16 = 18080;
const GATEWAY_TCP: u16 = 31400;

/// Gateways of the Gateway API in the samples, each with a proxy made for it.
const MADE: [&str; 3] = ["helloworld-gateway", "httpbin-gateway", "tcp-echo-gateway"];
/// The pod port behind port 80, and behind 31400, of their Services.
const MADE_PORT: u16 = 10080;

/// How long a change may take to arrive; every case waits for its own first right answer.
const SETTLE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn istio_samples_on_weft() {
    run("istio_samples_on_weft", Flavor::Weft).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn istio_samples_on_envoy() {
    if peer::envoy("istio_samples_on_envoy").is_some() {
        run("istio_samples_on_envoy", Flavor::Envoy).await;
    }
}

#[test]
fn every_sample_has_a_case() {
    let Some(data) = peer::data("every_sample_has_a_case") else { return };
    let samples = data.join("samples");
    let mut missing = BTreeSet::new();
    let mut folders = vec![samples.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of samples") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "yaml") {
                let name = path.strip_prefix(&samples).expect("below it").display().to_string();
                missing.insert(name);
            }
        }
    }
    let cases = CASES.iter().flat_map(|case| case.files).chain(DEPLOYED);
    for file in cases.chain(NOT_HERE.iter().map(|(file, _)| file)) {
        missing.remove(*file);
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// Where a request enters.
#[derive(Debug, Clone, Copy)]
enum Via {
    /// The client's sidecar, as an HTTP proxy would be used.
    Sidecar,
    Gateway(u16),
    /// The proxy made for a Gateway of the Gateway API.
    Made(&'static str),
}

/// What must come back.
#[derive(Debug, Clone, Copy)]
enum Expect {
    Status(u16),
    /// Shares in percent by backend; they are met within `TOLERANCE`.
    Shares(&'static [(&'static str, u32)]),
}

struct Case {
    /// Below `samples/`.
    files: &'static [&'static str],
    asks: &'static [Ask],
}

struct Ask {
    via: Via,
    host: &'static str,
    path: &'static str,
    user: Option<&'static str>,
    expect: Expect,
}

const fn ask(via: Via, host: &'static str, path: &'static str, expect: Expect) -> Ask {
    Ask { via, host, path, user: None, expect }
}

const fn reviews(user: Option<&'static str>, shares: &'static [(&'static str, u32)]) -> Ask {
    Ask { via: Via::Sidecar, host: "reviews:9080", path: "/", user, expect: Expect::Shares(shares) }
}

const fn service(host: &'static str, backend: &'static [(&'static str, u32)]) -> Ask {
    ask(Via::Sidecar, host, "/", Expect::Shares(backend))
}

/// What every sample builds on.
const DEPLOYED: &[&str] = &[
    "bookinfo/kube/bookinfo.yaml",
    "helloworld/helloworld.yaml",
    "httpbin/httpbin.yaml",
    "tcp-echo/tcp-echo-services.yaml",
];

/// Samples without a case of their own, and why.
const NOT_HERE: &[(&str, &str)] = &[
    ("security/spire-trust-domain-federation/spire-base.yaml", "values of a package manager"),
    ("security/spire-trust-domain-federation/spire-east.yaml", "values of a package manager"),
    ("security/spire-trust-domain-federation/spire-west.yaml", "values of a package manager"),
];

const ALL: &str = "bookinfo/networking/destination-rule-all.yaml";
const JASON: Option<&str> = Some("jason");
const REQUESTS: u32 = 300;
/// Percent points; five standard deviations of a 50 % share at `REQUESTS` would be 14.
const TOLERANCE: u32 = 14;

const CASES: &[Case] = &[
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-all-v1.yaml"],
        asks: &[
            reviews(None, &[("reviews-v1", 100)]),
            service("ratings:9080", &[("ratings-v1", 100)]),
            service("details:9080", &[("details-v1", 100)]),
            service("productpage:9080", &[("productpage-v1", 100)]),
        ],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-test-v2.yaml"],
        asks: &[reviews(JASON, &[("reviews-v2", 100)]), reviews(None, &[("reviews-v1", 100)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-50-v3.yaml"],
        asks: &[reviews(None, &[("reviews-v1", 50), ("reviews-v3", 50)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-80-20.yaml"],
        asks: &[reviews(None, &[("reviews-v1", 80), ("reviews-v2", 20)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-90-10.yaml"],
        asks: &[reviews(None, &[("reviews-v1", 90), ("reviews-v2", 10)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-jason-v2-v3.yaml"],
        asks: &[reviews(JASON, &[("reviews-v2", 100)]), reviews(None, &[("reviews-v3", 100)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-v2-v3.yaml"],
        asks: &[reviews(None, &[("reviews-v2", 50), ("reviews-v3", 50)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-reviews-v3.yaml"],
        asks: &[reviews(None, &[("reviews-v3", 100)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-details-v2.yaml"],
        asks: &[service("details:9080", &[("details-v2", 100)])],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-ratings-db.yaml"],
        asks: &[
            service("ratings:9080", &[("ratings-v2", 100)]),
            reviews(None, &[("reviews-v3", 100)]),
        ],
    },
    Case {
        // No workload carries this version: the subset is there and empty.
        files: &[ALL, "bookinfo/networking/virtual-service-ratings-mysql.yaml"],
        asks: &[ask(Via::Sidecar, "ratings:9080", "/", Expect::Status(503))],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-ratings-mysql-vm.yaml"],
        asks: &[ask(Via::Sidecar, "ratings:9080", "/", Expect::Status(503))],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-ratings-test-abort.yaml"],
        asks: &[
            Ask { user: JASON, ..ask(Via::Sidecar, "ratings:9080", "/", Expect::Status(500)) },
            service("ratings:9080", &[("ratings-v1", 100)]),
        ],
    },
    Case {
        files: &[ALL, "bookinfo/networking/fault-injection-details-v1.yaml"],
        asks: &[ask(Via::Sidecar, "details:9080", "/", Expect::Status(555))],
    },
    Case {
        files: &[ALL, "bookinfo/networking/virtual-service-ratings-test-delay.yaml"],
        asks: &[service("ratings:9080", &[("ratings-v1", 100)])],
    },
    Case {
        files: &["bookinfo/networking/destination-rule-reviews.yaml"],
        asks: &[reviews(None, &[("reviews-v1", 33), ("reviews-v2", 33), ("reviews-v3", 33)])],
    },
    Case {
        files: &["bookinfo/networking/bookinfo-gateway.yaml"],
        asks: &[
            ask(
                Via::Gateway(GATEWAY_8080),
                "any.example",
                "/productpage",
                Expect::Shares(&[("productpage-v1", 100)]),
            ),
            ask(
                Via::Gateway(GATEWAY_8080),
                "any.example",
                "/static/a.css",
                Expect::Shares(&[("productpage-v1", 100)]),
            ),
            ask(Via::Gateway(GATEWAY_8080), "any.example", "/other", Expect::Status(404)),
        ],
    },
    Case {
        files: &["httpbin/httpbin-gateway.yaml"],
        asks: &[ask(
            Via::Gateway(GATEWAY_HTTP),
            "any.example",
            "/anything",
            Expect::Shares(&[("httpbin-v1", 100)]),
        )],
    },
    Case {
        files: &["helloworld/helloworld-gateway.yaml"],
        asks: &[
            ask(
                Via::Gateway(GATEWAY_HTTP),
                "any.example",
                "/hello",
                Expect::Shares(&[("helloworld-v1", 50), ("helloworld-v2", 50)]),
            ),
            ask(Via::Gateway(GATEWAY_HTTP), "any.example", "/", Expect::Status(404)),
        ],
    },
    Case {
        files: &["helloworld/gateway-api/helloworld-gateway.yaml"],
        asks: &[
            ask(
                Via::Made("helloworld-gateway"),
                "any.example",
                "/hello",
                Expect::Shares(&[("helloworld-v1", 50), ("helloworld-v2", 50)]),
            ),
            ask(Via::Made("helloworld-gateway"), "any.example", "/hello/x", Expect::Status(404)),
        ],
    },
    Case {
        files: &["httpbin/gateway-api/httpbin-gateway.yaml"],
        asks: &[ask(
            Via::Made("httpbin-gateway"),
            "any.example",
            "/anything",
            Expect::Shares(&[("httpbin-v1", 100)]),
        )],
    },
    Case {
        // The last file updates the first one's route. (Not next to it: their first answers are alike.)
        files: &[
            "helloworld/gateway-api/helloworld-gateway.yaml",
            "helloworld/gateway-api/helloworld-versions.yaml",
            "helloworld/gateway-api/helloworld-route.yaml",
        ],
        asks: &[ask(
            Via::Made("helloworld-gateway"),
            "any.example",
            "/hello",
            Expect::Shares(&[("helloworld-v1", 90), ("helloworld-v2", 10)]),
        )],
    },
    Case {
        files: &["tcp-echo/gateway-api/tcp-echo-all-v1.yaml"],
        asks: &[ask(
            Via::Made("tcp-echo-gateway"),
            "any",
            "/",
            Expect::Shares(&[("tcp-echo-v1", 100)]),
        )],
    },
    Case {
        files: &[
            "tcp-echo/gateway-api/tcp-echo-all-v1.yaml",
            "tcp-echo/gateway-api/tcp-echo-20-v2.yaml",
        ],
        asks: &[ask(
            Via::Made("tcp-echo-gateway"),
            "any",
            "/",
            Expect::Shares(&[("tcp-echo-v1", 80), ("tcp-echo-v2", 20)]),
        )],
    },
    Case {
        files: &["bookinfo/kube/bookinfo-versions.yaml"],
        asks: &[
            service("reviews-v2:9080", &[("reviews-v2", 100)]),
            service("ratings-v1:9080", &[("ratings-v1", 100)]),
            service("productpage-v1:9080", &[("productpage-v1", 100)]),
        ],
    },
    Case {
        files: &[
            "bookinfo/kube/bookinfo-dualstack.yaml",
            "bookinfo/kube/bookinfo-details-dualstack.yaml",
            "bookinfo/kube/bookinfo-ratings-dualstack.yaml",
            "bookinfo/kube/bookinfo-ratings-discovery-dualstack.yaml",
            "bookinfo/networking/destination-rule-reviews.yaml",
        ],
        asks: &[
            service("details:9080", &[("details-v1", 50), ("details-v2", 50)]),
            service("ratings:9080", &[("ratings-v1", 50), ("ratings-v2", 50)]),
            reviews(None, &[("reviews-v1", 33), ("reviews-v2", 33), ("reviews-v3", 33)]),
        ],
    },
    Case {
        files: &[
            "bookinfo/kube/bookinfo-psa.yaml",
            "bookinfo/kube/bookinfo-details.yaml",
            "bookinfo/kube/bookinfo-details-v2.yaml",
            "bookinfo/kube/bookinfo-ratings.yaml",
            "bookinfo/kube/bookinfo-ratings-discovery.yaml",
            "bookinfo/kube/bookinfo-ratings-v2.yaml",
            "bookinfo/kube/bookinfo-ratings-v2-mysql.yaml",
            "bookinfo/kube/bookinfo-ratings-v2-mysql-vm.yaml",
            "bookinfo/kube/bookinfo-reviews-v2.yaml",
            "bookinfo/kube/bookinfo-db.yaml",
            "bookinfo/kube/bookinfo-mysql.yaml",
            "bookinfo/kube/productpage-nodeport.yaml",
            "bookinfo/kube/bookinfo-certificate.yaml",
            "bookinfo/kube/bookinfo-ingress.yaml",
        ],
        asks: &[
            service("productpage:9080", &[("productpage-v1", 100)]),
            service("details:9080", &[("details-v1", 50), ("details-v2", 50)]),
        ],
    },
    Case {
        files: &["helloworld/helloworld-dual-stack.yaml"],
        asks: &[service("helloworld:5000", &[("helloworld-v1", 50), ("helloworld-v2", 50)])],
    },
    Case {
        files: &["httpbin/httpbin-nodeport.yaml", "httpbin/sample-client/fortio-deploy.yaml"],
        asks: &[service("httpbin:8000", &[("httpbin-v1", 100)])],
    },
    Case {
        files: &["tcp-echo/tcp-echo.yaml", "tcp-echo/tcp-echo-all-v1.yaml"],
        asks: &[ask(
            Via::Gateway(GATEWAY_TCP),
            "any",
            "/",
            Expect::Shares(&[("tcp-echo-v1", 100)]),
        )],
    },
    Case { files: &["tcp-echo/tcp-echo-ipv4.yaml"], asks: &[] },
    Case { files: &["tcp-echo/tcp-echo-ipv6.yaml"], asks: &[] },
    Case { files: &["tcp-echo/tcp-echo-dual-stack.yaml"], asks: &[] },
    Case {
        files: &[
            "curl/curl.yaml",
            "sleep/sleep.yaml",
            "grpc-echo/grpc-echo.yaml",
            "jwt-server/jwt-server.yaml",
            "ratelimit/rate-limit-service.yaml",
            "ratelimit/local-rate-limit-service.yaml",
            "open-telemetry/otel.yaml",
            "open-telemetry/loki/otel.yaml",
            "open-telemetry/loki/iop.yaml",
            "open-telemetry/loki/telemetry.yaml",
            "open-telemetry/tracing/telemetry.yaml",
            "security/psp/sidecar-psp.yaml",
            "security/spire-trust-domain-federation/cluster-federated-trust-domain.yaml",
        ],
        asks: &[service("productpage:9080", &[("productpage-v1", 100)])],
    },
    // Nothing stands behind these here: they must be accepted and pushed.
    Case { files: &["bookinfo/networking/egress-rule-google-apis.yaml"], asks: &[] },
    Case { files: &["bookinfo/networking/certmanager-gateway.yaml"], asks: &[] },
    Case { files: &["bookinfo/networking/destination-rule-all-mtls.yaml"], asks: &[] },
    Case { files: &["websockets/app.yaml", "websockets/route.yaml"], asks: &[] },
    Case {
        files: &["tcp-echo/tcp-echo-all-v1.yaml"],
        asks: &[ask(
            Via::Gateway(GATEWAY_TCP),
            "any",
            "/",
            Expect::Shares(&[("tcp-echo-v1", 100)]),
        )],
    },
    Case {
        // The second file updates the first one's route.
        files: &["tcp-echo/tcp-echo-all-v1.yaml", "tcp-echo/tcp-echo-20-v2.yaml"],
        asks: &[ask(
            Via::Gateway(GATEWAY_TCP),
            "any",
            "/",
            Expect::Shares(&[("tcp-echo-v1", 80), ("tcp-echo-v2", 20)]),
        )],
    },
];

async fn run(test: &str, flavor: Flavor) {
    let Some(data) = peer::data(test) else { return };
    let samples = data.join("samples");
    let world = World::start(flavor).await;
    for case in CASES {
        world.apply(&samples, case);
        world.settled(case).await;
        for ask in case.asks {
            world.check(case, ask).await;
        }
    }
}

struct World {
    mesh: Mesh,
    client_ip: IpAddr,
    gateway_ip: IpAddr,
    made: BTreeMap<&'static str, IpAddr>,
    proxies: Vec<Proxy>,
    _backends: Vec<Backend>,
}

/// (app, version, port). What stands behind the TCP service speaks HTTP too: it says who it is.
const WORKLOADS: &[(&str, &str, u16)] = &[
    ("productpage", "v1", 9080),
    ("details", "v1", 9080),
    ("details", "v2", 9080),
    ("ratings", "v1", 9080),
    ("ratings", "v2", 9080),
    ("reviews", "v1", 9080),
    ("reviews", "v2", 9080),
    ("reviews", "v3", 9080),
    ("helloworld", "v1", 5000),
    ("helloworld", "v2", 5000),
    ("httpbin", "v1", 8080),
    ("tcp-echo", "v1", 9000),
    ("tcp-echo", "v2", 9000),
];

impl World {
    async fn start(flavor: Flavor) -> Self {
        let (client_ip, gateway_ip) = (harness::address(), harness::address());
        let made: BTreeMap<_, _> = MADE.map(|name| (name, harness::address())).into();
        let mut yaml = base(client_ip, gateway_ip);
        made.iter().for_each(|(name, ip)| made_for(&mut yaml, name, *ip));
        let mut backends = Vec::new();
        for (app, version, port) in WORKLOADS {
            let ip = harness::address();
            let name = format!("{app}-{version}");
            backends.push(backend::http(&name, &format!("{ip}:{port}")).await);
            pod(&mut yaml, &name, &[("app", app), ("version", version)], ip);
        }
        let mesh = Mesh::start(&yaml).await;
        let sidecar = place("sidecar", "client", client_ip);
        let gateway = place("router", "gateway", gateway_ip);
        let mut proxies =
            vec![mesh.start_proxy(flavor, &sidecar), mesh.start_proxy(flavor, &gateway)];
        for (name, ip) in &made {
            let labels = [("gateway.networking.k8s.io/gateway-name", *name)];
            let place = Place { labels: &labels, ..place("router", name, *ip) };
            proxies.push(mesh.start_proxy(flavor, &place));
        }
        for proxy in &proxies {
            proxy.ready().await;
        }
        Self { mesh, client_ip, gateway_ip, made, proxies, _backends: backends }
    }

    /// Puts the sample's files, after the applications', in place of the last one's. Of two documents
    /// for one resource the later stands, as after applying the files one by one.
    fn apply(&self, samples: &Path, case: &Case) {
        let mut documents = BTreeMap::new();
        for file in DEPLOYED.iter().chain(case.files) {
            let text = std::fs::read_to_string(samples.join(file))
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            for document in text.split("\n---") {
                documents.insert(kind_and_name(document), document.to_owned());
            }
        }
        let documents: Vec<String> = documents.into_values().collect();
        self.mesh.write("sample.yaml", &documents.join("\n---\n"));
    }

    /// Waits until all proxies have acknowledged everything; a refusal fails at once.
    async fn settled(&self, case: &Case) {
        let rejected = || async {
            let syncz = self.mesh.syncz().await.to_string();
            assert!(!syncz.contains("ERROR"), "{:?}: {syncz}", case.files);
            (!syncz.contains("STALE")).then_some(())
        };
        wait::until("all proxies to be in sync", SETTLE, rejected).await;
        for proxy in &self.proxies {
            if let Proxy::Envoy(envoy) = proxy {
                let output = envoy.process.output();
                assert_eq!(envoy.rejected().await, 0, "{:?}: {output}", case.files);
            }
        }
    }

    async fn check(&self, case: &Case, ask: &Ask) {
        let label =
            format!("{:?} {:?} {}{} user {:?}", case.files, ask.via, ask.host, ask.path, ask.user);
        // The first right answer says that the change has arrived; the count follows.
        wait::until(&label, SETTLE, || async {
            match ask.expect {
                Expect::Status(status) => (self.send(ask).await?.0 == status).then_some(()),
                Expect::Shares(shares) => self.burst(ask, shares).await,
            }
        })
        .await;
        if let Expect::Shares(shares) = ask.expect {
            self.check_shares(&label, ask, shares).await;
        }
    }

    /// A burst of answers: nobody else answers, and everybody does. The routes of the case before
    /// would give one or the other away.
    async fn burst(&self, ask: &Ask, shares: &[(&str, u32)]) -> Option<()> {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let name = self.send(ask).await?.1;
            shares.iter().find(|(backend, _)| *backend == name)?;
            seen.insert(name);
        }
        (seen.len() == shares.len()).then_some(())
    }

    async fn check_shares(&self, label: &str, ask: &Ask, shares: &[(&str, u32)]) {
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..REQUESTS {
            let (status, name) = self.send(ask).await.expect("answered");
            assert_eq!(status, 200, "{label}");
            *counts.entry(name).or_default() += 1;
        }
        for (backend, percent) in shares {
            let got = counts.remove(*backend).unwrap_or(0) * 100 / REQUESTS;
            assert!(got.abs_diff(*percent) <= TOLERANCE, "{label}: {backend} got {got} %");
        }
        assert!(counts.is_empty(), "{label}: unexpected {counts:?}");
    }

    async fn send(&self, ask: &Ask) -> Option<(u16, String)> {
        let to = match ask.via {
            Via::Sidecar => SocketAddr::new(self.client_ip, HTTP_PROXY_PORT),
            Via::Gateway(port) => SocketAddr::new(self.gateway_ip, port),
            Via::Made(name) => SocketAddr::new(self.made[name], MADE_PORT),
        };
        let mut headers = vec![("host", ask.host)];
        headers.extend(ask.user.map(|user| ("end-user", user)));
        let reply = client::get(to, ask.path, &headers).await.ok()?;
        Some((reply.status, reply.header("x-backend").to_owned()))
    }
}

fn kind_and_name(document: &str) -> (String, String) {
    let value = |key: &str| {
        let line = document.lines().find_map(|line| line.trim_start().strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    (value("kind:"), value("name:"))
}

fn place(kind: &'static str, name: &'static str, ip: IpAddr) -> Place<'static> {
    let labels: &[_] =
        if kind == "router" { &[("istio", "ingressgateway")] } else { &[("app", "client")] };
    Place { kind, name, namespace: "default", service_account: "default", ip, labels }
}

/// What is made for a Gateway: a proxy with its label, and a Service before it.
fn made_for(yaml: &mut String, gateway: &str, ip: IpAddr) {
    const LABEL: &str = "gateway.networking.k8s.io/gateway-name";
    let _ = write!(
        yaml,
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {gateway}-istio, namespace: default}}\n\
         spec: {{selector: {{{LABEL}: {gateway}}}, ports: [{{name: http, port: 80, targetPort: {MADE_PORT}}}, \
         {{name: tcp, port: 31400, targetPort: {MADE_PORT}}}]}}\n"
    );
    pod(yaml, gateway, &[(LABEL, gateway)], ip);
}

fn pod(yaml: &mut String, name: &str, labels: &[(&str, &str)], ip: IpAddr) {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let _ = write!(
        yaml,
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{{}}}}}\n\
         spec: {{serviceAccountName: default}}\nstatus: {{phase: Running, podIP: {ip}}}\n",
        labels.join(", ")
    );
}

fn base(client: IpAddr, gateway: IpAddr) -> String {
    let mut yaml = format!(
        r#"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: {HTTP_PROXY_PORT}, protocol: HTTP, name: http}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: istio-ingressgateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  ports:
  - {{name: http, port: 80, targetPort: {GATEWAY_HTTP}}}
  - {{name: http2, port: 8080, targetPort: {GATEWAY_8080}}}
  - {{name: tcp, port: 31400, targetPort: {GATEWAY_TCP}}}
"#
    );
    pod(&mut yaml, "client", &[("app", "client")], client);
    pod(&mut yaml, "gateway", &[("istio", "ingressgateway")], gateway);
    yaml
}
