//! What two proxies count and trace of the same traffic is what its clients and the application saw:
//! with retries, timeouts, resets and reloads in between. `WEFT_CALLS` asks for more requests.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Requests where nobody asks for more.
const CALLS: usize = 3_000;
const CLIENTS: usize = 16;
/// Requests between two changes of configuration.
const RELOAD_EVERY: usize = 500;
/// Percent of traces that are sampled.
const SAMPLED: f64 = 1.0;

fn calls() -> usize {
    std::env::var("WEFT_CALLS").ok().and_then(|text| text.parse().ok()).unwrap_or(CALLS)
}

/// How often clients saw each status, and the application each path.
#[derive(Default)]
struct Seen {
    statuses: RefCell<BTreeMap<u16, u64>>,
    served: RefCell<BTreeMap<String, u64>>,
}

/// Serves one connection of the application.
async fn application(stream: TcpStream, seen: Rc<Seen>) {
    let mut peer = Raw::new(stream);
    while let Some(head) = head_or_end(&mut peer).await {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let times = {
            let mut served = seen.served.borrow_mut();
            let times = served.entry(path.clone()).or_insert(0);
            *times += 1;
            *times
        };
        let status = match path.as_str() {
            "/hang" => {
                // Until the proxy gives up.
                head_or_end(&mut peer).await;
                return;
            }
            "/reset" => return,
            "/fail" => 503,
            "/flaky" if times % 2 == 1 => 503,
            _ => 200,
        };
        peer.send(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok")).await;
    }
}

fn path(index: usize) -> &'static str {
    match index {
        index if index % 301 == 3 => "/hang",
        index if index % 97 == 5 => "/reset",
        index if index % 50 == 7 => "/flaky",
        index if index % 50 == 13 => "/fail",
        _ => "/good",
    }
}

/// The next head; None: the peer is gone. Waits as long as a connection may idle.
async fn head_or_end(peer: &mut Raw) -> Option<String> {
    loop {
        if let Some(at) = peer.read.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(peer.take(at + 4));
        }
        let mut part = [0; 4096];
        match peer.stream.read(&mut part).await {
            Ok(count) if count > 0 => peer.read.extend_from_slice(&part[..count]),
            _ => return None,
        }
    }
}

async fn client(address: SocketAddr, first: usize, count: usize, seen: Rc<Seen>) {
    let mut peer = Raw::new(TcpStream::connect(address).await.unwrap());
    for index in (first..count).step_by(CLIENTS) {
        let path = path(index);
        peer.send(format!("GET {path} HTTP/1.1\r\nhost: a.com\r\n\r\n")).await;
        let head = peer.head().await.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        *seen.statuses.borrow_mut().entry(status).or_insert(0) += 1;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        peer.bytes(length.map_or(0, |length| length.parse().unwrap())).await;
    }
}

/// Takes reports of spans: which ends of a call each trace has.
type Traces = Rc<RefCell<BTreeMap<String, BTreeSet<String>>>>;

async fn collector(listener: TcpListener, traces: Traces) {
    loop {
        let mut peer = Raw::new(listener.accept().await.unwrap().0);
        let traces = traces.clone();
        tokio::task::spawn_local(async move {
            while let Some(head) = head_or_end(&mut peer).await {
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let body = peer.bytes(length.unwrap().parse().unwrap()).await;
                let spans: Vec<Value> = serde_json::from_str(&body).unwrap();
                for span in spans {
                    let text = |field: &str| span[field].as_str().unwrap().to_owned();
                    let hung = span["tags"]["http.url"].as_str().unwrap().ends_with("/hang");
                    let kind = if hung { "HUNG".to_owned() } else { text("kind") };
                    traces.borrow_mut().entry(text("traceId")).or_default().insert(kind);
                }
                peer.send("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
    }
}

fn setup(direction: &'static str, sampled: f64, collector: SocketAddr) -> Setup {
    Setup {
        direction,
        hcm: json!({"tracing": {"randomSampling": {"value": sampled}, "provider": {
            "name": "envoy.tracers.zipkin",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
                "collectorCluster": "zipkin",
                "collectorEndpoint": "/api/v2/spans",
                "collectorEndpointVersion": "HTTP_JSON",
            },
        }}}),
        clusters: vec![cluster("zipkin", &[collector])],
        ..Setup::default()
    }
}

#[test]
fn clients_proxies_and_the_application_count_the_same() {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bound.set_nonblocking(true).unwrap();
    let reports = bound.local_addr().unwrap();
    let retry = json!({"retryOn": "5xx", "numRetries": 2});
    let outbound = Setup {
        host: json!({"routes": [
            {"match": {"path": "/hang"}, "route": {"cluster": "app", "timeout": "0.3s"}},
            {
                "match": {"prefix": "/"},
                "route": {"cluster": "app", "timeout": "0s", "retryPolicy": retry},
            },
        ]}),
        ..setup("OUTBOUND", SAMPLED, reports)
    };
    run(outbound, |outer| async move {
        let traces = Traces::default();
        let listener = TcpListener::from_std(bound).unwrap();
        tokio::task::spawn_local(collector(listener, traces.clone()));
        let mut inbound = setup("INBOUND", 0.0, reports);
        let by_path = json!([{"dimensions": {"path": "request.url_path"}}]);
        merge(&mut inbound.hcm, &super::metrics::stats(&by_path));
        let inner = Mesh::start(inbound).await;
        outer.addresses.replace(vec![inner.address]);
        outer.configure(|_| {});
        let seen = Rc::<Seen>::default();
        let (app, of_app) = (inner.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = app.apps[0].accept().await.unwrap();
                tokio::task::spawn_local(application(stream, of_app.clone()));
            }
        });
        let count = calls();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|first| client(outer.address, first, count, seen.clone()))
            .map(tokio::task::spawn_local)
            .collect();
        let all = async {
            for client in clients {
                client.await.unwrap();
            }
        };
        let reloads = async {
            for round in 1..=count / RELOAD_EVERY {
                while seen.statuses.borrow().values().sum::<u64>() < (round * RELOAD_EVERY) as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let via = format!("round-{round}");
                outer.configure(|setup| merge(&mut setup.hcm, &json!({"via": via})));
                inner.configure(|setup| merge(&mut setup.hcm, &json!({"via": via})));
            }
        };
        tokio::join!(all, reloads);

        let statuses = seen.statuses.borrow().clone();
        assert_eq!(statuses.values().sum::<u64>(), count as u64);
        assert!(statuses.contains_key(&503) && statuses.contains_key(&504), "{statuses:?}");
        for (status, times) in &statuses {
            let code = format!("response_code=\"{status}\"");
            outer.expect_requests(&[&code, "reporter=\"source\""], *times).await;
        }
        outer.expect_requests(&[], count as u64).await;
        // What hangs or is reset may be given up before the application knows, or asked again by the
        // proxy next to it.
        let served = seen.served.borrow().clone();
        for path in ["/good", "/flaky", "/fail"] {
            let label = format!("path=\"{path}\"");
            inner.expect_requests(&[&label, "reporter=\"destination\""], served[path]).await;
        }

        // Sampled traces: as many as they should be, and each with both ends.
        let expected = count as f64 * SAMPLED / 100.0;
        let spread = 5.0 * expected.sqrt();
        let complete = |kinds: &BTreeSet<String>| {
            kinds.contains("HUNG") || (kinds.contains("CLIENT") && kinds.contains("SERVER"))
        };
        weft_testkit::wait::until("complete traces", PATIENCE, || async {
            let traces = traces.borrow();
            let off = (traces.len() as f64 - expected).abs();
            (off <= spread && traces.values().all(complete)).then_some(())
        })
        .await;
    });
}
