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
        view: None,
        values: &[],
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
        view: None,
        values: &[],
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

fn samples(text: &str, name: &str) -> Vec<String> {
    let start = format!("{name}{{");
    text.lines().filter(|line| line.starts_with(&start)).map(str::to_owned).collect()
}

#[test]
fn pods_of_one_workload_are_one_series() {
    let registry = Registry::new();
    let shard = registry.shard();
    let (destination, service) = (peer("servicea-v1"), service());
    for pod in ["web-1", "web-2"] {
        let source = Arc::new(PeerInfo { name: pod.into(), ..(*peer("web")).clone() });
        shard.request(&labels(&source, &destination, &service), ok(), &Amounts::default());
    }
    assert_eq!(value(&text(&registry), "istio_requests_total", &[]), "2");
    assert_eq!(registry.series(), 1);
}

#[test]
fn a_view_drops_metrics_and_hides_and_adds_labels() {
    let registry = Registry::new();
    let shard = registry.shard();
    let mut view = View::default();
    view.set_dropped(Metric::RequestBytes, true);
    for metric in Metric::ALL {
        view.remove(metric, "source_workload");
    }
    view.remove(Metric::Duration, "response_code");
    view.set(Metric::Requests, "destination_version", 0);
    view.set(Metric::Requests, "method", 1);
    let view = Arc::new(view);
    let (destination, service) = (peer("servicea-v1"), service());
    let values = ["v9", "GET"].map(Box::from);
    for (source, code) in [("web", 200), ("app", 200), ("app", 503)] {
        let source = peer(source);
        let labels = RequestLabels {
            view: Some(&view),
            values: &values,
            ..labels(&source, &destination, &service)
        };
        shard.request(&labels, Outcome { code, ..ok() }, &Amounts::default());
    }
    // Callers that no metric tells apart take no series of their own.
    assert_eq!(registry.series(), 2);
    let text = text(&registry);
    let ok = ["response_code=\"200\"", "destination_version=\"v9\"", "method=\"GET\""];
    assert_eq!(value(&text, "istio_requests_total", &ok), "2");
    assert_eq!(samples(&text, "istio_requests_total").len(), 2);
    assert!(!text.contains("source_workload="), "{text}");
    assert!(!text.contains("istio_request_bytes"), "{text}");
    // What one metric alone hides is added up in it.
    assert_eq!(value(&text, "istio_request_duration_milliseconds_count", &[]), "3");
    assert_eq!(samples(&text, "istio_response_bytes_count").len(), 2);
}

#[test]
fn a_change_of_view_leaves_no_series_twice() {
    let registry = Registry::new();
    let shard = registry.shard();
    let (source, destination, service) = (peer("web"), peer("servicea-v1"), service());
    let plain = labels(&source, &destination, &service);
    shard.request(&plain, ok(), &Amounts::default());
    let mut view = View::default();
    view.set_dropped(Metric::ResponseBytes, true);
    let view = Arc::new(view);
    shard.request(&RequestLabels { view: Some(&view), ..plain }, ok(), &Amounts::default());
    let text = text(&registry);
    assert_eq!(value(&text, "istio_requests_total", &[]), "2");
    assert_eq!(value(&text, "istio_response_bytes_count", &[]), "1");
}

#[test]
fn idle_series_are_forgotten_and_make_room() {
    let registry =
        Registry::with_budget(Budget { istio_series_max: 2, family_series_max: 2, hosts_max: 2 });
    let (one, two) = (registry.shard(), registry.shard());
    let (destination, service) = (peer("servicea-v1"), service());
    let (web, app, late) = (peer("web"), peer("app"), peer("late"));
    let count = |shard: &Shard, source| {
        shard.request(&labels(source, &destination, &service), ok(), &Amounts::default());
    };
    let requests = |source| {
        let text = text(&registry);
        let part = format!("source_workload=\"{source}\"");
        let found = samples(&text, "istio_requests_total");
        let found: Vec<_> = found.iter().filter(|line| line.contains(&part)).collect();
        assert!(found.len() < 2, "{text}");
        found.first().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
    };
    [&one, &two].into_iter().for_each(|shard| count(shard, &web));
    count(&one, &app);
    count(&one, &late);
    assert_eq!((requests("web"), requests("late"), requests("other")), (Some(2), None, Some(1)));
    // The first call sees that something was counted, the second that nothing was since.
    let sweep = || [&one, &two].into_iter().for_each(|shard| _ = shard.sweep(1));
    sweep();
    count(&two, &web);
    sweep();
    // What one worker counted stays while another goes on counting; the rest makes room.
    assert_eq!((requests("web"), requests("app"), registry.evictions()), (Some(3), None, 1));
    count(&one, &late);
    count(&one, &web);
    assert_eq!((requests("web"), requests("late"), requests("other")), (Some(4), Some(1), Some(1)));
    sweep();
    sweep();
    assert_eq!((requests("web"), requests("late"), requests("other")), (None, None, Some(1)));
    assert_eq!(registry.series(), 1);
}

#[test]
fn an_open_connection_keeps_its_series() {
    let registry = Registry::new();
    let shard = registry.shard();
    let (source, destination, service) = (peer("web"), peer("db"), service());
    let flow = shard.tcp(&TcpLabels {
        reporter: Reporter::Source,
        source: &source,
        destination: &destination,
        service: &service,
        security: SecurityPolicy::Unknown,
        flags: ResponseFlags::NONE,
        view: None,
        values: &[],
    });
    flow.opened();
    (0..4).for_each(|_| _ = shard.sweep(1));
    flow.closed();
    assert_eq!(value(&text(&registry), "istio_tcp_connections_closed_total", &[]), "1");
    drop(flow);
    (0..4).for_each(|_| _ = shard.sweep(1));
    assert!(!text(&registry).contains("istio_tcp"));
}

#[test]
fn open_metrics_has_exemplars_and_counters_by_its_own_names() {
    let registry = Registry::new();
    registry.counter("weft_a_total", "Help.", &[]).inc();
    registry.counter("envoy_b", "", &[]).inc();
    let shard = registry.shard();
    let (source, destination, service) = (peer("web"), peer("servicea-v1"), service());
    let trace = trace::TraceId { high: 1, low: 0xab, is_128: true };
    let amounts = Amounts {
        duration: Duration::from_micros(1500),
        exemplar: Some(Exemplar { trace, at_ms: 1_500_000_000_123 }),
        ..Amounts::default()
    };
    shard.request(&labels(&source, &destination, &service), ok(), &amounts);
    let text: Vec<u8> = registry.scrape_as(Exposition::OpenMetrics).flatten().collect();
    let text = String::from_utf8(text).unwrap();
    for line in [
        "# HELP weft_a Help.\n# TYPE weft_a counter\nweft_a_total 1\n",
        "# TYPE envoy_b unknown\nenvoy_b 1\n",
        "# TYPE istio_requests counter\nistio_requests_total{",
        "le=\"5\"} 1 # {trace_id=\"000000000000000100000000000000ab\"} 1.5 1500000000.123\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(text.matches(" # {").count(), 1, "{text}");
}
