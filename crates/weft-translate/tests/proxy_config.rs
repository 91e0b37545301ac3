//! MeshConfig, ProxyConfig resources and the annotation `proxy.istio.io/config`: what they make of
//! connection managers, routes and listeners, in Istio's order, and what is said of the rest.

mod common;

use common::{envoy, gateway, sidecar, snapshot, snapshot_with_findings, view};
use serde_json::Value;
use weft_model::Snapshot;
use weft_testkit::peer;
use weft_translate::{Flavor, ProxyKind, ProxyView, translate};
use weft_xds::{json as xds_json, type_url};

fn world(mesh: &str, annotation: &str) -> Snapshot {
    snapshot(&yaml(mesh, annotation))
}

fn yaml(mesh: &str, annotation: &str) -> String {
    let shop = common::shop(annotation);
    match mesh {
        "" => shop,
        mesh => format!("{shop}\n---\n{mesh}"),
    }
}

fn listeners(world: &Snapshot, view: &ProxyView) -> Vec<Value> {
    let (resources, _) = translate(world, view);
    let listeners = resources.listeners.iter();
    listeners.map(|one| xds_json::body_to_json(type_url::LISTENER, &one.body)).collect()
}

/// The first HTTP connection manager of a listener.
fn manager<'a>(listeners: &'a [Value], name: &str) -> &'a Value {
    let listener = listeners.iter().find(|one| one["name"] == name).expect("the listener");
    let chains = listener["filter_chains"].as_array().expect("chains").iter();
    let mut filters = chains.flat_map(|chain| chain["filters"].as_array().expect("filters"));
    let http = filters.find(|f| f["name"] == "envoy.filters.network.http_connection_manager");
    &http.expect("a connection manager")["typed_config"]
}

#[test]
fn headers_that_proxies_add_are_the_meshs_choice() {
    let mesh = "
defaultConfig:
  proxyHeaders:
    server: {value: shop}
    requestId: {disabled: true}
    attemptCount: {disabled: true}
    forwardedClientCert: SANITIZE_SET
    setCurrentClientCertDetails: {subject: false, cert: true}
    envoyDebugHeaders: {disabled: true}
    preserveHttp1HeaderCase: false
    xForwardedPort: {enabled: true}
";
    let world = world(mesh, "");
    let all = listeners(&world, &sidecar());
    let inbound = manager(&all, "virtualInbound");
    assert_eq!(inbound["server_name"], "shop");
    assert_eq!(inbound["generate_request_id"], false);
    assert_eq!(inbound["forward_client_cert_details"], "SANITIZE_SET");
    let details = &inbound["set_current_client_cert_details"];
    assert_eq!((&details["subject"], &details["cert"]), (&Value::from(false), &Value::from(true)));
    assert_eq!(inbound["append_x_forwarded_port"], true);
    assert_eq!(inbound["http_protocol_options"]["header_key_format"], Value::Null);
    let router = inbound["http_filters"].as_array().expect("filters").last().expect("a router");
    assert_eq!(router["typed_config"]["suppress_envoy_headers"], true);
    let (resources, _) = translate(&world, &sidecar());
    for routes in &resources.routes {
        let routes = xds_json::body_to_json(type_url::ROUTE, &routes.body);
        for host in routes["virtual_hosts"].as_array().expect("hosts") {
            assert_eq!(host["include_request_attempt_count"], Value::Null);
        }
    }
    let Some(envoy) = peer::envoy("headers_that_proxies_add_are_the_meshs_choice") else { return };
    assert_eq!(envoy::validate(&envoy, &world, &sidecar()), Ok(()));
}

#[test]
fn a_gateways_place_and_path_normalization() {
    let mesh = "
pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}
defaultConfig:
  gatewayTopology: {numTrustedProxies: 2, forwardClientCertDetails: APPEND_FORWARD, proxyProtocol: {}}
";
    let world = world(mesh, "");
    let all = listeners(&world, &gateway());
    let edge = manager(&all, all[0]["name"].as_str().expect("a name"));
    assert_eq!(edge["xff_num_trusted_hops"], 2);
    assert_eq!(edge["forward_client_cert_details"], "APPEND_FORWARD");
    assert_eq!(edge["merge_slashes"], true);
    assert_eq!(edge["path_with_escaped_slashes_action"], "UNESCAPE_AND_FORWARD");
    assert_eq!(all[0]["listener_filters"][0]["name"], "envoy.filters.listener.proxy_protocol");
    // It is the gateway's: sidecars trust nobody before them.
    let all = listeners(&world, &sidecar());
    assert_eq!(manager(&all, "virtualInbound")["xff_num_trusted_hops"], Value::Null);
}

#[test]
fn the_annotation_of_a_workload_comes_after_the_mesh() {
    let sampling = |world: &Snapshot| {
        let all = listeners(world, &sidecar());
        let of = |name: &str| manager(&all, name)["tracing"]["random_sampling"]["value"].as_f64();
        (of("virtualInbound"), of("0.0.0.0_9080"))
    };
    let mesh = "defaultConfig: {tracing: {sampling: 5}}";
    assert_eq!(sampling(&world(mesh, "")), (Some(5.0), Some(5.0)));
    let own = "tracing:\n  sampling: 50\n";
    assert_eq!(sampling(&world(mesh, own)), (Some(50.0), Some(50.0)));
    // As a proxy tells it itself, when its Pod is not known.
    let mut stranger = view(ProxyKind::Sidecar, "shop", "unknown", &[("app", "reviews")]);
    stranger.addresses = vec!["127.2.0.77".parse().expect("address")];
    stranger.metadata =
        std::sync::Arc::new([("proxy.istio.io/config".to_owned(), own.to_owned())].into());
    let all = listeners(&world(mesh, ""), &stranger);
    assert_eq!(manager(&all, "0.0.0.0_9080")["tracing"]["random_sampling"]["value"], 50.0);
}

#[test]
fn what_does_not_reach_proxies_is_told() {
    let mesh = "
defaultConfig: {concurrency: 2, proxyHeaders: {xForwardedHost: {enabled: true}}}
serviceSettings: [{settings: {clusterLocal: true}, hosts: ['*']}]
";
    let (_, findings) = snapshot_with_findings(&yaml(mesh, "concurency: 3\ndrainDuration: 5s"));
    let told = |path: &str, word: &str| {
        findings.iter().any(|found| found.path == path && found.message.contains(word))
    };
    for path in ["defaultConfig.concurrency", "defaultConfig.proxyHeaders.xForwardedHost"] {
        assert!(told(path, "not built"), "{path}: {findings:#?}");
    }
    assert!(told("serviceSettings", "not acted on"), "{findings:#?}");
    let annotation = "metadata.annotations[\"proxy.istio.io/config\"]";
    assert!(told(annotation, "concurency is unknown"), "{findings:#?}");
    assert!(told(annotation, "drainDuration is not built"), "{findings:#?}");
}

/// Where a listener's connection manager logs to, and what it filters by.
fn logs(world: &Snapshot, view: &ProxyView, listener: &str) -> Vec<(String, Option<String>)> {
    let all = listeners(world, view);
    let logs = manager(&all, listener)["access_log"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    logs.iter()
        .map(|log| {
            let target = match text(&log["typed_config"]["path"]) {
                Some(path) => path,
                None => text(&log["name"]).expect("a name"),
            };
            let filter = &log["filter"]["extension_filter"]["typed_config"]["expression"];
            (target, text(filter))
        })
        .collect()
}

fn telemetry(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn access_logs_are_asked_for_by_the_mesh_or_by_telemetry() {
    let providers = "\
extensionProviders:
- {name: files, envoyFileAccessLog: {path: /var/log/a, logFormat: {labels: {code: '%RESPONSE_CODE%'}}}}
- {name: als, envoyHttpAls: {service: reviews.shop.svc.cluster.local, port: 9080}}
- {name: otel, envoyOtelAls: {service: shop/reviews.shop.svc.cluster.local, port: 9080}}
";
    let (inbound, outbound) = ("virtualInbound", "0.0.0.0_9080");
    let of = |mesh: &str, telemetries: &[String], listener: &str| {
        let world = world(&format!("{mesh}\n---\n{}", telemetries.join("---\n")), "");
        logs(&world, &sidecar(), listener)
    };
    let plain = |target: &str| (target.to_owned(), None);
    let filtered = |target: &str, text: &str| (target.to_owned(), Some(text.to_owned()));
    let mesh = format!("accessLogFile: /dev/stderr\n{providers}");
    assert_eq!(of(&mesh, &[], outbound), [plain("/dev/stderr")]);

    let everywhere =
        telemetry("mesh", "istio-system", "{accessLogging: [{providers: [{name: envoy}]}]}");
    assert_eq!(of(&mesh, std::slice::from_ref(&everywhere), outbound), [plain("/dev/stdout")]);
    let errors = telemetry(
        "errors",
        "shop",
        "{selector: {matchLabels: {app: reviews}}, accessLogging: [{match: {mode: SERVER}, filter: {expression: response.code >= 500}}, {match: {mode: CLIENT}, disabled: true}]}",
    );
    let both = [everywhere.clone(), errors];
    assert_eq!(of(&mesh, &both, inbound), [filtered("/dev/stdout", "response.code >= 500")]);
    assert_eq!(of(&mesh, &both, outbound), []);
    let off = telemetry("quiet", "shop", "{accessLogging: [{disabled: true}]}");
    assert_eq!(of(&mesh, &[everywhere.clone(), off], inbound), []);
    let own = telemetry(
        "own",
        "shop",
        "{accessLogging: [{providers: [{name: files}, {name: als}, {name: otel}]}]}",
    );
    let names = [
        "/dev/stdout",
        "/var/log/a",
        "envoy.access_loggers.http_grpc",
        "envoy.access_loggers.open_telemetry",
    ];
    let mut found = of(&mesh, &[everywhere, own], outbound);
    found.sort();
    assert_eq!(found, names.map(plain));

    let by_default = format!("defaultProviders: {{accessLogging: [files]}}\n{providers}");
    assert_eq!(of(&by_default, &[], outbound), [plain("/var/log/a")]);
}

#[test]
fn a_stock_envoy_takes_every_access_log() {
    let Some(binary) = peer::envoy("access logs") else { return };
    let mesh = "
accessLogFile: /dev/stdout
accessLogEncoding: JSON
extensionProviders:
- {name: files, envoyFileAccessLog: {path: /dev/stdout, omitEmptyValues: true}}
- {name: als, envoyHttpAls: {service: reviews.shop.svc.cluster.local, port: 9080}}
- {name: tcp, envoyTcpAls: {service: reviews.shop.svc.cluster.local, port: 9080}}
- {name: otel, envoyOtelAls: {service: reviews.shop.svc.cluster.local, port: 9080, logFormat: {labels: {a: '%PROTOCOL%'}}}}
";
    let all = telemetry(
        "all",
        "shop",
        "{accessLogging: [{providers: [{name: envoy}, {name: files}, {name: als}, {name: tcp}, {name: otel}], filter: {expression: response.code >= 500}}]}",
    );
    for yaml in [mesh.to_owned(), format!("{mesh}\n---\n{all}")] {
        let world = world(&yaml, "");
        envoy::validate(&binary, &world, &sidecar()).unwrap();
        envoy::validate(&binary, &world, &gateway()).unwrap();
    }
}

#[test]
fn what_telemetry_gets_wrong_is_told() {
    let findings = |spec: &str| {
        let (_, findings) = snapshot_with_findings(&telemetry("t", "shop", spec));
        findings.iter().map(|one| format!("{} {}", one.path, one.message)).collect::<Vec<_>>()
    };
    let bad = findings("{accessLogging: [{filter: {expression: 'response.code >='}}]}");
    assert!(bad[0].contains("bad expression, at character 16"), "{bad:?}");
    let bad = findings("{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}");
    assert!(bad[0].contains("UPSERT needs a value"), "{bad:?}");
    let bad = findings("{tracing: [{randomSamplingPercentage: 101}]}");
    assert!(bad[0].contains("percentage"), "{bad:?}");
}

#[test]
fn spans_go_to_the_collector_that_the_mesh_or_telemetry_names() {
    let mesh = "
extensionProviders: [{name: zipkin, zipkin: {service: reviews.shop.svc.cluster.local, port: 9080}}]
";
    let of = |mesh: &str, telemetries: &[String], listener: &str| {
        let world = world(&format!("{mesh}\n---\n{}", telemetries.join("---\n")), "");
        let all = listeners(&world, &sidecar());
        let tracing = &manager(&all, listener)["tracing"];
        let cluster = &tracing["provider"]["typed_config"]["collector_cluster"];
        (tracing["random_sampling"]["value"].as_f64(), cluster.as_str().map(str::to_owned))
    };
    let (inbound, outbound) = ("virtualInbound", "0.0.0.0_9080");
    let there = || Some("outbound|9080||reviews.shop.svc.cluster.local".to_owned());
    assert_eq!(of(mesh, &[], outbound), (Some(1.0), None));
    let by_default = format!("{mesh}defaultProviders: {{tracing: [zipkin]}}\n");
    assert_eq!(of(&by_default, &[], outbound), (Some(1.0), there()));
    let address = "defaultConfig: {tracing: {sampling: 5, zipkin: {address: 'reviews.shop:9080'}}}";
    assert_eq!(of(address, &[], inbound), (Some(5.0), there()));
    assert_eq!(of(&format!("{address}\nenableTracing: false"), &[], inbound), (Some(5.0), None));
    let root = telemetry(
        "mesh",
        "istio-system",
        "{tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 10}]}",
    );
    let own = telemetry(
        "own",
        "shop",
        "{selector: {matchLabels: {app: reviews}}, tracing: [{match: {mode: SERVER}, randomSamplingPercentage: 100}, {match: {mode: CLIENT}, disableSpanReporting: true}]}",
    );
    let both = [root, own];
    assert_eq!(of(mesh, &both, inbound), (Some(100.0), there()));
    assert_eq!(of(mesh, &both, outbound), (Some(10.0), None));
}

/// Our own proxy.
fn weft() -> ProxyView {
    ProxyView { flavor: Flavor::Weft, ..sidecar() }
}

/// What becomes of the metrics on one side: by metric of the filter its configuration.
fn metrics(telemetries: &[String], listener: &str) -> Value {
    let world = world(&telemetries.join("---\n"), "");
    let all = listeners(&world, &weft());
    let filters = manager(&all, listener)["http_filters"].as_array().expect("filters");
    let stats = filters.iter().find(|filter| filter["name"] == "istio.stats");
    stats.map_or(Value::Null, |filter| filter["typed_config"]["metrics"].clone())
}

#[test]
fn metrics_are_changed_by_scope_side_and_metric() {
    let (inbound, outbound) = ("virtualInbound", "0.0.0.0_9080");
    assert_eq!(metrics(&[], inbound), Value::Null);
    let root = telemetry(
        "mesh",
        "istio-system",
        "{metrics: [{providers: [{name: prometheus}], overrides: [\
          {tagOverrides: {source_principal: {operation: REMOVE}, path: {value: request.url_path}}},\
          {match: {metric: REQUEST_SIZE}, disabled: true},\
          {match: {metric: RESPONSE_SIZE, mode: SERVER}, disabled: true}]}]}",
    );
    let everywhere = |found: &Value, name: &str| {
        let one = found.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone();
        assert_eq!(one["tags_to_remove"], serde_json::json!(["source_principal"]), "{one}");
        one
    };
    let found = metrics(std::slice::from_ref(&root), inbound);
    assert_eq!(everywhere(&found, "requests_total")["dimensions"]["path"], "request.url_path");
    let drops = |found: &Value| {
        let all = found.as_array().unwrap().iter().filter(|one| one["drop"] == true);
        all.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(drops(&found), ["request_bytes", "response_bytes"]);
    assert_eq!(drops(&metrics(std::slice::from_ref(&root), outbound)), ["request_bytes"]);
    // The narrower scope has the last word, and that alone.
    let own = telemetry(
        "own",
        "shop",
        "{metrics: [{overrides: [{match: {metric: REQUEST_SIZE}, disabled: false},\
          {match: {metric: REQUEST_COUNT}, tagOverrides: {path: {operation: REMOVE}}}]}]}",
    );
    let found = metrics(&[root, own], inbound);
    assert_eq!(drops(&found), ["response_bytes"]);
    let count = found.as_array().unwrap().iter().find(|one| one["name"] == "requests_total");
    assert_eq!(count.unwrap()["tags_to_remove"], serde_json::json!(["path", "source_principal"]));
    // What is said for another provider is not for Prometheus.
    let elsewhere = telemetry(
        "other",
        "shop",
        "{metrics: [{providers: [{name: stackdriver}], overrides: [{disabled: true}]}]}",
    );
    assert_eq!(metrics(&[elsewhere], inbound), Value::Null);
}

#[test]
fn a_preset_is_where_metrics_begin() {
    let preset = |name: &str, spec: &str| {
        telemetry("preset", "istio-system", spec).replace(
            "name: preset,",
            &format!("name: preset, annotations: {{weft/metrics: {name}}},"),
        )
    };
    let lean = metrics(&[preset("lean", "{}")], "virtualInbound");
    let one = |name: &str| lean.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
    assert_eq!(one("request_bytes")["drop"], true);
    let removed = one("request_duration_milliseconds")["tags_to_remove"].as_array().unwrap();
    assert!(removed.contains(&Value::from("response_code")), "{removed:?}");
    let removed = one("requests_total")["tags_to_remove"].as_array().unwrap();
    assert!(!removed.contains(&Value::from("response_code")), "{removed:?}");
    assert!(removed.contains(&Value::from("source_principal")), "{removed:?}");
    assert_eq!(metrics(&[preset("standard", "{}")], "virtualInbound"), Value::Null);
    let minimal = preset("minimal", "{metrics: [{overrides: [{disabled: false}]}]}");
    let minimal = metrics(&[minimal], "virtualInbound");
    assert!(minimal.as_array().unwrap().iter().all(|one| one["drop"] != true), "{minimal}");
    let (_, findings) = snapshot_with_findings(&preset("tiny", "{}"));
    assert!(findings[0].message.contains("no preset of metrics"), "{findings:?}");
}

#[test]
fn a_stock_envoys_lack_of_istios_metrics_is_told() {
    let one = telemetry("t", "shop", "{metrics: [{overrides: [{disabled: true}]}]}");
    let world = world(&one, "");
    let (_, findings) = translate(&world, &sidecar());
    let told = findings.iter().any(|one| one.path == "spec.metrics[0]");
    assert!(told, "{findings:?}");
    let (_, findings) = translate(&world, &weft());
    assert!(!findings.iter().any(|one| one.path == "spec.metrics[0]"), "{findings:?}");
}

#[test]
fn spans_go_to_open_telemetry_with_the_tags_that_are_asked_for() {
    let mesh = "
extensionProviders:
- {name: otel, opentelemetry: {service: reviews.shop.svc.cluster.local, port: 9080, maxTagLength: 99}}
- {name: http, opentelemetry: {service: reviews.shop.svc.cluster.local, port: 9080, http: {path: /v1/traces, timeout: 3s}}}
defaultProviders: {tracing: [otel]}
";
    let tracing = |telemetries: &[String], view: &ProxyView| {
        let world = world(&format!("{mesh}\n---\n{}", telemetries.join("---\n")), "");
        manager(&listeners(&world, view), "virtualInbound")["tracing"].clone()
    };
    for view in [weft(), sidecar()] {
        let found = tracing(&[], &view);
        let config = &found["provider"]["typed_config"];
        let cluster = "outbound|9080||reviews.shop.svc.cluster.local";
        assert_eq!(config["grpc_service"]["envoy_grpc"]["cluster_name"], cluster);
        assert_eq!(found["max_path_tag_length"], 99);
        let tagged = telemetry(
            "tagged",
            "shop",
            "{tracing: [{providers: [{name: http}], customTags: {a: {literal: {value: x}}, b: {header: {name: x-b, defaultValue: other}}}}]}",
        );
        let found = tracing(&[tagged], &view);
        let uri = &found["provider"]["typed_config"]["http_service"]["http_uri"];
        assert_eq!(uri["uri"], "http://reviews.shop.svc.cluster.local:9080/v1/traces");
        assert_eq!(uri["cluster"], cluster);
        assert_eq!(found["custom_tags"][0]["literal"]["value"], "x");
        assert_eq!(found["custom_tags"][1]["request_header"]["default_value"], "other");
    }
}

#[test]
fn a_stock_envoy_takes_every_tracer() {
    let Some(binary) = peer::envoy("tracers") else { return };
    for provider in [
        "opentelemetry: {service: reviews.shop.svc.cluster.local, port: 9080}",
        "opentelemetry: {service: reviews.shop.svc.cluster.local, port: 9080, http: {path: /v1/traces}}",
        "zipkin: {service: reviews.shop.svc.cluster.local, port: 9080, maxTagLength: 20}",
    ] {
        let mesh = format!(
            "extensionProviders: [{{name: one, {provider}}}]\ndefaultProviders: {{tracing: [one]}}\n"
        );
        let tags = telemetry(
            "tags",
            "shop",
            "{tracing: [{customTags: {a: {literal: {value: x}}, b: {header: {name: x-b}}, c: {environment: {name: HOME, defaultValue: other}}}}]}",
        );
        let world = world(&format!("{mesh}\n---\n{tags}"), "");
        envoy::validate(&binary, &world, &sidecar()).unwrap();
    }
}
