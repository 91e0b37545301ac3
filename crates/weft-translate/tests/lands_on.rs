//! Where requests land: YAML through translation and lowering into the real routing code.

mod common;

use std::fmt::Write as _;

use common::land::{land, tables, tcp_clusters};
use common::{snapshot, view};
use weft_traffic::{ConnInfo, Network, Tables};
use weft_translate::{Flavor, Interception, ProxyKind, ProxyView};

const SERVICES: &str = include_str!("data/services.yaml");

fn weft(mut view: ProxyView) -> ProxyView {
    view.flavor = Flavor::Weft;
    view
}

/// A captured sidecar of `productpage` in namespace `shop`.
fn sidecar() -> ProxyView {
    let labels = [("app", "productpage"), ("version", "v1")];
    weft(view(ProxyKind::Sidecar, "shop", "productpage-v1-0", &labels))
}

fn gateway() -> ProxyView {
    let labels = [("istio", "ingressgateway")];
    weft(view(ProxyKind::Gateway, "istio-system", "ingress-0", &labels))
}

fn built(yaml: &str, view: &ProxyView) -> Tables {
    let world = snapshot(&format!("{SERVICES}\n---\n{yaml}"));
    match tables(&world, view) {
        Ok(tables) => tables,
        Err(refused) => panic!("our proxy would refuse: {refused}"),
    }
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
        let _ = writeln!(landed, "{request} => {}", land(&tables, routes, request, 0));
    }
    assert_eq!(landed, expected);
}

fn virtual_service(http: &str) -> String {
    let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                metadata: {name: reviews, namespace: shop}\nspec:\n  hosts: [reviews]\n  http:\n";
    let indented: String = http.lines().map(|line| format!("  {line}\n")).collect();
    format!("{head}{indented}")
}

#[test]
fn a_service_without_rules_has_all_its_names() {
    check(
        "",
        &sidecar(),
        "9080",
        "
        GET http://reviews/x => 9080||reviews.shop retries=2
        GET http://reviews:9080/x => 9080||reviews.shop retries=2
        GET http://reviews.shop/x => 9080||reviews.shop retries=2
        GET http://reviews.shop.svc:9080/x => 9080||reviews.shop retries=2
        GET http://REVIEWS.shop.svc.cluster.local/x => 9080||reviews.shop retries=2
        GET http://10.1.0.2:9080/ => 9080||reviews.shop retries=2
        GET http://far/ => PassthroughCluster
        GET http://far.away/ => 9080||far.away retries=2
        GET http://nowhere.example.com/ => PassthroughCluster
        ",
    );
}

#[test]
fn registry_only_blocks_unknown_hosts() {
    let policy = "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                  metadata: {name: strict, namespace: shop}\n\
                  spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['./*']}]}";
    check(
        policy,
        &sidecar(),
        "9080",
        "
        GET http://reviews/ => 9080||reviews.shop retries=2
        GET http://far.away/ => 502
        GET http://nowhere.example.com/ => 502
        ",
    );
}

#[test]
fn unknown_hosts_may_go_to_an_egress_proxy() {
    let policy = "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
                  metadata: {name: out, namespace: shop}\n\
                  spec: {outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: \
                  {host: ratings, port: {number: 9080}}}, \
                  egress: [{hosts: ['./reviews.shop.svc.cluster.local']}]}";
    check(
        policy,
        &sidecar(),
        "9080",
        "
        GET http://reviews/ => 9080||reviews.shop retries=2
        GET http://nowhere.example.com/ => 9080||ratings.shop
        ",
    );
    let tables = built(policy, &sidecar());
    assert!(tables.missing_clusters().is_empty(), "the proxy's cluster needs no import");
    let outbound = tables.listener("virtualOutbound").expect("the virtual listener");
    let network = &outbound.default_chain.as_ref().expect("a default").network;
    assert_eq!(tcp_clusters(network), "outbound|9080||ratings.shop");
}

#[test]
fn a_wildcard_entry_may_be_resolved_by_what_the_client_names() {
    use weft_traffic::cluster::{ClusterKind, Transport};
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                metadata: {name: any, namespace: shop}\n\
                spec: {hosts: ['*.example.com'], resolution: DYNAMIC_DNS, ports: [\
                {number: 8095, name: http, protocol: HTTP}, {number: 8096, name: tls, protocol: TLS}]}\n---\n\
                apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                metadata: {name: any, namespace: shop}\n\
                spec: {host: '*.example.com', trafficPolicy: {portLevelSettings: [\
                {port: {number: 8095}, tls: {mode: SIMPLE}}]}}";
    check(yaml, &sidecar(), "8095", "GET http://a.b.example.com/ => 8095||*.example.com retries=2");
    let tables = built(yaml, &sidecar());
    let cluster = |port: u16| {
        let name = format!("outbound|{port}||*.example.com");
        tables.cluster(&name).expect("a cluster").config.clone()
    };
    assert!(matches!(cluster(8096).kind, ClusterKind::Dynamic(_)));
    let Transport::Tls(tls) = &cluster(8095).transport else { panic!("TLS is originated") };
    assert!(tls.auto_host_sni && tls.auto_sni_san_validation, "the request's host is asked for");
    let conn = connection("192.0.2.1:8096", Some("x.example.com"), &[], true);
    let listener = tables.listener("0.0.0.0_8096").expect("a listener");
    let Some(Network::Tcp(tcp)) = listener.select_chain(&conn).map(|chain| &chain.network) else {
        panic!("bytes are passed on")
    };
    assert_eq!(tcp.sni_port, Some(8096));
}

#[test]
fn unknown_hosts_may_be_resolved() {
    let mesh = "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}";
    let yaml = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {mesh}\n"
    );
    check(
        &yaml,
        &sidecar(),
        "9080",
        "
        GET http://reviews/ => 9080||reviews.shop retries=2
        GET http://nowhere.example.com/ => AllowAnyDynamicDNSCluster
        ",
    );
    let anywhere = "GET http://nowhere.example.com/ => AllowAnyDynamicDNSCluster";
    check(&yaml, &sidecar(), "allow_any_dynamic_dns", anywhere);
    assert!(built(&yaml, &sidecar()).missing_clusters().is_empty());
}

#[test]
fn the_articles_two_rules_send_everything_to_the_first() {
    let rules = virtual_service(
        "- route: [{destination: {host: reviews, subset: v1}}]\n\
         - route: [{destination: {host: reviews, subset: v2}}]",
    );
    let tables = built(&rules, &sidecar());
    for random in 0..100 {
        let landed = land(&tables, "9080", "GET http://reviews/", random);
        assert_eq!(landed, "9080|v1|reviews.shop retries=2");
    }
}

#[test]
fn every_kind_of_match() {
    let route = "route: [{destination: {host: reviews, subset: v2}}]";
    let otherwise = "- route: [{destination: {host: reviews, subset: v1}}]";
    let cases = [
        ("uri: {exact: /a}", "GET http://reviews/a?q=1", "GET http://reviews/ab"),
        ("uri: {prefix: /a}", "GET http://reviews/ab", "GET http://reviews/b"),
        ("uri: {regex: '/a[0-9]+'}", "GET http://reviews/a12", "GET http://reviews/a12b"),
        ("uri: {prefix: /A}, ignoreUriCase: true", "GET http://reviews/ab", "GET http://reviews/b"),
        ("uri: {exact: /A}, ignoreUriCase: true", "GET http://reviews/a", "GET http://reviews/ab"),
        ("method: {exact: POST}", "POST http://reviews/", "GET http://reviews/"),
        ("method: {regex: 'P.*'}", "PUT http://reviews/", "GET http://reviews/"),
        ("scheme: {exact: https}", "GET https://reviews/", "GET http://reviews/"),
        ("authority: {prefix: reviews.}", "GET http://reviews.shop/", "GET http://reviews/"),
        (
            "headers: {end-user: {exact: jason}}",
            "GET http://reviews/ End-User=jason",
            "GET http://reviews/ end-user=jasons",
        ),
        (
            "headers: {end-user: {prefix: ja}}",
            "GET http://reviews/ end-user=jason",
            "GET http://reviews/ end-user=max",
        ),
        (
            "headers: {end-user: {regex: 'j.*n'}}",
            "GET http://reviews/ end-user=jason",
            "GET http://reviews/ end-user=jasons",
        ),
        ("headers: {end-user: {}}", "GET http://reviews/ end-user=x", "GET http://reviews/"),
        (
            "headers: {a: {exact: '1'}, b: {exact: '2'}}",
            "GET http://reviews/ a=1 b=2",
            "GET http://reviews/ a=1",
        ),
        ("withoutHeaders: {end-user: {}}", "GET http://reviews/", "GET http://reviews/ end-user=x"),
        (
            "withoutHeaders: {end-user: {exact: jason}}",
            "GET http://reviews/",
            "GET http://reviews/ end-user=jason",
        ),
        (
            "withoutHeaders: {end-user: {exact: jason}}",
            "GET http://reviews/ end-user=max",
            "GET http://reviews/ end-user=jason",
        ),
        (
            "queryParams: {v: {exact: '2'}}",
            "GET http://reviews/?a=b&v=2",
            "GET http://reviews/?v=3",
        ),
        ("queryParams: {v: {prefix: '2'}}", "GET http://reviews/?v=23", "GET http://reviews/?v=3"),
        (
            "queryParams: {v: {regex: '[0-9]+'}}",
            "GET http://reviews/?v=23",
            "GET http://reviews/?v=x",
        ),
        ("queryParams: {v: {}}", "GET http://reviews/?v=1", "GET http://reviews/?w=1"),
    ];
    for (conditions, hit, miss) in cases {
        let rules =
            virtual_service(&format!("- match: [{{{conditions}}}]\n  {route}\n{otherwise}"));
        let tables = built(&rules, &sidecar());
        let lands = |request| land(&tables, "9080", request, 0);
        assert_eq!(lands(hit), "9080|v2|reviews.shop retries=2", "{conditions}: {hit}");
        assert_eq!(lands(miss), "9080|v1|reviews.shop retries=2", "{conditions}: {miss}");
    }
}

#[test]
fn matches_on_where_the_request_is() {
    let route = "route: [{destination: {host: reviews, subset: v2}}]";
    let otherwise = "- route: [{destination: {host: reviews, subset: v1}}]";
    for (conditions, applies) in [
        ("sourceLabels: {app: productpage}", true),
        ("sourceLabels: {app: other}", false),
        ("sourceNamespace: shop", true),
        ("sourceNamespace: other", false),
        ("port: 9080", true),
        ("port: 80", false),
        ("gateways: [mesh]", true),
        ("gateways: [istio-system/edge]", false),
    ] {
        let rules =
            virtual_service(&format!("- match: [{{{conditions}}}]\n  {route}\n{otherwise}"));
        let landed = land(&built(&rules, &sidecar()), "9080", "GET http://reviews/", 0);
        let subset = if applies { "v2" } else { "v1" };
        assert_eq!(landed, format!("9080|{subset}|reviews.shop retries=2"), "{conditions}");
    }
}

#[test]
fn alternatives_and_order() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /a}}, {headers: {x: {exact: a}}}]\n  route: [{destination: {host: reviews, subset: v2}}]\n\
         - match: [{uri: {prefix: /ab}}]\n  directResponse: {status: 500}\n\
         - match: [{uri: {prefix: /c}}]\n  route: [{destination: {host: ratings}}]",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/ab => 9080|v2|reviews.shop retries=2
        GET http://reviews/ x=a => 9080|v2|reviews.shop retries=2
        GET http://reviews/c => 9080||ratings.shop retries=2
        GET http://reviews/d => 404 no route
        ",
    );
}

#[test]
fn weights_are_shares_of_their_sum() {
    let rules = virtual_service(
        "- route:\n  - {destination: {host: reviews, subset: v1}, weight: 1}\n  \
         - {destination: {host: reviews, subset: v2}, weight: 3}\n  \
         - {destination: {host: reviews, subset: v3}, weight: 0}",
    );
    let tables = built(&rules, &sidecar());
    let mut counts = [0; 3];
    for random in 0..400 {
        match land(&tables, "9080", "GET http://reviews/", random).as_str() {
            "9080|v1|reviews.shop retries=2" => counts[0] += 1,
            "9080|v2|reviews.shop retries=2" => counts[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(counts, [100, 300, 0]);
}

#[test]
fn redirects() {
    let rules = virtual_service(
        "- match: [{uri: {exact: /old}}]\n  redirect: {uri: /new}\n\
         - match: [{uri: {prefix: /host}}]\n  redirect: {authority: other.example.com, redirectCode: 302}\n\
         - match: [{uri: {prefix: /tls}}]\n  redirect: {scheme: https, port: 8443, redirectCode: 308}\n\
         - match: [{uri: {prefix: /here}}]\n  redirect: {derivePort: FROM_REQUEST_PORT, authority: b.example.com, redirectCode: 307}\n\
         - match: [{uri: {prefix: /gone}}]\n  directResponse: {status: 410, body: {string: gone}}",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/old => 301 http://reviews/new
        GET http://reviews/host/a?b=c => 302 http://other.example.com/host/a?b=c
        GET http://reviews/tls => 308 https://reviews:8443/tls
        GET http://reviews/here => 307 http://b.example.com:9080/here
        GET http://reviews/gone => 410 gone
        ",
    );
}

#[test]
fn rewrites() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /api/}}]\n  rewrite: {uri: /}\n  route: [{destination: {host: reviews}}]\n\
         - match: [{uri: {exact: /one}}]\n  rewrite: {uri: /two, authority: inner.example.com}\n  route: [{destination: {host: reviews}}]\n\
         - match: [{uri: {prefix: /re}}]\n  rewrite: {uriRegexRewrite: {match: '^/re/([a-z]+)/(.*)$', rewrite: '/\\2/\\1'}}\n  route: [{destination: {host: reviews}}]",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/api/x?q=1 => 9080||reviews.shop retries=2 path=/x?q=1
        GET http://reviews/one => 9080||reviews.shop retries=2 path=/two host=inner.example.com
        GET http://reviews/re/ab/cd => 9080||reviews.shop retries=2 path=/cd/ab
        ",
    );
}

#[test]
fn header_edits_of_routes_and_destinations() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /split}}]\n  headers: {request: {set: {x-all: '1'}, remove: [x-gone]}, response: {set: {x-back: '2'}}}\n  route:\n  \
         - {destination: {host: reviews, subset: v1}, weight: 50, headers: {request: {add: {x-sub: v1}}}}\n  \
         - {destination: {host: reviews, subset: v2}, weight: 50, headers: {request: {set: {Host: v2.example.com}}}}\n\
         - route:\n  - {destination: {host: reviews}, headers: {request: {set: {x-only: a, Host: in.example.com}}, response: {add: {x-r: b}}}}",
    );
    let tables = built(&rules, &sidecar());
    let lands = |request, random| land(&tables, "9080", request, random);
    assert_eq!(
        lands("GET http://reviews/split x-gone=z", 0),
        "9080|v1|reviews.shop retries=2 +x-sub=v1 +x-all=1 -x-gone < +x-back=2"
    );
    assert_eq!(
        lands("GET http://reviews/split", 50),
        "9080|v2|reviews.shop retries=2 host=v2.example.com +x-all=1 < +x-back=2"
    );
    assert_eq!(
        lands("GET http://reviews/", 0),
        "9080||reviews.shop retries=2 host=in.example.com +x-only=a < +x-r=b"
    );
}

#[test]
fn timeouts_and_retries() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /slow}}]\n  timeout: 3s\n  route: [{destination: {host: reviews, subset: v2}}]\n\
         - match: [{uri: {prefix: /often}}]\n  retries: {attempts: 5, perTryTimeout: 200ms, retryOn: 'gateway-error,503'}\n  route: [{destination: {host: reviews}}]\n\
         - match: [{uri: {prefix: /once}}]\n  retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/slow => 9080|v2|reviews.shop timeout=3s retries=2
        GET http://reviews/often => 9080||reviews.shop retries=5@200ms on=[503]
        GET http://reviews/once => 9080||reviews.shop
        ",
    );
}

#[test]
fn faults_and_cors() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /late}}]\n  fault: {delay: {fixedDelay: 2s, percentage: {value: 50}}, abort: {httpStatus: 503}}\n  route: [{destination: {host: reviews}}]\n\
         - corsPolicy: {allowOrigins: [{exact: 'https://a.example.com'}], allowMethods: [GET], maxAge: 1h}\n  route: [{destination: {host: reviews}}]",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/late => 9080||reviews.shop retries=2 fault=Some(2s),Some(Http(503))
        GET http://reviews/ => 9080||reviews.shop retries=2 cors
        ",
    );
}

#[test]
fn destinations_name_ports_and_other_namespaces() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /p}}]\n  route: [{destination: {host: multi, port: {number: 81}}}]\n\
         - match: [{uri: {prefix: /q}}]\n  route: [{destination: {host: ratings.shop.svc.cluster.local}}]\n\
         - match: [{uri: {prefix: /r}}]\n  route: [{destination: {host: web.away.svc.cluster.local}}]\n\
         - route: [{destination: {host: reviews, subset: nosuch}}]",
    );
    check(
        &rules,
        &sidecar(),
        "9080",
        "
        GET http://reviews/p => 81||multi.shop retries=2
        GET http://reviews/q => 9080||ratings.shop retries=2
        GET http://reviews/r => 80||web.away retries=2
        GET http://reviews/s => 9080|nosuch|reviews.shop retries=2
        ",
    );
    // A missing subset has no cluster: the proxy answers 503 with flag NC.
    let tables = built(&rules, &sidecar());
    assert!(tables.cluster("outbound|9080|nosuch|reviews.shop.svc.cluster.local").is_none());
}

#[test]
fn virtual_services_for_hosts_that_are_no_service() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {name: alias, namespace: shop}\nspec:\n  hosts: [api.alias.example.com, '*.wild.example.com']\n  http:\n  \
                 - route: [{destination: {host: reviews, port: {number: 9080}}}]\n";
    check(
        rules,
        &sidecar(),
        "9080",
        "
        GET http://api.alias.example.com/ => 9080||reviews.shop retries=2
        GET http://api.alias.example.com:9080/ => 9080||reviews.shop retries=2
        GET http://x.wild.example.com/ => 9080||reviews.shop retries=2
        GET http://other.example.com/ => PassthroughCluster
        ",
    );
}

#[test]
fn delegates_stand_in_for_a_rule() {
    let rules = virtual_service(
        "- match: [{uri: {prefix: /team}}]\n  timeout: 3s\n  delegate: {name: team}\n\
         - delegate: {name: nosuch}\n\
         - route: [{destination: {host: reviews, subset: v1}}]",
    );
    let team = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                metadata: {name: team, namespace: shop}\nspec:\n  http:\n  \
                - match: [{uri: {prefix: /team/a}, method: {exact: GET}}]\n    route: [{destination: {host: ratings}}]\n  \
                - match: [{uri: {prefix: /other}}]\n    directResponse: {status: 500}\n  \
                - timeout: 1s\n    route: [{destination: {host: reviews, subset: v2}}]\n";
    check(
        &format!("{rules}---\n{team}"),
        &sidecar(),
        "9080",
        "
        GET http://reviews/team/a => 9080||ratings.shop timeout=3s retries=2
        POST http://reviews/team/a => 9080|v2|reviews.shop timeout=1s retries=2
        GET http://reviews/other => 9080|v1|reviews.shop retries=2
        ",
    );
}

const EDGE: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [wallstreetcn.com, 'shop/*.example.com']}
  - {port: {number: 80, name: http-tls, protocol: HTTP}, hosts: [secure.example.org], tls: {httpsRedirect: true}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: site, namespace: istio-system}
spec:
  gateways: [edge]
  hosts: [wallstreetcn.com]
  http:
  - route: [{destination: {host: reviews.shop.svc.cluster.local, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: zz-more, namespace: shop}
spec:
  gateways: [istio-system/edge]
  hosts: [wallstreetcn.com]
  http:
  - match: [{uri: {prefix: /ratings}}]
    route: [{destination: {host: ratings, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: shop}
spec:
  gateways: [istio-system/edge, mesh]
  hosts: [a.example.com, '*.b.example.com', c.example.org]
  http:
  - match: [{gateways: [istio-system/edge], port: 80}]
    route: [{destination: {host: ratings, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: foreign, namespace: away}
spec:
  gateways: [istio-system/edge]
  hosts: [foreign.example.com]
  http:
  - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unbound, namespace: shop}
spec:
  hosts: [unbound.example.com]
  http:
  - route: [{destination: {host: ratings}}]
";

#[test]
fn gateways_serve_what_is_bound_to_them() {
    check(
        EDGE,
        &gateway(),
        "http.8080",
        "
        GET http://wallstreetcn.com/ => 9080||reviews.shop retries=2
        GET http://wallstreetcn.com:31080/ => 9080||reviews.shop retries=2
        GET http://wallstreetcn.com/ratings/1 => 9080||ratings.shop retries=2
        GET http://a.example.com/ => 9080||ratings.shop retries=2
        GET http://x.b.example.com/ => 9080||ratings.shop retries=2
        GET http://c.example.org/ => 404 no host
        GET http://foreign.example.com/ => 404 no host
        GET http://unbound.example.com/ => 404 no host
        GET http://reviews.shop/ => 404 no host
        GET http://secure.example.org/x => 301 https://secure.example.org/x
        ",
    );
}

#[test]
fn a_gateway_without_rules_answers_404() {
    let gateway_only =
        EDGE.split("---").next().expect("the Gateway").replace("tls: {httpsRedirect: true}", "");
    check(&gateway_only, &gateway(), "http.8080", "GET http://wallstreetcn.com/ => 404 no route");
}

#[test]
fn gateway_binds_its_own_address_without_capture() {
    let mut view = gateway();
    view.interception = Interception::None;
    let names: Vec<String> =
        built(EDGE, &view).listeners().map(|listener| listener.name.to_string()).collect();
    assert_eq!(names, ["127.2.0.9_8080"]);
}

const NO_CAPTURE: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: productpage, namespace: shop}
spec:
  workloadSelector: {labels: {app: productpage}}
  ingress:
  - {port: {number: 9080, name: http, protocol: HTTP}, defaultEndpoint: '127.0.0.1:19080', captureMode: NONE}
  egress:
  - {port: {number: 15080, name: proxy, protocol: HTTP_PROXY}, bind: 127.2.0.9, captureMode: NONE, hosts: ['*/*']}
  - {port: {number: 9080, name: http, protocol: HTTP}, bind: 127.2.0.9, captureMode: NONE, hosts: ['./reviews.shop.svc.cluster.local', './ratings.shop.svc.cluster.local']}
  - {port: {number: 3306, name: tcp, protocol: TCP}, bind: 127.2.0.9, captureMode: NONE, hosts: ['./db.shop.svc.cluster.local']}
";

fn uncaptured() -> ProxyView {
    let mut view = sidecar();
    view.interception = Interception::None;
    view
}

#[test]
fn a_forward_proxy_listener_knows_every_service_by_host_and_port() {
    // Port 9080 is bound at the ingress already, so its egress listener stands aside.
    let yaml = NO_CAPTURE.replace(
        "{number: 9080, name: http, protocol: HTTP}, bind",
        "{number: 9081, name: http, protocol: HTTP}, bind",
    );
    check(
        &yaml,
        &uncaptured(),
        "15080",
        "
        GET http://reviews:9080/ => 9080||reviews.shop retries=2
        GET http://reviews/ => 9080||reviews.shop retries=2
        GET http://web.away/ => 80||web.away retries=2
        GET http://multi:81/ => 81||multi.shop retries=2
        GET http://multi/ => 80||multi.shop retries=2
        GET http://nowhere.example.com/ => 502
        ",
    );
    check(
        &yaml,
        &uncaptured(),
        "9081",
        "
        GET http://reviews:9080/ => 9080||reviews.shop retries=2
        GET http://ratings/ => 9080||ratings.shop retries=2
        GET http://web.away/ => 502
        ",
    );
}

fn connection<'a>(
    destination: &str,
    sni: Option<&'a str>,
    alpn: &'a [&'a [u8]],
    tls: bool,
) -> ConnInfo<'a> {
    let client = "127.9.9.9:5".parse().expect("address");
    ConnInfo {
        dst: destination.parse().expect("address"),
        src: client,
        direct_src: client,
        sni,
        alpn,
        tls,
    }
}

fn chain(tables: &Tables, listener: &str, conn: &ConnInfo<'_>) -> String {
    let listener = tables.listener(listener).unwrap_or_else(|| panic!("no listener {listener}"));
    let Some(chain) = listener.select_chain(conn) else { return "closed".to_owned() };
    let transport = if chain.tls.is_some() { "terminate " } else { "" };
    let network = match &chain.network {
        Network::Http(_) => "http".to_owned(),
        Network::Tcp(_) => tcp_clusters(&chain.network),
    };
    format!("{transport}{network}")
}

#[test]
fn sidecars_without_capture_bind_what_is_declared() {
    let yaml = NO_CAPTURE.replace(
        "defaultEndpoint: '127.0.0.1:19080'",
        "bind: 127.2.0.1, defaultEndpoint: '127.0.0.1:19080'",
    );
    let tables = built(&yaml, &uncaptured());
    let mut names: Vec<String> =
        tables.listeners().map(|listener| listener.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["127.2.0.1_9080", "127.2.0.9_15080", "127.2.0.9_3306", "127.2.0.9_9080"]);
    let plain = connection("127.2.0.9:3306", None, &[], false);
    assert_eq!(chain(&tables, "127.2.0.9_3306", &plain), "outbound|3306||db.shop");
    assert!(tables.cluster("inbound|9080||").is_some());
    // Among all services the one that has the port is meant, not the first with one port only.
    let all = yaml.replace("['./db.shop.svc.cluster.local']", "['./*']");
    let tables = built(&all, &uncaptured());
    assert_eq!(chain(&tables, "127.2.0.9_3306", &plain), "outbound|3306||db.shop");
}

#[test]
fn inbound_chains_follow_peer_authentication() {
    let policy = |mode: &str| {
        format!(
            "{NO_CAPTURE}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: all, namespace: shop}}\nspec: {{mtls: {{mode: {mode}}}}}"
        )
    };
    let istio: &[&[u8]] = &[b"istio", b"h2"];
    let plain = connection("127.2.0.9:9080", None, &[], false);
    let mesh = connection("127.2.0.9:9080", Some("outbound_.9080_._.x"), istio, true);
    let foreign = connection("127.2.0.9:9080", Some("x.example.com"), &[b"http/1.1"], true);
    for (mode, expect) in [
        ("PERMISSIVE", ["http", "terminate http", "inbound|9080||"]),
        ("STRICT", ["closed", "terminate http", "terminate http"]),
        ("DISABLE", ["http", "http", "http"]),
    ] {
        let tables = built(&policy(mode), &uncaptured());
        let found = [&plain, &mesh, &foreign].map(|conn| chain(&tables, "127.2.0.9_9080", conn));
        assert_eq!(found, expect, "{mode}");
    }
}

#[test]
fn captured_traffic_is_told_apart_by_address_and_port() {
    let tables = built("", &sidecar());
    let http: &[&[u8]] = &[b"http/1.1"];
    let plain = |destination| connection(destination, None, &[], false);
    assert_eq!(chain(&tables, "0.0.0.0_9080", &plain("10.1.0.2:9080")), "http");
    assert_eq!(chain(&tables, "10.1.0.5_3306", &plain("10.1.0.5:3306")), "outbound|3306||db.shop");
    assert_eq!(
        chain(&tables, "10.1.0.6_7000", &plain("10.1.0.6:7000")),
        "outbound|7000||mystery.shop"
    );
    assert_eq!(
        chain(&tables, "10.1.0.6_7000", &connection("10.1.0.6:7000", None, http, false)),
        "http"
    );
    assert_eq!(chain(&tables, "virtualOutbound", &plain("8.8.8.8:99")), "PassthroughCluster");
    assert_eq!(chain(&tables, "virtualOutbound", &plain("10.0.0.1:15001")), "BlackHoleCluster");
    assert_eq!(chain(&tables, "virtualInbound", &plain("10.2.0.1:9080")), "http");
    assert_eq!(
        chain(&tables, "virtualInbound", &plain("10.2.0.1:4444")),
        "InboundPassthroughCluster"
    );
    assert_eq!(
        land(&tables, "mystery.shop.svc.cluster.local:7000", "GET http://mystery:7000/", 0),
        "7000||mystery.shop retries=2"
    );
}

#[test]
fn tcp_rules_split_by_weight() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
                 metadata: {name: db, namespace: shop}\nspec:\n  hosts: [db]\n  tcp:\n  \
                 - match: [{port: 1}]\n    route: [{destination: {host: ratings}}]\n  \
                 - match: [{port: 3306}]\n    route:\n    - {destination: {host: db, subset: v1}, weight: 80}\n    \
                 - {destination: {host: db, subset: v2}, weight: 20}\n";
    let tables = built(rules, &sidecar());
    let conn = connection("10.1.0.5:3306", None, &[], false);
    assert_eq!(
        chain(&tables, "10.1.0.5_3306", &conn),
        "outbound|3306|v1|db.shop:80 outbound|3306|v2|db.shop:20"
    );
}

#[test]
fn gateway_tls_is_chosen_by_server_name() {
    let yaml = "
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: istio-system}
stringData: {tls.crt: c, tls.key: k}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: tls, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [wallstreetcn.com], tls: {mode: SIMPLE, credentialName: cert}}
  - {port: {number: 443, name: files, protocol: HTTPS}, hosts: ['*.files.example.com'], tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}}
  - {port: {number: 443, name: missing, protocol: HTTPS}, hosts: [missing.example.com], tls: {mode: SIMPLE, credentialName: nosuch}}
  - {port: {number: 443, name: pass, protocol: TLS}, hosts: [pass.example.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: https, namespace: istio-system}
spec:
  gateways: [tls]
  hosts: [wallstreetcn.com]
  http:
  - route: [{destination: {host: reviews.shop.svc.cluster.local, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass, namespace: istio-system}
spec:
  gateways: [tls]
  hosts: [pass.example.com]
  tls:
  - match: [{sniHosts: [pass.example.com]}]
    route: [{destination: {host: web.away.svc.cluster.local, port: {number: 80}}}]
";
    let tables = built(yaml, &gateway());
    let at = |sni| {
        chain(&tables, "0.0.0.0_8443", &connection("10.2.0.9:8443", Some(sni), &[b"h2"], true))
    };
    assert_eq!(at("wallstreetcn.com"), "terminate http");
    assert_eq!(at("a.files.example.com"), "terminate http");
    assert_eq!(at("pass.example.com"), "outbound|80||web.away");
    assert_eq!(at("missing.example.com"), "closed");
    assert_eq!(at("other.example.com"), "closed");
    assert_eq!(
        land(&tables, "https.443.https.tls.istio-system", "GET https://wallstreetcn.com/", 0),
        "9080||reviews.shop retries=2"
    );
}

/// Listeners of a captured sidecar whose node metadata says this of DNS.
fn listeners_with_dns(answers: Option<&str>) -> Vec<String> {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
        metadata: {name: db, namespace: shop}\n\
        spec: {hosts: [a.db.example, b.db.example], resolution: DNS, \
        ports: [{number: 5432, name: tcp, protocol: TCP}]}";
    let mut view = sidecar();
    let said = answers.map(|value| ("DNS_CAPTURE".to_owned(), value.to_owned()));
    view.metadata = std::sync::Arc::new(said.into_iter().collect());
    let tables = built(yaml, &view);
    let names = tables.listeners().map(|listener| listener.name.to_string());
    names.filter(|name| name.ends_with("_5432")).collect()
}

#[test]
fn allocated_addresses_tell_hosts_apart_where_the_proxy_answers_dns() {
    assert_eq!(listeners_with_dns(None), ["0.0.0.0_5432"]);
    let own = listeners_with_dns(Some("true"));
    assert_eq!(own.len(), 2, "{own:?}");
    assert!(own.iter().all(|name| name.starts_with("240.240.")), "{own:?}");
}

const INGRESS_TLS: &str = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: edge, namespace: shop}
spec:
  workloadSelector: {labels: {app: productpage}}
  ingress:
  - port: {number: 9443, protocol: HTTPS, name: https}
    defaultEndpoint: 127.0.0.1:9080
    tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}
";

#[test]
fn a_sidecars_ingress_takes_tls_where_the_mesh_has_none() {
    let disabled = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: plain, namespace: shop}\n\
        spec: {selector: {matchLabels: {app: productpage}}, mtls: {mode: STRICT}, \
        portLevelMtls: {9443: {mode: DISABLE}}}";
    let mut view = sidecar();
    view.interception = Interception::None;
    let tables = built(&format!("{INGRESS_TLS}{disabled}"), &view);
    let listener = tables.listeners().find(|one| one.name.ends_with("_9443")).expect("it");
    assert_eq!(listener.chains.len(), 1);
    assert!(listener.chains[0].tls.as_ref().is_some_and(|tls| !tls.require_client_cert));
    assert!(matches!(listener.chains[0].network, Network::Http(_)), "after TLS it is HTTP");

    let world = snapshot(&format!("{SERVICES}\n---\n{INGRESS_TLS}"));
    let (_, findings) = weft_translate::translate(&world, &view);
    assert!(findings.iter().any(|found| found.path == "spec.ingress[0].tls"), "{findings:?}");
}
