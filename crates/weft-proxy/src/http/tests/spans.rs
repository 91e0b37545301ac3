//! Spans on their way to a Zipkin collector, beside a stock Envoy's.

use super::stock::Stock;
use super::*;

fn setup(collector: SocketAddr) -> Setup {
    Setup {
        hcm: json!({"tracing": {"randomSampling": {"value": 100}, "provider": {
            "name": "envoy.tracers.zipkin",
            "typedConfig": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
                "collectorCluster": "zipkin",
                "collectorEndpoint": "/api/v2/spans",
                "collectorEndpointVersion": "HTTP_JSON",
                "collectorHostname": "zipkin.test",
                "traceId128bit": true,
                "sharedSpanContext": true,
            },
        }}}),
        host: json!({"routes": [{
            "match": {"prefix": "/"},
            "decorator": {"operation": "the operation"},
            "directResponse": {"status": 200},
        }]}),
        clusters: vec![cluster("zipkin", &[collector])],
        ..Setup::default()
    }
}

/// The next report: its head and its spans.
async fn report(collector: &TcpListener) -> (String, Vec<Value>) {
    let (stream, _) = collector.accept().await.unwrap();
    let mut peer = Raw::new(stream);
    let head = peer.head().await.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let body = match length {
        Some(length) => peer.bytes(length.parse().unwrap()).await,
        // Envoy's own: one chunk.
        None => {
            let chunks = peer.until("\r\n0\r\n\r\n").await;
            let (_, chunk) = chunks.split_once("\r\n").unwrap();
            chunk.trim_end_matches("\r\n0\r\n\r\n").to_owned()
        }
    };
    peer.send("HTTP/1.1 202 Accepted\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    (head, serde_json::from_str(&body).unwrap())
}

async fn ask(address: SocketAddr, headers: &str) {
    let mut client = Raw::new(TcpStream::connect(address).await.unwrap());
    client
        .send(format!("GET /a?b=1 HTTP/1.1\r\nhost: a.com\r\nuser-agent: me\r\n{headers}\r\n"))
        .await;
    client.head().await;
}

/// Continued, begun, and one that is not sampled.
const CONTINUED: &str = "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n\
    x-b3-spanid: a2fb4a1d1a96d312\r\nx-b3-sampled: 1\r\n";
const UNSAMPLED: &str = "x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n\
    x-b3-spanid: a2fb4a1d1a96d312\r\nx-b3-sampled: 0\r\n";

async fn ask_all(address: SocketAddr) {
    for headers in [CONTINUED, UNSAMPLED, "", "", "", CONTINUED] {
        ask(address, headers).await;
    }
}

fn names(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn five_spans_make_a_report_as_a_stock_envoys() {
    for direction in ["INBOUND", "OUTBOUND"] {
        let Some(binary) = weft_testkit::peer::envoy("spans beside a stock Envoy") else { return };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut setup = setup(listener.local_addr().unwrap());
        setup.direction = direction;
        run(setup, |mesh| async move {
            let collector = TcpListener::from_std(listener).unwrap();
            let (_, (head, ours)) = tokio::join!(ask_all(mesh.address), report(&collector));
            assert!(head.starts_with("post /api/v2/spans http/1.1\r\n"), "{head}");
            assert!(head.contains("host: zipkin.test\r\n"), "{head}");
            assert!(head.contains("content-type: application/json\r\n"), "{head}");
            assert_eq!(ours.len(), 5);
            let stock = Stock::start(&binary, &mesh).await;
            let (_, (_, theirs)) = tokio::join!(ask_all(stock.address), report(&collector));
            assert_eq!(theirs.len(), 5);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                for field in ["kind", "name", "parentId", "shared"] {
                    let continued = theirs["traceId"] == "463ac35c9f6413ad48485a3953bb6124";
                    assert!(
                        ours[field] == theirs[field] || !continued,
                        "{direction} {field}: {ours} {theirs}"
                    );
                }
                assert!(ours["timestamp"].as_u64().unwrap() > 1_600_000_000_000_000);
                assert!(ours["duration"].as_u64().unwrap() > 0);
                assert_eq!(ours["localEndpoint"]["ipv4"], "127.0.0.1");
                for tag in [
                    "http.method",
                    "http.url",
                    "http.status_code",
                    "http.protocol",
                    "user_agent",
                    "response_flags",
                    "component",
                    "request_size",
                    "response_size",
                ] {
                    assert_eq!(ours["tags"][tag], theirs["tags"][tag], "{tag}");
                }
                let known = [
                    "traceId",
                    "id",
                    "parentId",
                    "kind",
                    "name",
                    "timestamp",
                    "duration",
                    "localEndpoint",
                    "remoteEndpoint",
                    "shared",
                    "debug",
                    "tags",
                ];
                assert!(names(ours).iter().all(|name| known.contains(name)), "{ours}");
                let strings = ours["tags"].as_object().unwrap().values().all(Value::is_string);
                assert!(strings, "{ours}");
            }
            let id = |spans: &[Value]| spans[0]["id"].as_str().unwrap() == "a2fb4a1d1a96d312";
            assert_eq!(id(&ours), id(&theirs), "{direction}: whether the caller's span is shared");
        });
    }
}

#[test]
fn a_collector_that_is_down_costs_spans_and_nothing_else() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    run(setup(address), |mesh| async move {
        for _ in 0..10 {
            ask(mesh.address, CONTINUED).await;
        }
        weft_testkit::wait::until("failed reports", PATIENCE, || async {
            let mut text = Vec::new();
            mesh.registry.render_prometheus(&mut text);
            let text = String::from_utf8(text).unwrap();
            text.contains("envoy_tracing_zipkin_reports_failed 2").then_some(())
        })
        .await;
    });
}
