//! The Gateway API, from YAML through translation and lowering into the real routing code; each
//! world is validated by stock Envoy too when `WEFT_EVERY_WORLD=1` (all features together always
//! are, in `envoy.rs`). The cases are those the API's conformance suite asks for.

mod common;

use std::fmt::Write as _;

use common::land::{land, tables, tcp_clusters};
use common::{envoy, snapshot, view};
use weft_model::Snapshot;
use weft_testkit::peer;
use weft_traffic::{ConnInfo, Network, Tables};
use weft_translate::{Flavor, ProxyKind, ProxyView};

const SERVICES: &str = include_str!("data/services.yaml");

/// A proxy made for Gateway `web` of namespace `shop`.
fn edge() -> ProxyView {
    let labels = [("gateway.networking.k8s.io/gateway-name", "web")];
    let mut edge = view(ProxyKind::Gateway, "shop", "web-0", &labels);
    edge.flavor = Flavor::Weft;
    edge
}

/// A client of namespace `shop` or another.
fn client(namespace: &str) -> ProxyView {
    let mut client = view(ProxyKind::Sidecar, namespace, "client-0", &[("app", "client")]);
    client.flavor = Flavor::Weft;
    client
}

fn world(yaml: &str) -> Snapshot {
    snapshot(&format!("{SERVICES}\n---\n{yaml}"))
}

/// Our proxy's tables, after stock Envoy had a look at the same world.
fn built(yaml: &str, view: &ProxyView) -> Tables {
    let world = world(yaml);
    let every = std::env::var("WEFT_EVERY_WORLD").is_ok_and(|value| value == "1");
    if let Some(path) = every.then(|| peer::envoy("gateway_api")).flatten() {
        let stock = ProxyView { flavor: Flavor::Envoy, ..view.clone() };
        assert_eq!(envoy::validate(&path, &world, &stock), Ok(()));
    }
    tables(&world, view).unwrap_or_else(|refused| panic!("our proxy would refuse: {refused}"))
}

/// `cases`: a request, `=>`, where it lands; one per line.
fn check(yaml: &str, view: &ProxyView, routes: &str, cases: &str) {
    let tables = built(yaml, view);
    let mut landed = String::new();
    let mut expected = String::new();
    for line in cases.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (request, expect) = line.split_once("=>").expect("request => where");
        let request = request.trim();
        let _ = writeln!(expected, "{request} => {}", expect.trim());
        let where_to = land(&tables, routes, request, 0).replace(" retries=2", "");
        let _ = writeln!(landed, "{request} => {}", where_to.replace("9080||", ""));
    }
    assert_eq!(landed, expected);
}

/// Gateway `web` with these listeners.
fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{gatewayClassName: istio, listeners: [{listeners}]}}\n"
    )
}

const HTTP: &str =
    "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";

/// A route on Gateway `web`, with these hostnames and rules.
fn route(name: &str, hostnames: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{name: web}}]\n  hostnames: [{hostnames}]\n  rules:\n{rules}\n"
    )
}

/// One rule to `reviews` with these matches, in the shape [`route`] wants.
fn to(service: &str, matches: &str) -> String {
    format!("  - {{matches: [{matches}], backendRefs: [{{name: {service}, port: 9080}}]}}\n")
}

fn edge_with(rules: &str) -> String {
    gateway(HTTP) + &route("r", "", rules)
}

#[test]
fn paths_match_whole_elements_and_the_longest_prefix_wins() {
    let rules = to("reviews", "{path: {value: /}}")
        + &to("ratings", "{path: {value: /a}}")
        + &to("productpage", "{path: {value: /a/b/}}")
        + &to("far", "{path: {type: Exact, value: /a/b}}");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: away}\nspec: {from: [{group: gateway.networking.k8s.io, \
                 kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}\n";
    let rules = rules.replace("{name: far,", "{name: far, namespace: away,");
    check(
        &(edge_with(&rules) + grant),
        &edge(),
        "http.80",
        "
        GET http://x/ => reviews.shop
        GET http://x/ab => reviews.shop
        GET http://x/a => ratings.shop
        GET http://x/a/ => ratings.shop
        GET http://x/a/c?q=1 => ratings.shop
        GET http://x/a/b => far.away
        GET http://x/a/b/ => productpage.shop
        GET http://x/a/b/c => productpage.shop
        GET http://x/a/bc => ratings.shop
        GET http://x/A => reviews.shop
        ",
    );
}

#[test]
fn precedence_is_path_then_method_then_headers_then_queries() {
    let header = |name: &str| format!("{{name: {name}, value: v}}");
    let rules = to("reviews", "{path: {value: /p}}")
        + &to(
            "ratings",
            &format!("{{path: {{value: /p}}, headers: [{}, {}]}}", header("a"), header("b")),
        )
        + &to("productpage", "{path: {value: /p}, method: GET}")
        + &to(
            "multi",
            &format!(
                "{{path: {{value: /p}}, headers: [{}], queryParams: [{}]}}",
                header("a"),
                header("q")
            ),
        )
        .replace("9080", "80")
        + &to("mystery", "{path: {type: RegularExpression, value: '/p.*x'}, method: PUT}")
            .replace("9080", "7000");
    check(
        &edge_with(&rules),
        &edge(),
        "http.80",
        "
        POST http://x/p => reviews.shop
        GET http://x/p a=v b=v => productpage.shop
        POST http://x/p?q=v a=v b=v => ratings.shop
        POST http://x/p?q=v a=v => 80||multi.shop
        PUT http://x/px => 7000||mystery.shop
        PUT http://x/p/x => reviews.shop
        POST http://x/q => 404 no route
        ",
    );
}

#[test]
fn among_routes_the_oldest_then_the_first_by_name_wins() {
    let older = route("zz", "", &to("ratings", "{path: {value: /same}}")).replace(
        "namespace: shop}\n",
        "namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}\n",
    );
    let yaml = gateway(HTTP)
        + &route(
            "b",
            "",
            &(to("reviews", "{path: {value: /same}}") + &to("reviews", "{path: {value: /name}}")),
        )
        + &route("a", "", &to("productpage", "{path: {value: /name}}"))
        + &older;
    check(
        &yaml,
        &edge(),
        "http.80",
        "
        GET http://x/same => ratings.shop
        GET http://x/name => productpage.shop
        ",
    );
}

#[test]
fn matches_are_alternatives_and_conditions_join() {
    let rules = to(
        "reviews",
        "{headers: [{name: Version, value: two}, {name: version, value: ignored}], queryParams: [{name: Animal, value: whale}]}, \
         {method: POST, queryParams: [{name: a, type: RegularExpression, value: '[0-9]+'}]}",
    ) + &to(
        "ratings",
        "{headers: [{name: color, type: RegularExpression, value: 'b.*'}]}",
    );
    check(
        &edge_with(&rules),
        &edge(),
        "http.80",
        "
        GET http://x/?Animal=whale version=two => reviews.shop
        GET http://x/?animal=whale version=two => 404 no route
        GET http://x/?Animal=whale version=TWO => 404 no route
        POST http://x/?a=12 => reviews.shop
        POST http://x/?a=1b => 404 no route
        GET http://x/ Color=blue => ratings.shop
        GET http://x/ color=red => 404 no route
        ",
    );
}

#[test]
fn hostnames_of_route_and_listener_intersect() {
    let listeners = "\
        {name: wild, port: 80, protocol: HTTP, hostname: '*.wild.io'}, \
        {name: very, port: 80, protocol: HTTP, hostname: very.specific.com}, \
        {name: deep, port: 80, protocol: HTTP, hostname: '*.another.wild.io'}";
    let yaml = gateway(listeners)
        + &route("specific", "non.matching.com, very.specific.com, a.b.c", &to("reviews", ""))
        + &route("wild", "'*.wild.io', x.wild.io", &to("ratings", "{path: {value: /w}}"))
        + &route("exact", "foo.wild.io", &to("productpage", ""))
        + &route("any", "", &to("multi", "{path: {value: /any}}").replace("9080", "80"));
    check(
        &yaml,
        &edge(),
        "http.80",
        "
        GET http://very.specific.com/ => reviews.shop
        GET http://very.specific.com:1234/ => reviews.shop
        GET http://non.matching.com/ => 404 no host
        GET http://a.b.c/ => 404 no host
        GET http://wild.io/w => 404 no host
        GET http://b.wild.io/w => ratings.shop
        GET http://a.b.wild.io/w => ratings.shop
        GET http://b.wild.io/any => 80||multi.shop
        GET http://b.wild.io/ => 404 no route
        GET http://FOO.wild.io/ => productpage.shop
        GET http://b.another.wild.io/w => ratings.shop
        GET http://b.another.wild.io/any => 80||multi.shop
        ",
    );
}

/// A listener that names a host has it alone, even if it has nothing to answer.
#[test]
fn listeners_of_a_port_are_apart() {
    let listeners = "\
        {name: all, port: 80, protocol: HTTP}, \
        {name: wild, port: 80, protocol: HTTP, hostname: '*.example.com'}, \
        {name: one, port: 80, protocol: HTTP, hostname: one.example.com}";
    let on = |name: &str, section: &str, service: &str, hosts: &str| {
        route(name, hosts, &to(service, ""))
            .replace("{name: web}", &format!("{{name: web, sectionName: {section}}}"))
    };
    let yaml = gateway(listeners)
        + &on("all", "all", "reviews", "")
        + &on("wild", "wild", "ratings", "'*.example.com', one.example.com, two.example.com");
    check(
        &yaml,
        &edge(),
        "http.80",
        "
        GET http://other.org/ => reviews.shop
        GET http://two.example.com/ => ratings.shop
        GET http://three.example.com/ => ratings.shop
        GET http://one.example.com/ => 404 no route
        ",
    );
}

#[test]
fn redirects() {
    let rule = |path: &str, redirect: &str| {
        format!(
            "  - {{matches: [{{path: {{value: {path}}}}}], filters: [{{type: RequestRedirect, \
             requestRedirect: {{{redirect}}}}}]}}\n"
        )
    };
    let rules = rule("/host", "hostname: example.org")
        + &rule("/code", "hostname: example.org, statusCode: 301")
        + &rule("/scheme", "scheme: https")
        + &rule("/port", "port: 8083")
        + &rule("/both", "port: 8443, scheme: https")
        + &rule("/usual", "port: 443, scheme: https")
        + &rule("/plain", "port: 80, scheme: http, hostname: example.org")
        + &rule("/full", "path: {type: ReplaceFullPath, replaceFullPath: /whole}")
        + &rule("/prefix", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}")
        + &rule("/slash", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new/}")
        + &rule("/gone", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}")
        + &rule(
            "/all",
            "scheme: https, hostname: a.b, port: 1, path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}, statusCode: 308",
        );
    check(
        &edge_with(&rules),
        &edge(),
        "http.80",
        "
        GET http://x/host/a?q=1 => 302 http://example.org/host/a?q=1
        GET http://x/code => 301 http://example.org/code
        GET http://x/scheme => 302 https://x/scheme
        GET http://x/port => 302 http://x:8083/port
        GET http://x/both => 302 https://x:8443/both
        GET http://x/usual => 302 https://x/usual
        GET http://x/plain => 302 http://example.org/plain
        GET http://x/full/a?q=1 => 302 http://x/whole?q=1
        GET http://x/prefix/a => 302 http://x/new/a
        GET http://x/prefix => 302 http://x/new
        GET http://x/slash/a => 302 http://x/new/a
        GET http://x/gone/a => 302 http://x/a
        GET http://x/gone => 302 http://x/
        GET http://x/all/b/c => 308 https://a.b:1/b/c
        ",
    );
    // On another port that port is meant; a scheme brings its own.
    let yaml = edge_with(&rules)
        .replace("port: 80,", "port: 8080,")
        .replace("port: 8080, scheme: http", "port: 80, scheme: http");
    check(
        &yaml,
        &edge(),
        "http.8080",
        "
        GET http://x:8080/host => 302 http://example.org:8080/host
        GET http://x:8080/plain => 302 http://example.org/plain
        ",
    );
}

#[test]
fn rewrites() {
    let rule = |path: &str, rewrite: &str| {
        format!(
            "  - {{matches: [{{path: {{value: {path}}}}}], filters: [{{type: URLRewrite, \
             urlRewrite: {{{rewrite}}}}}], backendRefs: [{{name: reviews, port: 9080}}]}}\n"
        )
    };
    let path = |kind: &str, value: &str| {
        let field =
            if kind == "ReplaceFullPath" { "replaceFullPath" } else { "replacePrefixMatch" };
        format!("path: {{type: {kind}, {field}: '{value}'}}")
    };
    let rules = rule("/host", "hostname: one.example.org")
        + &rule("/full", &path("ReplaceFullPath", "/one"))
        + &rule("/prefix/one", &path("ReplacePrefixMatch", "/one"))
        + &rule("/strip-prefix", &path("ReplacePrefixMatch", "/"))
        + &rule("/a.b+c", &path("ReplacePrefixMatch", ""))
        + &rule("/", &path("ReplacePrefixMatch", "/root"));
    check(
        &edge_with(&rules),
        &edge(),
        "http.80",
        r"
        GET http://x/host => reviews.shop host=one.example.org
        GET http://x/full/a?q=1 => reviews.shop path=/one?q=1
        GET http://x/prefix/one/two => reviews.shop path=/one/two
        GET http://x/prefix/one => reviews.shop path=/one
        GET http://x/prefix/one/ => reviews.shop path=/one/
        GET http://x/strip-prefix/three?q => reviews.shop path=/three?q
        GET http://x/strip-prefix => reviews.shop path=/
        GET http://x/a.b+c/d => reviews.shop path=/d
        GET http://x/other/d => reviews.shop path=/root/other/d
        ",
    );
}

#[test]
fn headers_are_edited_on_routes_and_backends() {
    let rules = "
  - matches: [{path: {value: /both}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: '100%'}], add: [{name: X-Add, value: a}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Back, value: b}], remove: [server]}}
    backendRefs: [{name: reviews, port: 9080}]
  - matches: [{path: {value: /backend}}]
    backendRefs:
    - {name: ratings, port: 9080, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: who, value: ratings}]}}]}
    - {name: reviews, port: 9080, weight: 0}
  - matches: [{path: {value: /named}}]
    backendRefs:
    - {name: ratings, port: 9080, filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example.org}}]}
  - matches: [{path: {value: /cannot}}]
    backendRefs:
    - {name: ratings, port: 9080, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: reviews, port: 9080}}}]}
  - matches: [{path: {value: /unknown}}]
    filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: F, name: f}}]
    backendRefs: [{name: ratings, port: 9080}]
";
    check(
        &edge_with(rules),
        &edge(),
        "http.80",
        "
        GET http://x/both x-gone=1 x-set=0 => reviews.shop +x-set=100% +X-Add=a -x-gone -x-set < +X-Back=b
        GET http://x/backend => ratings.shop +who=ratings
        GET http://x/named => ratings.shop host=inner.example.org
        GET http://x/cannot => 500
        GET http://x/unknown => 500
        ",
    );
}

#[test]
fn timeouts_retries_and_cors() {
    let rule = |path: &str, more: &str| {
        format!(
            "  - {{matches: [{{path: {{value: {path}}}}}], {more}, \
             backendRefs: [{{name: reviews, port: 9080}}]}}\n"
        )
    };
    let rules = rule("/request", "timeouts: {request: 500ms}")
        + &rule("/off", "timeouts: {request: 0s}")
        + &rule("/attempt", "timeouts: {request: 10s, backendRequest: 2s}")
        + &rule(
            "/retry",
            "retry: {attempts: 3, codes: [500, 503], backoff: 100ms}, timeouts: {backendRequest: 1s}",
        )
        + &rule("/once", "retry: {attempts: 0}, timeouts: {backendRequest: 1s}")
        + &rule(
            "/cors",
            "filters: [{type: CORS, cors: {allowOrigins: ['https://*.example.com'], allowMethods: [GET]}}]",
        );
    let tables = built(&edge_with(&rules), &edge());
    let at = |path: &str| land(&tables, "http.80", &format!("GET http://x{path}"), 0);
    assert_eq!(at("/request"), "9080||reviews.shop timeout=500ms retries=2");
    assert_eq!(at("/off"), "9080||reviews.shop retries=2");
    assert_eq!(at("/attempt"), "9080||reviews.shop timeout=10s retries=2@2s");
    assert_eq!(at("/retry"), "9080||reviews.shop retries=3@1s on=[500, 503]");
    assert_eq!(at("/once"), "9080||reviews.shop timeout=1s");
    assert_eq!(at("/cors"), "9080||reviews.shop retries=2 cors");
}

#[test]
fn backends_share_by_weight_and_bad_ones_answer_500() {
    let rules = "
  - matches: [{path: {value: /split}}]
    backendRefs: [{name: reviews, port: 9080, weight: 70}, {name: ratings, port: 9080, weight: 30}]
  - matches: [{path: {value: /half}}]
    backendRefs: [{name: reviews, port: 9080}, {name: nosuch, port: 9080}]
  - matches: [{path: {value: /none}}]
  - matches: [{path: {value: /nosuch}}]
    backendRefs: [{name: nosuch, port: 9080}]
  - matches: [{path: {value: /port}}]
    backendRefs: [{name: reviews, port: 1}]
  - matches: [{path: {value: /kind}}]
    backendRefs: [{group: example.com, kind: Bucket, name: reviews, port: 9080}]
  - matches: [{path: {value: /away}}]
    backendRefs: [{name: far, namespace: away, port: 9080}]
  - matches: [{path: {value: /zero}}]
    backendRefs: [{name: reviews, port: 9080, weight: 0}]
";
    let tables = built(&edge_with(rules), &edge());
    let shares = |path: &str| {
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for random in 0..1000u64 {
            // Spread over all of u64, as a generator would.
            let random = random.wrapping_mul(u64::MAX / 1000);
            let landed = land(&tables, "http.80", &format!("GET http://x{path}"), random);
            *counts.entry(landed.replace(" retries=2", "")).or_default() += 1;
        }
        counts.into_iter().map(|(k, n)| (k, (n + 5) / 10)).collect::<Vec<_>>()
    };
    let reviews = "9080||reviews.shop".to_owned();
    assert_eq!(shares("/split"), [("9080||ratings.shop".to_owned(), 30), (reviews.clone(), 70)]);
    let nowhere = "1||invalid-backend.gateway-api.invalid".to_owned();
    assert_eq!(shares("/half"), [(nowhere.clone(), 50), (reviews, 50)]);
    // What no cluster is behind is answered with 500, as the API asks.
    let head = common::land::request("GET http://x/half");
    let table = tables.route("http.80").expect("routes");
    let weft_traffic::RouteResult::Found(found) = table.route(&head, 0) else { panic!("no route") };
    let weft_traffic::Action::Forward(action) = &found.route.action else { panic!("no forward") };
    assert_eq!(action.cluster_not_found_status, 500);
    assert!(tables.cluster(&format!("outbound|{nowhere}")).is_none());
    for path in ["/none", "/nosuch", "/port", "/kind", "/away", "/zero"] {
        assert_eq!(land(&tables, "http.80", &format!("GET http://x{path}"), 0), "500", "{path}");
    }
}

#[test]
fn a_proxy_serves_the_gateways_it_is_made_for() {
    let yaml = edge_with(&to("reviews", ""));
    let mut other = edge();
    other.labels.insert("gateway.networking.k8s.io/gateway-name".into(), "other".into());
    assert_eq!(built(&yaml, &other).listeners().count(), 0);
    let mut elsewhere = edge();
    elsewhere.namespace = "away".into();
    assert_eq!(built(&yaml, &elsewhere).listeners().count(), 0);
    // A Service in the addresses says whose proxies: those behind it, on their own ports.
    let manual = yaml.replace(
        "listeners:",
        "addresses: [{type: Hostname, value: ingress.istio-system.svc.cluster.local}], listeners:",
    );
    let labels = [("istio", "ingressgateway")];
    let mut ingress = view(ProxyKind::Gateway, "istio-system", "ingress-0", &labels);
    ingress.flavor = Flavor::Weft;
    check(&manual, &ingress, "http.8080", "GET http://x/ => reviews.shop");
    assert_eq!(built(&manual, &edge()).listeners().count(), 0);
    // Another implementation's class.
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
                 metadata: {name: istio}\nspec: {controllerName: example.com/other}\n";
    assert_eq!(built(&(yaml + class), &edge()).listeners().count(), 0);
}

#[test]
fn grpc_routes_match_service_and_method() {
    let rule = |method: &str, service: &str| {
        format!(
            "  - {{matches: [{{method: {{{method}}}}}], backendRefs: [{{name: {service}, port: 9080}}]}}\n"
        )
    };
    let rules = rule("service: shop.Echo, method: Get", "reviews")
        + &rule("service: shop.Echo", "ratings")
        + &rule("method: List", "productpage")
        + &rule("type: RegularExpression, service: 'x\\..*', method: 'Do[A-Z].*'", "far")
            .replace("name: far,", "name: web, namespace: away,")
            .replace("9080", "80");
    let yaml = (gateway(HTTP) + &route("r", "grpc.io", &rules)).replace("HTTPRoute", "GRPCRoute");
    check(
        &yaml,
        &edge(),
        "http.80",
        "
        POST http://grpc.io/shop.Echo/Get => reviews.shop
        POST http://grpc.io/shop.Echo/Other => ratings.shop
        POST http://grpc.io/any.Thing/List => productpage.shop
        POST http://grpc.io/x.y/DoIt => 500
        POST http://grpc.io/any.Thing/Get => 404 no route
        POST http://other.io/shop.Echo/Get => 404 no route
        ",
    );
}

fn connection<'a>(destination: &str, sni: Option<&'a str>, tls: bool) -> ConnInfo<'a> {
    let client = "127.9.9.9:5".parse().expect("address");
    let dst = destination.parse().expect("address");
    ConnInfo { dst, src: client, direct_src: client, sni, alpn: &[], tls }
}

fn chain(tables: &Tables, listener: &str, conn: &ConnInfo<'_>) -> String {
    let listener = tables.listener(listener).unwrap_or_else(|| panic!("no listener {listener}"));
    let Some(chain) = listener.select_chain(conn) else { return "closed".to_owned() };
    let transport = if chain.tls.is_some() { "terminate " } else { "" };
    let network = match &chain.network {
        Network::Http(_) => "http".to_owned(),
        Network::Tcp(_) => tcp_clusters(&chain.network),
    };
    format!("{transport}{network}").replace("outbound|", "")
}

const SECRET: &str = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: shop}\n\
    stringData: {tls.crt: '-----BEGIN CERTIFICATE----- MAA= -----END CERTIFICATE-----', \
     tls.key: '-----BEGIN PRIVATE KEY----- MAA= -----END PRIVATE KEY-----'}\n";

fn bytes_route(kind: &str, name: &str, section: &str, more: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{parentRefs: [{{name: web, sectionName: {section}}}], {more}}}\n"
    )
}

#[test]
fn tls_and_tcp_listeners() {
    let listeners = "\
        {name: https, port: 443, protocol: HTTPS, hostname: web.example.com, tls: {certificateRefs: [{name: cert}]}}, \
        {name: pass, port: 443, protocol: TLS, hostname: '*.pass.example.com', tls: {mode: Passthrough}}, \
        {name: ends, port: 443, protocol: TLS, hostname: ends.example.com, tls: {mode: Terminate, certificateRefs: [{name: cert}]}}, \
        {name: broken, port: 443, protocol: HTTPS, hostname: broken.example.com, tls: {certificateRefs: [{name: nosuch}]}}, \
        {name: tcp, port: 3306, protocol: TCP}";
    let yaml = gateway(listeners)
        + SECRET
        + &route("r", "", &to("reviews", ""))
            .replace("{name: web}", "{name: web, sectionName: https}")
        + &bytes_route(
            "TLSRoute",
            "a",
            "pass",
            "hostnames: [a.pass.example.com, other.org], rules: [{backendRefs: [{name: db, port: 3306}]}]",
        )
        + &bytes_route(
            "TLSRoute",
            "b",
            "pass",
            "hostnames: ['*.pass.example.com', a.pass.example.com], rules: [{backendRefs: [{name: reviews, port: 9080}]}]",
        )
        + &bytes_route(
            "TLSRoute",
            "c",
            "ends",
            "hostnames: [ends.example.com], rules: [{backendRefs: [{name: ratings, port: 9080}]}]",
        )
        + &bytes_route(
            "TCPRoute",
            "d",
            "tcp",
            "rules: [{backendRefs: [{name: db, port: 3306, weight: 9}, {name: ratings, port: 9080}]}]",
        )
        + &bytes_route(
            "TCPRoute",
            "late",
            "tcp",
            "rules: [{backendRefs: [{name: reviews, port: 9080}]}]",
        );
    let tables = built(&yaml, &edge());
    let at = |sni| chain(&tables, "0.0.0.0_443", &connection("127.2.0.9:443", Some(sni), true));
    assert_eq!(at("web.example.com"), "terminate http");
    assert_eq!(at("a.pass.example.com"), "3306||db.shop");
    assert_eq!(at("b.pass.example.com"), "9080||reviews.shop");
    assert_eq!(at("ends.example.com"), "terminate 9080||ratings.shop");
    assert_eq!(at("broken.example.com"), "closed");
    assert_eq!(at("other.org"), "closed");
    let tcp = connection("127.2.0.9:3306", None, false);
    assert_eq!(chain(&tables, "0.0.0.0_3306", &tcp), "3306||db.shop:9 9080||ratings.shop:1");
    let routes = "https.443.https.web-istio-autogenerated-k8s-gateway-https.shop";
    assert_eq!(
        land(&tables, routes, "GET https://web.example.com/", 0),
        "9080||reviews.shop retries=2"
    );
}

/// Secrets go to the proxies whose Gateways refer to them, and to nobody else.
#[test]
fn certificates_of_other_namespaces_need_a_grant() {
    let listeners = "{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: certs}]}}";
    let secret = SECRET.replace("namespace: shop", "namespace: certs");
    let more = secret.replace("name: cert,", "name: unrelated,");
    let yaml = gateway(listeners) + &secret + &more;
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: certs}\nspec: {from: [{group: gateway.networking.k8s.io, \
                 kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret, name: cert}]}\n";
    let secret = |yaml: &str, view: &ProxyView, name: &str| {
        weft_translate::secret(&world(yaml), view, name).is_some()
    };
    let name = "kubernetes://certs/cert";
    assert!(!secret(&yaml, &edge(), name), "no grant");
    assert_eq!(built(&yaml, &edge()).listeners().count(), 0);
    let granted = yaml + grant;
    assert!(secret(&granted, &edge(), name));
    assert!(!secret(&granted, &edge(), "kubernetes://certs/unrelated"), "not referred to");
    let mut other = edge();
    other.labels.clear();
    assert!(!secret(&granted, &other, name), "another gateway's");
    assert_eq!(built(&granted, &edge()).listeners().count(), 1);
}

#[test]
fn clients_of_a_gateway_show_certificates() {
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: roots, namespace: shop}\n\
                  data: {ca.crt: '-----BEGIN CERTIFICATE----- MAA= -----END CERTIFICATE-----'}\n";
    let listeners = "{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}, \
         {name: lax, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}";
    let validation = |mode: &str| {
        format!(
            "validation: {{mode: {mode}, caCertificateRefs: [{{group: '', kind: ConfigMap, name: roots}}]}}"
        )
    };
    let frontend = format!(
        "tls: {{frontend: {{default: {{{}}}, perPort: [{{port: 8443, tls: {{{}}}}}]}}}}, listeners:",
        validation("AllowValidOnly"),
        validation("AllowInsecureFallback"),
    );
    let yaml = gateway(listeners).replace("listeners:", &frontend) + SECRET;
    let name = "kubernetes://configmap:shop/roots-cacert";
    // Without its roots nothing is served, rather than everybody let in.
    assert_eq!(built(&yaml, &edge()).listeners().count(), 0);
    let yaml = yaml + config;
    assert!(weft_translate::secret(&world(&yaml), &edge(), name).is_some());
    let tables = built(&yaml, &edge());
    let check = |listener: &str, to: &str| {
        let listener = tables.listener(listener).expect("a listener");
        let conn = connection(to, Some("x"), true);
        let chain = listener.select_chain(&conn).expect("a chain");
        let tls = chain.tls.as_ref().expect("TLS");
        (tls.require_client_cert, tls.validation.as_ref().expect("a check").accept_untrusted)
    };
    assert_eq!(check("0.0.0.0_443", "127.2.0.9:443"), (true, false));
    assert_eq!(check("0.0.0.0_8443", "127.2.0.9:8443"), (false, true));
}

#[test]
fn listener_sets_add_listeners_where_they_may() {
    let set = |namespace: &str, name: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{parentRef: {{name: web, namespace: shop}}, listeners: \
             [{{name: more, port: 80, protocol: HTTP, hostname: {name}.example.com}}]}}\n"
        )
    };
    let on_set = |name: &str, namespace: &str| {
        route(
            name,
            "",
            &to("reviews", "").replace("{name: reviews,", "{name: reviews, namespace: shop,"),
        )
        .replace("{name: web}", &format!("{{kind: ListenerSet, name: {name}}}"))
        .replace("namespace: shop}\n", &format!("namespace: {namespace}}}\n"))
    };
    let yaml = gateway("{name: http, port: 80, protocol: HTTP, hostname: own.example.com}")
        .replace("listeners:", "allowedListeners: {namespaces: {from: Same}}, listeners:")
        + &route("r", "", &to("ratings", ""))
        + &set("shop", "same")
        + &on_set("same", "shop")
        + &set("away", "other")
        + &on_set("other", "away");
    check(
        &yaml,
        &edge(),
        "http.80",
        "
        GET http://own.example.com/ => ratings.shop
        GET http://same.example.com/ => reviews.shop
        GET http://other.example.com/ => 404 no host
        ",
    );
}

/// A route on service `reviews`, written in a namespace.
fn mesh_route(namespace: &str, name: &str, parent: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules:\n{rules}\n"
    )
}

#[test]
fn routes_on_services_hold_for_their_clients() {
    let rules = to("ratings", "{path: {value: /v2}, headers: [{name: x, value: 'y'}]}")
        + &to("reviews", "{path: {value: /v2}}");
    let yaml = mesh_route("shop", "producer", "name: reviews, port: 9080", &rules);
    let cases = "
        GET http://reviews.shop/v2 x=y => ratings.shop
        GET http://reviews.shop:9080/v2/a => reviews.shop
        GET http://reviews.shop/other => 404 no route
        GET http://ratings.shop/other => ratings.shop
        ";
    check(&yaml, &client("shop"), "9080", cases);
    check(&yaml, &client("elsewhere"), "9080", cases);
    // A client's namespace may have its own rules, which then stand for the producer's.
    let consumer = to("far", "").replace("name: far,", "name: reviews, namespace: shop,");
    let consumer = consumer.replace(
        "matches:",
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: from, value: away}]}}], matches:",
    );
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: g, namespace: shop}\nspec: {from: [{group: gateway.networking.k8s.io, \
                 kind: HTTPRoute, namespace: away}], to: [{group: '', kind: Service, name: reviews}]}\n";
    let yaml =
        yaml + &mesh_route("away", "consumer", "name: reviews, namespace: shop", &consumer) + grant;
    check(&yaml, &client("shop"), "9080", cases);
    check(
        &yaml,
        &client("away"),
        "9080",
        "
        GET http://reviews.shop/v2 x=y => reviews.shop +from=away
        GET http://reviews.shop/other => reviews.shop +from=away
        ",
    );
    // Other ports are not the route's business.
    let ports = mesh_route("shop", "p", "name: multi, port: 81", &to("reviews", ""));
    check(&ports, &client("shop"), "80", "GET http://multi/ => 80||multi.shop");
    check(&ports, &client("shop"), "81", "GET http://multi:81/ => reviews.shop");
}

#[test]
fn a_route_on_a_service_stands_before_virtual_services() {
    let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {name: reviews, namespace: shop}\nspec: {hosts: [reviews], http: \
                 [{route: [{destination: {host: productpage}}]}]}\n";
    let yaml = mesh_route("shop", "r", "name: reviews", &to("ratings", "")) + rules;
    check(&yaml, &client("shop"), "9080", "GET http://reviews/ => ratings.shop");
}

#[test]
fn tcp_routes_on_services() {
    let yaml = bytes_route(
        "TCPRoute",
        "db",
        "x",
        "rules: [{backendRefs: [{name: db, port: 3306, weight: 3}, {name: ratings, port: 9080}]}]",
    )
    .replace("{name: web, sectionName: x}", "{group: '', kind: Service, name: db}");
    let tables = built(&yaml, &client("shop"));
    let conn = connection("10.1.0.5:3306", None, false);
    assert_eq!(chain(&tables, "10.1.0.5_3306", &conn), "3306||db.shop:3 9080||ratings.shop:1");
}

#[test]
fn backend_tls_policies_shape_clusters() {
    let policy = |name: &str, target: &str, validation: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{{validation}}}}}\n"
        )
    };
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: roots, namespace: shop}\n\
                  data: {ca.crt: '-----BEGIN CERTIFICATE----- MAA= -----END CERTIFICATE-----'}\n";
    let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
    let yaml = gateway(HTTP)
        + config
        + &policy(
            "all",
            "name: multi",
            "hostname: all.example.com, wellKnownCACertificates: System",
        )
        + &policy(
            "port",
            "name: multi, sectionName: http-more",
            &format!(
                "hostname: port.example.com, {refs}, subjectAltNames: [{{type: URI, uri: 'spiffe://a/b'}}]"
            ),
        )
        + &policy(
            "broken",
            "name: ratings",
            "hostname: x.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: nosuch}]",
        );
    let world = world(&yaml);
    let (resources, _) = weft_translate::translate(&world, &edge());
    let context = |name: &str| {
        let found = resources.clusters.iter().find(|cluster| *cluster.name == *name);
        let body = &found.unwrap_or_else(|| panic!("no cluster {name}")).body;
        weft_xds::json::body_to_json(weft_xds::type_url::CLUSTER, body).to_string()
    };
    let all = context("outbound|80||multi.shop.svc.cluster.local");
    assert!(
        all.contains("\"sni\":\"all.example.com\"") && all.contains("system_root_certs"),
        "{all}"
    );
    let port = context("outbound|81||multi.shop.svc.cluster.local");
    assert!(port.contains("\"sni\":\"port.example.com\""), "{port}");
    assert!(port.contains("spiffe://a/b") && port.contains("inline_bytes"), "{port}");
    assert!(port.contains("backendtlspolicy/port"), "{port}");
    let broken = context("outbound|9080||ratings.shop.svc.cluster.local");
    assert!(broken.contains("no-valid-ca-certificate"), "{broken}");
    let plain = context("outbound|9080||reviews.shop.svc.cluster.local");
    assert!(
        plain.contains("transport_socket_matches") && !plain.contains("\"sni\":\"x"),
        "{plain}"
    );
}

/// What a rule decided can be traced to it.
#[test]
fn routes_name_the_rule_that_made_them() {
    let tables =
        built(&edge_with(&(to("reviews", "{path: {value: /a}}") + &to("ratings", ""))), &edge());
    let table = tables.route("http.80").expect("routes");
    let head = common::land::request("GET http://x/b");
    let weft_traffic::RouteResult::Found(found) = table.route(&head, 0) else { panic!("no route") };
    let origin = found.route.origin.as_deref().expect("an origin");
    assert_eq!(origin, "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproute/r");
    assert_eq!(found.route.rule.as_deref(), Some("rules[1]"));
}
