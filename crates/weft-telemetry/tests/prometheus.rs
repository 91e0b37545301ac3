//! What proxies expose, read by a real Prometheus: rules, the queries of Istio's boards and of ours.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_telemetry::{
    Amounts, Outcome, PeerInfo, Protocol, Registry, Reporter, RequestLabels, ResponseFlags,
    SecurityPolicy, ServiceInfo, TcpLabels,
};
use weft_testkit::{peer, process::Process};

const PATIENCE: Duration = Duration::from_secs(60);

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)
}

#[test]
fn rules_are_right_by_promtool() {
    let Some(promtool) = peer::promtool("Prometheus rules") else { return };
    for (what, file) in [
        ("check", "prometheus/recording.yaml"),
        ("check", "prometheus/alerts.yaml"),
        ("test", "prometheus/tests.yaml"),
    ] {
        let output = Command::new(&promtool).args([what, "rules"]).arg(deploy(file)).output();
        let output = output.expect("promtool runs");
        let (said, more) = (output.stdout, output.stderr);
        let said = [said, more].concat();
        assert!(output.status.success(), "{file}\n{}", String::from_utf8_lossy(&said));
    }
}

/// Serves what the registry says, as a proxy does.
fn serve(registry: Registry) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let mut body = Vec::new();
            registry.render_prometheus(&mut body);
            let mut answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n\
                connection: close\r\n\r\n"
                .to_vec();
            answer.append(&mut body);
            let _ = stream.write_all(&answer);
        }
    });
    address
}

/// The answer to a query at this moment: label sets with values.
fn ask(prometheus: SocketAddr, query: &str) -> Result<Vec<Value>, String> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    // HTTP/1.0: the answer is not chunked.
    let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n");
    let mut answer = String::new();
    let sent = TcpStream::connect(prometheus).and_then(|mut stream| {
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)
    });
    sent.map_err(|error| error.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json: Value = serde_json::from_str(body).map_err(|_| answer.clone())?;
    match json["status"].as_str() {
        Some("success") => Ok(json["data"]["result"].as_array().cloned().unwrap_or_default()),
        _ => Err(json["error"].to_string()),
    }
}

fn workload(name: &str) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        name: format!("{name}-1"),
        workload: format!("{name}-v1"),
        namespace: "shop".into(),
        app: name.into(),
        version: "v1".into(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}"),
        cluster: "Kubernetes".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
    })
}

/// A little traffic of a small mesh, both sides of it: requests, gRPC, TCP. One of ten fails.
fn traffic(registry: &Registry) {
    let shard = registry.shard();
    let service = Arc::new(ServiceInfo {
        host: "reviews.shop.svc.cluster.local".into(),
        name: "reviews".into(),
        namespace: "shop".into(),
    });
    let (source, destination) = (workload("web"), workload("reviews"));
    for (reporter, security) in [
        (Reporter::Source, SecurityPolicy::Unknown),
        (Reporter::Destination, SecurityPolicy::MutualTls),
    ] {
        for (protocol, grpc_status) in [(Protocol::Http, None), (Protocol::Grpc, Some(0))] {
            let labels = RequestLabels {
                reporter,
                source: &source,
                destination: &destination,
                service: &service,
                protocol,
                security,
                view: None,
                values: &[],
            };
            let amounts = Amounts {
                duration: Duration::from_millis(7),
                request_bytes: 10,
                response_bytes: 100,
                request_messages: 1,
                response_messages: 1,
                exemplar: None,
            };
            for code in [200, 200, 200, 200, 503, 200, 200, 200, 200, 200] {
                let outcome = Outcome { code, grpc_status, flags: ResponseFlags::NONE };
                shard.request(&labels, outcome, &amounts);
            }
        }
        let tcp = shard.tcp(&TcpLabels {
            reporter,
            source: &source,
            destination: &destination,
            service: &service,
            security,
            flags: ResponseFlags::NONE,
            view: None,
            values: &[],
        });
        tcp.opened();
        tcp.received(10);
        tcp.sent(20);
        tcp.closed();
    }
}

/// A board's queries with its variables filled in: everything there is.
fn queries(board: &Value, found: &mut Vec<String>) {
    match board {
        Value::Object(fields) => {
            if let Some(Value::String(expr)) = fields.get("expr") {
                found.push(fill(expr));
            }
            fields.values().for_each(|field| queries(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

/// `="$name"` and `=~"$name"` become what Grafana makes of "all".
fn fill(expr: &str) -> String {
    let mut out = expr.replace("$__rate_interval", "1m").replace("$__interval", "1m");
    while let Some(at) = out.find("\"$") {
        let end = out[at + 1..].find('"').map_or(out.len(), |end| at + end + 2);
        let before = out[..at].trim_end_matches(['=', '~', ' ']).to_owned();
        out = format!("{before}=~\".*\"{}", &out[end..]);
    }
    out
}

/// Queries that find nothing here, by what they all contain, and why.
const EMPTY: [&[&str]; 10] = [
    // Series of the control plane, of nodes, of proxies' own state: not in this registry.
    &["pilot_"],
    &["istio_build"],
    &["container_"],
    &["process_"],
    &["weft_"],
    &["envoy_"],
    // A client does not know whether its request went by TLS: it says `unknown`, as in Istio.
    &["reporter=\"source\"", "connection_security_policy=\"mutual_tls\""],
    // This mesh has neither plain text nor peers without an identity, nor waypoints.
    &["connection_security_policy!="],
    &["principal!~"],
    &["waypoint\""],
];

#[test]
fn a_real_prometheus_answers_the_seeds_query_and_the_boards() {
    let Some(prometheus) = peer::prometheus("boards") else { return };
    let registry = Registry::new();
    traffic(&registry);
    let target = serve(registry.clone());
    let folder = tempfile::tempdir().unwrap();
    let port = weft_testkit::free_port();
    let config = folder.path().join("prometheus.yml");
    let rules = deploy("prometheus/recording.yaml").canonicalize().unwrap();
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\n\
         scrape_configs:\n- job_name: mesh\n  static_configs: [{{targets: ['{target}']}}]\n",
        rules.display()
    );
    std::fs::write(&config, text).unwrap();
    let args = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", folder.path().join("data").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--log.level=warn".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let _process = Process::start("prometheus", folder.path(), &prometheus, &args);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // Until there is an answer there is more of the same traffic, so that rates are not zero.
    let wait = |query: &str| {
        let since = Instant::now();
        loop {
            match ask(address, query) {
                Ok(found) if !found.is_empty() => return found,
                other => assert!(since.elapsed() < PATIENCE, "{query}: {other:?}"),
            }
            traffic(&registry);
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let seed = "label_join((sum(rate(istio_requests_total{reporter=\"destination\", response_code!~\"5.*\"}[1m])) by (destination_workload, destination_workload_namespace) / sum(rate(istio_requests_total{reporter=\"destination\"}[1m])) by (destination_workload, destination_workload_namespace)), \"destination_workload_var\", \".\", \"destination_workload\", \"destination_workload_namespace\")";
    let found = wait(seed);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["metric"]["destination_workload_var"], "reviews-v1.shop");
    let number =
        |found: &[Value]| -> f64 { found[0]["value"][1].as_str().unwrap().parse().unwrap() };
    assert!((number(&found) - 0.9).abs() < 0.01, "{found:?}");
    let p99 = "histogram_quantile(0.99, sum(rate(istio_request_duration_milliseconds_bucket[1m])) by (le))";
    assert!((5.0..=10.0).contains(&number(&wait(p99))));
    wait("workload:istio_requests_total");

    let mut boards: Vec<PathBuf> = ["mesh", "workload", "proxy", "control"]
        .map(|name| deploy(&format!("grafana/{name}.json")))
        .into();
    if let Some(data) = peer::data("Istio's boards") {
        let names =
            ["istio-mesh-dashboard.gen", "istio-service-dashboard", "istio-workload-dashboard"];
        boards.extend(names.map(|name| data.join(format!("grafana/{name}.json"))));
    }
    let mut empty = Vec::new();
    for board in boards {
        let json: Value = serde_json::from_slice(&std::fs::read(&board).unwrap()).unwrap();
        let mut all = Vec::new();
        queries(&json, &mut all);
        assert!(!all.is_empty(), "{}", board.display());
        for query in all {
            let found = ask(address, &query);
            let found =
                found.unwrap_or_else(|error| panic!("{}: {query}: {error}", board.display()));
            let expected = EMPTY.iter().any(|all| all.iter().all(|part| query.contains(part)));
            if found.is_empty() && !expected {
                empty.push(format!("{}: {query}", board.display()));
            }
        }
    }
    assert!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
}
