//! Clusters, endpoints and secrets: what DestinationRules, PeerAuthentication and resolution
//! make of them.

mod common;

use std::time::Duration;

use common::land::{tables, tcp_clusters};
use common::{snapshot, view};
use weft_model::Snapshot;
use weft_traffic::ConnInfo;
use weft_translate::{Flavor, ProxyKind, ProxyView, endpoints, secret, translate};
use weft_xds::pb::envoy::config::cluster::v3::Cluster;
use weft_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbPolicy,
};
use weft_xds::pb::envoy::config::core::v3::address::Address;
use weft_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};

const REVIEWS: &str = "outbound|9080||reviews.shop.svc.cluster.local";

const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.1.0.2, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 19080}, {name: grpc, port: 9081}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1-0, namespace: shop, labels: {app: reviews, version: v1, security.istio.io/tlsMode: istio, istio-locality: east.a.1}}
spec: {serviceAccountName: reviews, containers: [{name: app}]}
status: {podIP: 10.2.0.2, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2-0, namespace: shop, labels: {app: reviews, version: v2}}
spec: {serviceAccountName: other, containers: [{name: app}]}
status: {podIP: 10.2.0.3, phase: Running, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2-1, namespace: shop, labels: {app: reviews, version: v2}}
spec: {containers: [{name: app}]}
status: {podIP: 10.2.0.4, phase: Running, conditions: [{type: Ready, status: 'False'}]}
";

fn client() -> ProxyView {
    view(ProxyKind::Sidecar, "shop", "client-0", &[("app", "client")])
}

fn world(more: &str) -> Snapshot {
    snapshot(&format!("{WORLD}---\n{more}"))
}

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: reviews, namespace: shop}}\nspec:\n  host: reviews\n{policy}"
    )
}

fn cluster(world: &Snapshot, view: &ProxyView, name: &str) -> Option<Cluster> {
    let (resources, _) = translate(world, view);
    let found = resources.clusters.iter().find(|cluster| &*cluster.name == name)?;
    Some(found.decode().expect("a cluster"))
}

/// Addresses of an assignment; `+` marks those that take mutual TLS.
fn addresses(world: &Snapshot, view: &ProxyView, name: &str) -> Vec<String> {
    let resource = endpoints(world, view, name).expect("an assignment");
    let assignment: ClusterLoadAssignment = resource.decode().expect("an assignment");
    let all = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    all.map(|endpoint| {
        let metadata = endpoint.metadata.as_ref();
        let mtls = metadata.is_some_and(|metadata| {
            metadata.filter_metadata.contains_key("envoy.transport_socket_match")
        });
        format!("{}{}", if mtls { "+" } else { "" }, address(endpoint))
    })
    .collect()
}

fn address(endpoint: &LbEndpoint) -> String {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { return "?".into() };
    match host.address.as_ref().and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address.clone(),
        },
        _ => "?".into(),
    }
}

#[test]
fn endpoints_are_ready_ones_with_the_target_port() {
    let world = world(&rule(
        "  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
    ));
    let list = |name: &str| addresses(&world, &client(), name);
    assert_eq!(list(REVIEWS), ["10.2.0.3:19080", "+10.2.0.2:19080"]);
    assert_eq!(list("outbound|9080|v1|reviews.shop.svc.cluster.local"), ["+10.2.0.2:19080"]);
    assert_eq!(list("outbound|9081|v2|reviews.shop.svc.cluster.local"), ["10.2.0.3:9081"]);
    for nothing in [
        "outbound|9080|v9|reviews.shop.svc.cluster.local",
        "outbound|1||reviews.shop.svc.cluster.local",
        "outbound|9080||nosuch.shop.svc.cluster.local",
        "inbound|9080||",
        "PassthroughCluster",
    ] {
        assert!(endpoints(&world, &client(), nothing).is_none(), "{nothing}");
    }
}

#[test]
fn a_disabled_port_takes_no_mutual_tls() {
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {name: all, namespace: shop}\n\
                  spec: {selector: {matchLabels: {app: reviews}}, portLevelMtls: {19080: {mode: DISABLE}}}";
    let world = world(policy);
    assert_eq!(addresses(&world, &client(), REVIEWS), ["10.2.0.3:19080", "10.2.0.2:19080"]);
    let grpc = "outbound|9081||reviews.shop.svc.cluster.local";
    assert_eq!(addresses(&world, &client(), grpc), ["10.2.0.3:9081", "+10.2.0.2:9081"]);
}

#[test]
fn defaults_are_istios() {
    let cluster = cluster(&world(""), &client(), REVIEWS).expect("the cluster");
    assert_eq!(cluster.lb_policy, LbPolicy::LeastRequest as i32);
    assert_eq!(cluster.connect_timeout.map(|timeout| timeout.seconds), Some(10));
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32))
    );
    assert_eq!(cluster.transport_socket_matches.len(), 2);
    assert!(cluster.outlier_detection.is_none());
}

#[test]
fn destination_rules_fill_the_cluster() {
    let world = world(&rule(
        "  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool:
      tcp: {maxConnections: 10, connectTimeout: 500ms}
      http: {http1MaxPendingRequests: 5, http2MaxRequests: 50, maxRequestsPerConnection: 7, maxRetries: 2, h2UpgradePolicy: UPGRADE}
    outlierDetection: {consecutive5xxErrors: 3, interval: 5s, maxEjectionPercent: 50}
    portLevelSettings: [{port: {number: 9081}, loadBalancer: {simple: RANDOM}}]
  subsets:
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}",
    ));
    let view = ProxyView { flavor: Flavor::Weft, ..client() };
    let lowered = tables(&world, &view).expect("our proxy takes it");
    let config = &lowered.cluster(REVIEWS).expect("the cluster").config;
    assert_eq!(config.connect_timeout, Duration::from_millis(500));
    let cluster_of = |name: &str| cluster(&world, &view, name).expect("a cluster");
    let whole = cluster_of(REVIEWS);
    assert_eq!(whole.lb_policy, LbPolicy::RoundRobin as i32);
    let threshold = &whole.circuit_breakers.expect("breakers").thresholds[0];
    let numbers = [
        threshold.max_connections,
        threshold.max_pending_requests,
        threshold.max_requests,
        threshold.max_retries,
    ];
    assert_eq!(numbers.map(|n| n.map(|n| n.value)), [Some(10), Some(5), Some(50), Some(2)]);
    let outliers = whole.outlier_detection.expect("outlier detection");
    assert_eq!(outliers.consecutive_5xx.map(|n| n.value), Some(3));
    assert_eq!(outliers.max_ejection_percent.map(|n| n.value), Some(50));
    let other_port = cluster_of("outbound|9081||reviews.shop.svc.cluster.local");
    assert_eq!(other_port.lb_policy, LbPolicy::Random as i32);
    assert!(other_port.outlier_detection.is_none(), "a port's settings replace all others");
    let subset = cluster_of("outbound|9080|v2|reviews.shop.svc.cluster.local");
    assert_eq!(subset.lb_policy, LbPolicy::RingHash as i32);
    assert!(subset.outlier_detection.is_some(), "a subset inherits what it does not say");
}

#[test]
fn tls_modes() {
    let sockets = |mode: &str| {
        let world = world(&rule(&format!("  trafficPolicy: {{tls: {{{mode}}}}}")));
        let cluster = cluster(&world, &client(), REVIEWS).expect("the cluster");
        let json = weft_xds::json::message_to_json(&cluster).expect("JSON").to_string();
        (cluster.transport_socket_matches.len(), cluster.transport_socket.is_some(), json)
    };
    assert!(matches!(sockets("mode: DISABLE"), (0, false, _)));
    let (matches, explicit, json) = sockets("mode: ISTIO_MUTUAL");
    assert_eq!((matches, explicit), (0, true));
    assert!(json.contains("spiffe://cluster.local/ns/shop/sa/other"), "{json}");
    let (_, _, json) = sockets("mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://x/y]");
    assert!(json.contains("spiffe://x/y") && !json.contains("sa/other"), "{json}");
    let (_, _, json) = sockets("mode: SIMPLE, sni: a.example.com, caCertificates: /roots.pem");
    assert!(json.contains("\"sni\":\"a.example.com\"") && json.contains("/roots.pem"), "{json}");
    let (_, _, json) = sockets(
        "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /r.pem",
    );
    assert!(json.contains("/c.pem") && json.contains("/k.pem"), "{json}");
}

#[test]
fn resolution_decides_how_endpoints_are_found() {
    let entry = |resolution: &str, endpoints: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: out, namespace: shop}}\nspec:\n  hosts: [out.example.com]\n  \
             ports: [{{number: 80, name: http, protocol: HTTP}}]\n  resolution: {resolution}\n{endpoints}"
        )
    };
    for (resolution, endpoints, kind) in [
        ("DNS", "", DiscoveryType::StrictDns),
        ("DNS_ROUND_ROBIN", "  endpoints: [{address: a.example.com}]", DiscoveryType::LogicalDns),
        ("NONE", "", DiscoveryType::OriginalDst),
        ("STATIC", "  endpoints: [{address: 192.0.2.1}]", DiscoveryType::Eds),
    ] {
        let world = world(&entry(resolution, endpoints));
        let cluster =
            cluster(&world, &client(), "outbound|80||out.example.com").expect("a cluster");
        let found = cluster.cluster_discovery_type;
        assert_eq!(found, Some(ClusterDiscoveryType::Type(kind as i32)), "{resolution}");
        assert!(cluster.transport_socket_matches.is_empty(), "outside the mesh: no mutual TLS");
    }
}

#[test]
fn only_gateways_get_credentials_and_only_their_own() {
    let world = world(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: istio-system}\n\
         stringData: {tls.crt: chain, tls.key: key, ca.crt: roots}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: foreign, namespace: shop}\n\
         stringData: {tls.crt: chain, tls.key: key}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: no-key, namespace: istio-system}\n\
         stringData: {tls.crt: chain}",
    );
    let gateway = view(ProxyKind::Gateway, "istio-system", "ingress-0", &[]);
    let has = |view: &ProxyView, name: &str| secret(&world, view, name).is_some();
    assert!(has(&gateway, "kubernetes://cert"));
    assert!(has(&gateway, "kubernetes://cert-cacert"));
    assert!(has(&gateway, "kubernetes://istio-system/cert"));
    for refused in [
        "kubernetes://foreign",
        "kubernetes://shop/foreign",
        "kubernetes://no-key",
        "kubernetes://nosuch",
        "default",
        "ROOTCA",
        "file-cert:/a~/b",
    ] {
        assert!(!has(&gateway, refused), "{refused}");
    }
    let sidecar = view(ProxyKind::Sidecar, "istio-system", "app-0", &[]);
    assert!(!has(&sidecar, "kubernetes://cert"));
}

#[test]
fn findings_name_the_resource_and_the_field_once() {
    let yaml = rule(
        "  trafficPolicy: {loadBalancer: {simple: RANDOM, warmup: {duration: 10s}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {name: reviews, namespace: shop}\nspec:\n  hosts: [reviews]\n  http:\n  \
         - mirror: {host: reviews}\n    route: [{destination: {host: reviews}}]",
    );
    let findings = |flavor| {
        let view = ProxyView { flavor, ..client() };
        let (_, findings) = translate(&world(&yaml), &view);
        findings
            .iter()
            .map(|finding| {
                let resource = finding.resource.as_ref().map(ToString::to_string);
                format!("{} {} {}", finding.code, resource.unwrap_or_default(), finding.path)
            })
            .collect::<Vec<_>>()
    };
    let warmup = "WEFT0005 DestinationRule shop/reviews spec.trafficPolicy.loadBalancer.warmup";
    assert_eq!(findings(Flavor::Envoy), [warmup]);
    assert_eq!(findings(Flavor::Weft), [warmup]);
}

#[test]
fn a_gateway_that_passes_on_by_sni_has_a_cluster_for_each_name() {
    let world = world(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {name: cross, namespace: istio-system}\n\
         spec: {selector: {istio: eastwest}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, \
         tls: {mode: AUTO_PASSTHROUGH}, hosts: ['*.local']}]}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {name: reviews, namespace: shop}\n\
         spec: {host: reviews, subsets: [{name: v2, labels: {version: v2}}]}",
    );
    let gateway = |flavor| ProxyView {
        flavor,
        ..view(ProxyKind::Gateway, "istio-system", "cross-0", &[("istio", "eastwest")])
    };
    let name = "outbound_.9080_._.reviews.shop.svc.cluster.local";
    let found = cluster(&world, &gateway(Flavor::Envoy), name).expect("a cluster");
    assert!(found.transport_socket.is_none() && found.transport_socket_matches.is_empty());
    let subset = "outbound_.9080_.v2_.reviews.shop.svc.cluster.local";
    assert!(cluster(&world, &gateway(Flavor::Envoy), subset).is_some());
    assert!(cluster(&world, &client(), name).is_none(), "sidecars have no such clusters");
    // Only those that take mutual TLS: the others' data would be open to anybody who knows a name.
    assert_eq!(addresses(&world, &gateway(Flavor::Envoy), name), ["+10.2.0.2:19080"]);
    assert!(endpoints(&world, &client(), name).is_none());
    let tables = tables(&world, &gateway(Flavor::Weft)).expect("our proxy takes it");
    let listener = tables.listeners().next().expect("a listener");
    let chains = |sni: &str, alpn: &str| {
        let client = "192.0.2.7:40000".parse().expect("address");
        let info = ConnInfo {
            dst: "127.2.0.9:15443".parse().expect("address"),
            src: client,
            direct_src: client,
            sni: Some(sni),
            alpn: &[alpn.as_bytes()],
            tls: true,
        };
        listener.select_chain(&info).map(|chain| tcp_clusters(&chain.network))
    };
    assert_eq!(chains(name, "istio").as_deref(), Some("outbound_.9080_._.reviews.shop"));
    assert_eq!(chains(name, "h2"), None, "not of the mesh");
    assert_eq!(chains("outbound_.1_._.reviews.shop.svc.cluster.local", "istio"), None);
}

#[test]
fn what_our_own_proxy_cannot_check_is_reported() {
    let yaml = rule(
        "  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /r.pem, caCrl: /r.crl}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: Gateway\n\
         metadata: {name: edge, namespace: istio-system}\n\
         spec: {selector: {istio: edge}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, \
         hosts: ['*'], tls: {mode: MUTUAL, serverCertificate: /c.pem, privateKey: /k.pem, \
         caCertificates: /r.pem, caCrl: /r.crl, cipherSuites: [AES128-SHA], \
         verifyCertificateHash: [ab12], verifyCertificateSpki: [cd34]}}]}",
    );
    let edge = view(ProxyKind::Gateway, "istio-system", "edge-0", &[("istio", "edge")]);
    let paths = |flavor, view: ProxyView| {
        let (_, findings) = translate(&world(&yaml), &ProxyView { flavor, ..view });
        findings.into_iter().map(|finding| finding.path).collect::<Vec<_>>()
    };
    assert_eq!(paths(Flavor::Envoy, client()), Vec::<String>::new());
    assert_eq!(paths(Flavor::Weft, client()), Vec::<String>::new());
    let own = paths(Flavor::Weft, edge.clone());
    assert!(own.contains(&"spec.servers[0].tls.cipherSuites".to_owned()), "{own:?}");
    let (resources, _) = translate(&world(&yaml), &edge);
    let listener = resources.listeners.first().expect("a listener");
    let json = weft_xds::json::body_to_json(weft_xds::type_url::LISTENER, &listener.body);
    let json = json.to_string();
    assert!(json.contains("ab12") && json.contains("cd34"), "{json}");
}

const CREDENTIALS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: partner, namespace: shop}
stringData: {tls.crt: CERT, tls.key: KEY, ca.crt: ROOTS, ca.crl: REVOKED}
---
apiVersion: v1
kind: Secret
metadata: {name: other, namespace: shop}
stringData: {tls.crt: CERT, tls.key: KEY, ca.crt: ROOTS}
";

/// What a credential's rule with this selector gives a sidecar: socket or none, its secrets,
/// findings.
fn with_credential(selector: &str) -> (bool, Vec<bool>, Vec<String>) {
    let policy = format!(
        "{selector}\n  trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: partner}}}}\n---\n{CREDENTIALS}"
    );
    let world = world(&rule(&policy));
    let found = cluster(&world, &client(), REVIEWS).expect("a cluster");
    let names = ["partner", "partner-cacert", "other", "other-cacert"];
    let given =
        names.map(|name| secret(&world, &client(), &format!("kubernetes://{name}")).is_some());
    let (_, findings) = translate(&world, &client());
    let paths = findings.into_iter().map(|finding| finding.path).collect();
    (found.transport_socket.is_some(), given.to_vec(), paths)
}

#[test]
fn a_sidecar_gets_the_credentials_of_rules_that_select_it() {
    let (socket, given, paths) =
        with_credential("  workloadSelector: {matchLabels: {app: client}}");
    assert!(socket && paths.is_empty(), "{paths:?}");
    assert_eq!(given, [true, true, false, false], "and no other");
    let (socket, given, _) = with_credential("  workloadSelector: {matchLabels: {app: other}}");
    assert!(!socket);
    assert_eq!(given, [false; 4]);
    // As in Istio: nothing to show, so plain text; but it is told.
    let (socket, given, paths) = with_credential("");
    assert!(!socket);
    assert_eq!(given, [false; 4]);
    assert_eq!(paths, ["spec.trafficPolicy.tls.credentialName"]);
}

#[test]
fn a_secrets_revocation_list_goes_with_its_roots() {
    use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
    let policy = format!(
        "  workloadSelector: {{matchLabels: {{app: client}}}}\n  trafficPolicy: {{tls: {{mode: \
         SIMPLE, credentialName: partner}}}}\n---\n{CREDENTIALS}"
    );
    let world = world(&rule(&policy));
    let found = secret(&world, &client(), "kubernetes://partner-cacert").expect("the roots");
    let found: Secret = found.decode().expect("a secret");
    let Some(Type::ValidationContext(context)) = found.r#type else { panic!("{found:?}") };
    assert!(context.crl.is_some_and(|crl| format!("{crl:?}").contains("[82, 69, 86")));
}
