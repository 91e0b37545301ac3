//! EnvoyFilters: what each operation makes of what a proxy is sent, who gets it, and what is said
//! about patches that cannot be applied. Istio's own rules, seen through the translated resources.

mod common;

use common::{gateway, shop, sidecar, snapshot, snapshot_with_findings};
use serde_json::{Value, json};
use weft_model::{Diagnostic, Severity, Snapshot};
use weft_testkit::peer;
use weft_translate::{Flavor, Interception, ProxyView, translate};
use weft_xds::{json as xds_json, type_url};

fn weft(view: ProxyView) -> ProxyView {
    ProxyView { flavor: Flavor::Weft, ..view }
}

/// An EnvoyFilter in the shop with these fields of its spec.
fn filter(name: &str, spec: &str) -> String {
    in_namespace("shop", name, spec)
}

fn in_namespace(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{}\n---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}",
        shop("")
    )
}

struct Sent {
    listeners: Vec<Value>,
    routes: Vec<Value>,
    clusters: Vec<Value>,
    findings: Vec<Diagnostic>,
}

fn sent(snapshot: &Snapshot, view: &ProxyView) -> Sent {
    let (resources, findings) = translate(snapshot, view);
    let all = |url, list: Vec<weft_xds::Resource>| {
        list.iter().map(|resource| xds_json::body_to_json(url, &resource.body)).collect()
    };
    Sent {
        listeners: all(type_url::LISTENER, resources.listeners),
        routes: all(type_url::ROUTE, resources.routes),
        clusters: all(type_url::CLUSTER, resources.clusters),
        findings,
    }
}

fn named<'a>(list: &'a [Value], name: &str) -> &'a Value {
    list.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// All HTTP connection managers of a listener.
fn managers(listener: &Value) -> Vec<&Value> {
    let chains = listener["filter_chains"].as_array().into_iter().flatten();
    chains
        .chain(Some(&listener["default_filter_chain"]))
        .flat_map(|chain| chain["filters"].as_array().into_iter().flatten())
        .filter(|filter| filter["name"] == "envoy.filters.network.http_connection_manager")
        .map(|filter| &filter["typed_config"])
        .collect()
}

fn http_filters(manager: &Value) -> Vec<&str> {
    let filters = manager["http_filters"].as_array().expect("filters");
    filters.iter().map(|filter| filter["name"].as_str().expect("a name")).collect()
}

const LUA: &str = "
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener:
        filterChain:
          filter:
            name: envoy.filters.network.http_connection_manager
            subFilter: {name: envoy.filters.http.router}
    patch:
      operation: INSERT_BEFORE
      value:
        name: lua
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code: {inline_string: 'function envoy_on_request(h) end'}
";

#[test]
fn a_filter_is_inserted_before_another_on_its_side_only() {
    let world = snapshot(&filter("lua", LUA));
    let sent = sent(&world, &sidecar());
    let inbound = managers(named(&sent.listeners, "virtualInbound"));
    assert!(!inbound.is_empty());
    for manager in inbound {
        assert_eq!(http_filters(manager), ["lua", "envoy.filters.http.router"]);
    }
    for manager in managers(named(&sent.listeners, "0.0.0.0_9080")) {
        assert!(!http_filters(manager).contains(&"lua"));
    }
    assert!(sent.findings.is_empty(), "{:?}", sent.findings);
}

#[test]
fn our_own_proxy_goes_without_a_filter_that_it_lacks_and_says_so() {
    let world = snapshot(&filter("lua", LUA));
    let sent = sent(&world, &weft(sidecar()));
    for manager in managers(named(&sent.listeners, "virtualInbound")) {
        assert_eq!(http_filters(manager), ["envoy.filters.http.router"]);
    }
    let [found] = &sent.findings[..] else { panic!("{:?}", sent.findings) };
    assert_eq!(found.code, "WEFT0005");
    assert_eq!(found.path, "spec.configPatches[0].patch.value.typed_config");
    assert!(found.message.contains("envoy.extensions.filters.http.lua.v3.Lua"), "{found}");
    assert!(found.to_string().contains("EnvoyFilter shop/lua"), "{found}");
    // Without a proxy to ask for it, too.
    let checked = weft_translate::check(&world);
    assert!(checked.iter().any(|one| one.path == found.path && one.severity == Severity::Warning));
}

#[test]
fn only_proxies_that_the_selector_picks_are_patched() {
    let spec = format!("  workloadSelector: {{labels: {{app: other}}}}{LUA}");
    let before = sent(&snapshot(&shop("")), &sidecar());
    let after = sent(&snapshot(&filter("lua", &spec)), &sidecar());
    assert_eq!(before.listeners, after.listeners);
    let spec = spec.replace("app: other", "app: reviews");
    let picked = sent(&snapshot(&filter("lua", &spec)), &sidecar());
    assert_ne!(before.listeners, picked.listeners);
    // A namespace's filter is its own; the root namespace's is everybody's.
    let elsewhere = sent(&snapshot(&in_namespace("other", "lua", LUA)), &sidecar());
    assert_eq!(before.listeners, elsewhere.listeners);
    let of_root = sent(&snapshot(&in_namespace("istio-system", "lua", LUA)), &sidecar());
    assert_eq!(of_root.listeners.len(), before.listeners.len());
    assert_ne!(before.listeners, of_root.listeners);
}

#[test]
fn proxies_are_told_apart_by_metadata_and_version() {
    let with = |wanted: &str| {
        let spec = LUA.replace(
            "context: SIDECAR_INBOUND",
            &format!("context: SIDECAR_INBOUND\n      proxy: {wanted}"),
        );
        snapshot(&filter("lua", &spec))
    };
    let mut view = sidecar();
    view.metadata = std::sync::Arc::new(
        [("ISTIO_VERSION".to_owned(), "1.28.1".to_owned()), ("tier".to_owned(), "gold".to_owned())]
            .into(),
    );
    let has = |world: &Snapshot, view: &ProxyView| {
        let sent = sent(world, view);
        managers(named(&sent.listeners, "virtualInbound"))
            .iter()
            .any(|manager| http_filters(manager).contains(&"lua"))
    };
    assert!(has(&with("{proxyVersion: '^1\\.28.*'}"), &view));
    assert!(!has(&with("{proxyVersion: '^1\\.27.*'}"), &view));
    assert!(!has(&with("{proxyVersion: '^1\\.28.*'}"), &sidecar()), "no version is no match");
    assert!(has(&with("{metadata: {tier: gold}}"), &view));
    assert!(!has(&with("{metadata: {tier: silver}}"), &view));
}

#[test]
fn fields_of_the_connection_manager_are_merged() {
    let spec = "
  configPatches:
  - applyTo: NETWORK_FILTER
    match:
      context: GATEWAY
      listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: MERGE
      value:
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          server_name: shop
          xff_num_trusted_hops: 2
          common_http_protocol_options: {idle_timeout: 30s, max_headers_count: 50}
          http_protocol_options: {default_host_for_http_10: shop.example}
          add_user_agent: true
";
    let world = snapshot(&in_namespace("istio-system", "hcm", spec));
    let stock = sent(&world, &gateway());
    let [manager] = managers(&stock.listeners[0])[..] else { panic!("{:#?}", stock.listeners) };
    assert_eq!(manager["server_name"], "shop");
    assert_eq!(manager["xff_num_trusted_hops"], 2);
    assert_eq!(manager["common_http_protocol_options"]["idle_timeout"], "30s");
    assert_eq!(manager["http_protocol_options"]["default_host_for_http_10"], "shop.example");
    assert_eq!(manager["http_protocol_options"]["accept_http_10"], true, "what was there stays");
    assert_eq!(manager["add_user_agent"], true);
    let own = sent(&world, &weft(gateway()));
    let manager = managers(&own.listeners[0])[0];
    assert_eq!(manager["server_name"], "shop");
    assert_eq!(manager["common_http_protocol_options"]["max_headers_count"], 50);
    assert_eq!(manager["add_user_agent"], Value::Null);
    let paths: Vec<&str> = own.findings.iter().map(|found| &*found.path).collect();
    assert_eq!(paths, ["spec.configPatches[0].patch.value.typed_config.add_user_agent"]);
}

#[test]
fn clusters_are_matched_merged_added_and_removed() {
    let spec = "
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND, cluster: {service: reviews.shop.svc.cluster.local, portNumber: 9080}}
    patch:
      operation: MERGE
      value:
        connect_timeout: 0.25s
        upstream_connection_options: {tcp_keepalive: {keepalive_time: 60}}
  - applyTo: CLUSTER
    match: {context: SIDECAR_INBOUND, cluster: {service: reviews.shop.svc.cluster.local}}
    patch: {operation: MERGE, value: {connect_timeout: 3s}}
  - applyTo: CLUSTER
    patch:
      operation: ADD
      value:
        name: limits
        type: STRICT_DNS
        connect_timeout: 1s
        load_assignment:
          cluster_name: limits
          endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: limits.example, port_value: 8081}}}}]}]
  - applyTo: CLUSTER
    match: {cluster: {name: BlackHoleCluster}}
    patch: {operation: REMOVE}
  - applyTo: CLUSTER
    patch: {operation: ADD, value: {name: PassthroughCluster, type: STATIC}}
";
    let world = snapshot(&filter("clusters", spec));
    let sent = sent(&world, &sidecar());
    let reviews = named(&sent.clusters, "outbound|9080||reviews.shop.svc.cluster.local");
    assert_eq!(reviews["connect_timeout"], "0.250s");
    assert_eq!(reviews["upstream_connection_options"]["tcp_keepalive"]["keepalive_time"], 60);
    assert_eq!(named(&sent.clusters, "inbound|9080||")["connect_timeout"], "3s");
    assert_eq!(named(&sent.clusters, "limits")["type"], "STRICT_DNS");
    assert!(sent.clusters.iter().all(|cluster| cluster["name"] != "BlackHoleCluster"));
    let [found] = &sent.findings[..] else { panic!("{:?}", sent.findings) };
    assert_eq!((found.code, &*found.path), ("WEFT0102", "spec.configPatches[4].patch"));
}

#[test]
fn virtual_hosts_and_routes_are_patched_wherever_they_are() {
    let spec = "
  configPatches:
  - applyTo: VIRTUAL_HOST
    match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {name: 'reviews.shop.svc.cluster.local:9080'}}}
    patch: {operation: MERGE, value: {request_headers_to_add: [{header: {key: x-via, value: mesh}}]}}
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_INBOUND, routeConfiguration: {portNumber: 9080, vhost: {name: 'inbound|http|9080', route: {action: ANY}}}}
    patch: {operation: MERGE, value: {route: {timeout: 7s}}}
  - applyTo: ROUTE_CONFIGURATION
    match: {context: SIDECAR_OUTBOUND}
    patch: {operation: MERGE, value: {response_headers_to_remove: [x-secret]}}
";
    let world = snapshot(&filter("routes", spec));
    let sent = sent(&world, &sidecar());
    let routes = named(&sent.routes, "9080");
    assert_eq!(routes["response_headers_to_remove"], json!(["x-secret"]));
    let hosts = routes["virtual_hosts"].as_array().unwrap();
    let reviews = named(hosts, "reviews.shop.svc.cluster.local:9080");
    assert_eq!(reviews["request_headers_to_add"][0]["header"]["key"], "x-via");
    for manager in managers(named(&sent.listeners, "virtualInbound")) {
        let route = &manager["route_config"]["virtual_hosts"][0]["routes"][0];
        let wanted = manager["route_config"]["name"] == "inbound|9080||";
        assert_eq!(route["route"]["timeout"] == "7s", wanted, "{route}");
    }
    let spec = "
  configPatches:
  - applyTo: HTTP_ROUTE
    match: {context: GATEWAY, routeConfiguration: {portNumber: 80, vhost: {name: '*:80', route: {name: first}}}}
    patch:
      operation: INSERT_BEFORE
      value: {name: closed, match: {prefix: /closed}, direct_response: {status: 403}}
  - applyTo: VIRTUAL_HOST
    match: {context: GATEWAY}
    patch: {operation: ADD, value: {name: again, domains: ['*']}}
";
    let world = snapshot(&in_namespace("istio-system", "edge", spec));
    let edge = sent_gateway(&world);
    let host = &edge.routes[0]["virtual_hosts"][0];
    let names: Vec<_> = host["routes"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["closed", "first"], "{host:#}");
    assert_eq!(edge.routes[0]["virtual_hosts"].as_array().unwrap().len(), 1);
    assert!(edge.findings.iter().any(|found| found.code == "WEFT0102"), "{:?}", edge.findings);
}

fn sent_gateway(world: &Snapshot) -> Sent {
    sent(world, &gateway())
}

#[test]
fn a_bad_patch_is_named_and_the_others_apply() {
    let spec = "
  configPatches:
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {connect_timeout: soon}}
  - applyTo: HTTP_FILTER
    patch: {operation: INSERT_FIRST, value: {name: x, typed_config: {'@type': type.googleapis.com/no.Such}}}
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {conect_timeout: 1s, respect_dns_ttl: true}}
  - applyTo: BOOTSTRAP
    patch: {operation: MERGE, value: {}}
";
    let (world, findings) = snapshot_with_findings(&filter("bad", spec));
    assert!(findings.iter().all(|found| !found.is_error()), "{findings:?}");
    let found: Vec<(Severity, &str, String)> = weft_translate::check(&world)
        .into_iter()
        .map(|one| (one.severity, one.code, one.path))
        .collect();
    let at = |index: usize, rest: &str| format!("spec.configPatches[{index}].{rest}");
    assert_eq!(
        found[..4],
        [
            (Severity::Error, "IST0106", at(0, "patch.value.connect_timeout")),
            (Severity::Error, "IST0106", at(1, "patch.value.typed_config.@type")),
            (Severity::Warning, "IST0133", at(2, "patch.value.conect_timeout")),
            (Severity::Warning, "WEFT0005", at(3, "applyTo")),
        ]
    );
    let sent = sent(&world, &sidecar());
    let reviews = named(&sent.clusters, "outbound|9080||reviews.shop.svc.cluster.local");
    assert_eq!(reviews["respect_dns_ttl"], true);
}

#[test]
fn root_namespace_first_then_priority() {
    let one = |namespace: &str, name: &str, priority: i32| {
        format!(
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, \
             namespace: {namespace}}}\nspec:\n  priority: {priority}{}",
            LUA.replace("name: lua", &format!("name: {name}"))
        )
    };
    let yaml = format!(
        "{}\n{}{}{}",
        shop(""),
        one("shop", "late", 5),
        one("shop", "early", -5),
        one("istio-system", "root", 9)
    );
    let sent = sent(&snapshot(&yaml), &sidecar());
    let manager = managers(named(&sent.listeners, "virtualInbound"))[0];
    assert_eq!(http_filters(manager), ["root", "early", "late", "envoy.filters.http.router"]);
}

#[test]
fn an_extension_config_reaches_the_filter_that_discovers_it() {
    let spec = "
  configPatches:
  - applyTo: EXTENSION_CONFIG
    match: {context: SIDECAR_INBOUND}
    patch:
      operation: ADD
      value:
        name: limiter
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
          max_request_bytes: 1024
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: INSERT_FIRST
      value: {name: limiter, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer]}}
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND}
    patch:
      operation: INSERT_FIRST
      value: {name: nobody, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer]}}
";
    let world = snapshot(&filter("discovered", spec));
    let sent = sent(&world, &sidecar());
    let manager = managers(named(&sent.listeners, "virtualInbound"))[0];
    assert_eq!(http_filters(manager), ["limiter", "envoy.filters.http.router"]);
    assert_eq!(manager["http_filters"][0]["typed_config"]["max_request_bytes"], 1024);
    assert!(
        sent.findings.iter().any(|f| f.path == "spec.configPatches[2].patch"),
        "{:?}",
        sent.findings
    );
}

/// A filter for everything that people patch, validated by stock Envoy itself and lowered by ours.
#[test]
fn stock_envoy_and_our_own_proxy_accept_what_comes_out() {
    let world =
        snapshot(&format!("{}\n---\n{}", shop(""), include_str!("data/envoy-filters.yaml")));
    let errors: Vec<_> =
        weft_translate::check(&world).into_iter().filter(Diagnostic::is_error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for view in [sidecar(), gateway()] {
        let lowered = sent(&world, &weft(view.clone()));
        assert!(lowered.findings.iter().all(|found| !found.is_error()));
        let (resources, _) = translate(&world, &weft(view.clone()));
        let with_url = |url: &'static str, list: Vec<weft_xds::Resource>| {
            list.into_iter().map(move |resource| (url, resource))
        };
        for (url, resource) in with_url(type_url::LISTENER, resources.listeners)
            .chain(with_url(type_url::ROUTE, resources.routes))
            .chain(with_url(type_url::CLUSTER, resources.clusters))
        {
            let any = weft_xds::pb::google::protobuf::Any {
                type_url: url.to_owned(),
                value: resource.body.to_vec(),
            };
            if let Err(error) = weft_traffic::lower::any(&any) {
                panic!("{error}");
            }
        }
        let Some(envoy) = peer::envoy("stock_envoy_and_our_own_proxy_accept") else { continue };
        let captured = ProxyView { interception: Interception::Redirect, ..view };
        assert_eq!(common::envoy::validate(&envoy, &world, &captured), Ok(()));
    }
}

/// Istio's sample, unchanged but for the place, at a workload whose service has port 8000.
#[test]
fn istios_local_rate_limit_is_our_own_proxys_too() {
    let Some(data) = peer::data("istios_local_rate_limit_is_our_own_proxys_too") else { return };
    let sample = data.join("samples/ratelimit/local-rate-limit-service.yaml");
    let sample = std::fs::read_to_string(sample).expect("the sample");
    let sample = sample.split("\n---").next().expect("a document");
    let workload = "apiVersion: v1\nkind: Service\nmetadata: {name: page, namespace: shop}\n\
        spec: {clusterIP: 10.1.9.9, selector: {app: productpage}, \
        ports: [{name: http, port: 8000, targetPort: 9080}]}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: page-0, namespace: shop, labels: {app: productpage}}\n\
        spec: {containers: [{name: app}]}\nstatus: {podIP: 127.2.0.9, phase: Running}";
    let world = snapshot(&format!("{sample}\n---\n{workload}"));
    let view = common::view(
        weft_translate::ProxyKind::Sidecar,
        "shop",
        "page-0",
        &[("app", "productpage")],
    );
    let sent = sent(&world, &weft(view.clone()));
    assert!(sent.findings.is_empty(), "{:?}", sent.findings);
    let inbound = managers(named(&sent.listeners, "virtualInbound"));
    let limited = inbound.iter().filter(|manager| {
        let routes = &manager["route_config"]["virtual_hosts"][0]["routes"][0];
        let limit = &routes["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"];
        limit["descriptors"][0]["token_bucket"]["max_tokens"] == 10
    });
    assert!(limited.count() > 0);
    assert!(
        inbound.iter().all(|m| http_filters(m).contains(&"envoy.filters.http.local_ratelimit"))
    );
    let tables = common::land::tables(&world, &weft(view)).expect("our proxy takes it");
    assert!(tables.listeners().any(|listener| &*listener.name == "virtualInbound"));
}
