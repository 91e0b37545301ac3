use super::*;
use std::sync::Arc;
use std::time::Duration;

fn peer(workload: &str) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        workload: workload.into(),
        namespace: "default".into(),
        ..PeerInfo::default()
    })
}

fn service() -> Arc<ServiceInfo> {
    Arc::new(ServiceInfo {
        host: "servicea.default.svc.cluster.local".into(),
        name: "servicea".into(),
        namespace: "default".into(),
    })
}

fn labels<'a>(
    source: &'a Arc<PeerInfo>,
    destination: &'a Arc<PeerInfo>,
    service: &'a Arc<ServiceInfo>,
) -> RequestLabels<'a> {
    RequestLabels {
        reporter: Reporter::Destination,
        source,
        destination,
        service,
        protocol: Protocol::Http,
        security: SecurityPolicy::MutualTls,
    }
}

fn ok() -> Outcome {
    Outcome { code: 200, grpc_status: None, flags: ResponseFlags::NONE }
}

fn text(registry: &Registry) -> String {
    let mut out = Vec::new();
    registry.render_prometheus(&mut out);
    String::from_utf8(out).unwrap()
}

/// The value of the one line that starts with `name{` and has all `parts`.
fn value(text: &str, name: &str, parts: &[&str]) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .collect();
    assert_eq!(lines.len(), 1, "{name} {parts:?} in\n{text}");
    lines[0].rsplit_once(' ').unwrap().1.to_owned()
}

#[test]
fn requests_of_all_workers_add_up() {
    let registry = Registry::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let shard = registry.shard();
                // Fresh Arcs on purpose: equal content is the same series.
                for _ in 0..100 {
                    let (source, destination, service) =
                        (peer("web"), peer("servicea-v1"), service());
                    let amounts = Amounts {
                        duration: Duration::from_micros(1500),
                        request_bytes: 10,
                        response_bytes: 11,
                        ..Amounts::default()
                    };
                    shard.request(&labels(&source, &destination, &service), ok(), &amounts);
                }
            });
        }
    });
    let text = text(&registry);
    assert_eq!(value(&text, "istio_requests_total", &[]), "300");
    let line = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
    for part in [
        "reporter=\"destination\"",
        "source_workload=\"web\"",
        "source_principal=\"unknown\"",
        "destination_workload=\"servicea-v1\"",
        "destination_service=\"servicea.default.svc.cluster.local\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let bucket = "istio_request_duration_milliseconds_bucket";
    assert_eq!(value(&text, bucket, &["le=\"1\""]), "0");
    assert_eq!(value(&text, bucket, &["le=\"5\""]), "300");
    assert_eq!(value(&text, bucket, &["le=\"3600000\""]), "300");
    assert_eq!(value(&text, "istio_request_duration_milliseconds_sum", &[]), "450");
    assert_eq!(value(&text, "istio_request_bytes_bucket", &["le=\"10\""]), "300");
    assert_eq!(value(&text, "istio_response_bytes_bucket", &["le=\"10\""]), "0");
    assert_eq!(value(&text, "istio_response_bytes_sum", &[]), "3300");
}

#[test]
fn past_the_budget_totals_stay_exact() {
    let registry =
        Registry::with_budget(Budget { istio_series_max: 10, family_series_max: 2, hosts_max: 2 });
    let shard = registry.shard();
    let (destination, service) = (peer("servicea-v1"), service());
    for round in 0..100 {
        let source = peer(&format!("client-{round}"));
        let code = if round % 2 == 0 { 200 } else { 503 };
        shard.request(
            &labels(&source, &destination, &service),
            Outcome { code, ..ok() },
            &Amounts::default(),
        );
    }
    let text = text(&registry);
    let total: u64 = text
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 100);
    let other = &["source_workload=\"other\""];
    assert_eq!(value(&text, "istio_requests_total", &[other[0], "response_code=\"2xx\""]), "45");
    assert_eq!(value(&text, "istio_requests_total", &[other[0], "response_code=\"5xx\""]), "45");

    for name in ["a", "b", "c", "d"] {
        registry.counter("weft_test_total", "", &[("name", name)]).inc();
    }
    let mut out = Vec::new();
    registry.render_prometheus(&mut out);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(value(&text, "weft_test_total", &["other"]), "2");
}

#[test]
fn grpc_and_tcp_families() {
    let registry = Registry::new();
    let shard = registry.shard();
    let (source, destination, service) = (peer("web"), peer("serviceb-v1"), service());
    let grpc =
        RequestLabels { protocol: Protocol::Grpc, ..labels(&source, &destination, &service) };
    let outcome = Outcome { grpc_status: Some(14), ..ok() };
    let amounts = Amounts { request_messages: 1, response_messages: 5, ..Amounts::default() };
    shard.request(&grpc, outcome, &amounts);
    let tcp = shard.tcp(&TcpLabels {
        reporter: Reporter::Source,
        source: &source,
        destination: &destination,
        service: &service,
        security: SecurityPolicy::Unknown,
        flags: ResponseFlags::NONE,
    });
    tcp.opened();
    tcp.sent(100);
    tcp.received(7);
    tcp.closed();
    let text = text(&registry);
    assert_eq!(value(&text, "istio_requests_total", &["grpc_response_status=\"14\""]), "1");
    assert_eq!(value(&text, "istio_response_messages_total", &["grpc"]), "5");
    assert_eq!(value(&text, "istio_tcp_sent_bytes_total", &["request_protocol=\"tcp\""]), "100");
    assert_eq!(value(&text, "istio_tcp_received_bytes_total", &[]), "7");
    assert_eq!(value(&text, "istio_tcp_connections_opened_total", &[]), "1");
    assert_eq!(value(&text, "istio_tcp_connections_closed_total", &[]), "1");
}

#[test]
fn generic_families() {
    let registry = Registry::new();
    registry.counter("pilot_xds_pushes", "Pushes by type.", &[("type", "cds")]).add(3);
    registry.gauge("pilot_services", "Known services.", &[]).set(4);
    registry.gauge_fn("weft_build", "", &[("version", "0.1.0")], || 1.0);
    let time = registry.histogram("pilot_xds_push_time", "", &[0.1, 1.0], &[("type", "cds")]);
    time.observe(0.1);
    time.observe(3.0);
    let shard = registry.shard();
    let local = shard.counter("pilot_xds_pushes", "", &[("type", "cds")]);
    local.inc();
    let expected = "\
# HELP pilot_services Known services.
# TYPE pilot_services gauge
pilot_services 4
# TYPE pilot_xds_push_time histogram
pilot_xds_push_time_bucket{type=\"cds\",le=\"0.1\"} 1
pilot_xds_push_time_bucket{type=\"cds\",le=\"1\"} 1
pilot_xds_push_time_bucket{type=\"cds\",le=\"+Inf\"} 2
pilot_xds_push_time_sum{type=\"cds\"} 3.1
pilot_xds_push_time_count{type=\"cds\"} 2
# HELP pilot_xds_pushes Pushes by type.
# TYPE pilot_xds_pushes counter
pilot_xds_pushes{type=\"cds\"} 4
# TYPE weft_build gauge
weft_build{version=\"0.1.0\"} 1
";
    assert_eq!(text(&registry), expected);
}
