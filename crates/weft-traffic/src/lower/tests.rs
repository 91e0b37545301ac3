use super::samples::*;
use super::*;
use crate::http::{HttpFilter, RouteSource};
use crate::lb::LbPolicy;
use crate::listener::{Direction, Network};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_pb;
use crate::pb::google::protobuf;

#[test]
fn a_listener_lowers() {
    let lowered = listener(&sample_listener()).unwrap();
    assert_eq!(
        (lowered.direction, lowered.bind, lowered.inspectors.tls),
        (Direction::Inbound, true, true)
    );
    let tls = lowered.chains[0].tls.as_ref().unwrap();
    assert!(tls.require_client_cert);
    let Network::Http(http) = &lowered.chains[0].network else { panic!("not HTTP") };
    assert!(matches!(&http.routes, RouteSource::Rds(name) if &**name == "8080"));
    assert!(matches!(http.filters[..], [HttpFilter::Cors(_), HttpFilter::Fault(_)]));
    assert_eq!((http.timeouts.stream_idle, http.websocket), (None, true));
    assert!(matches!(lowered.chains[1].network, Network::Tcp(_)));
}

#[test]
fn a_cluster_and_its_endpoints_lower() {
    let lowered = cluster(&sample_cluster()).unwrap();
    let set = endpoints(&sample_endpoints()).unwrap();
    assert_eq!(lowered.config.istio.subset.as_deref(), Some("v1"));
    assert_eq!(lowered.config.limits[0].connections_max, 1);
    assert_eq!(lowered.config.limits[1].connections_max, 1024);
    assert_eq!(set.endpoints[0].workload.as_ref().unwrap().canonical_name.as_ref(), "reviews");
    let transport = |at: usize| lowered.transport(&set.endpoints[at]);
    assert!(matches!(transport(0), crate::cluster::Transport::Tls(_)));
    assert!(matches!(transport(1), crate::cluster::Transport::Plain));
}

#[test]
fn a_route_lowers() {
    let table = route_config(&sample_routes()).unwrap();
    let route = &table.hosts[0].routes[0];
    assert!(route.origin.as_ref().unwrap().ends_with("virtual-service/r"));
    let crate::route::Action::Forward(action) = &route.action else { panic!("not forwarding") };
    let retry = action.retry.as_ref().unwrap();
    assert_eq!((retry.retries_max, retry.status_codes.clone()), (2, vec![503]));
    assert_eq!((retry.host_selection_attempts, retry.avoid_previous), (5, true));
    assert_eq!(action.timeouts.request, None);
}

/// The error that `change` to a good sample brings.
fn listener_error(change: impl FnOnce(&mut listener_pb::Listener)) -> String {
    let mut message = sample_listener();
    change(&mut message);
    listener(&message).unwrap_err().to_string()
}

fn hcm_error(change: impl FnOnce(&mut hcm_pb::HttpConnectionManager)) -> String {
    let mut hcm = sample_hcm();
    change(&mut hcm);
    listener_error(|l| l.filter_chains[0].filters = vec![network(&hcm)])
}

#[test]
fn errors_name_the_field() {
    for (error, expect) in [
        (
            listener_error(|l| l.address = None),
            "listener \"virtualInbound\".address: an address is required",
        ),
        (listener_error(|l| l.filter_chains.clear()), "filter_chains: at least one"),
        (
            listener_error(|l| {
                let same = l.filter_chains[0].filter_chain_match.clone();
                l.filter_chains[1].filter_chain_match = same;
            }),
            "filter_chains[1].filter_chain_match: matches the same as filter_chains[0]",
        ),
        (
            listener_error(|l| l.filter_chains[1].filters.clear()),
            "filter_chains[1].filters: must end",
        ),
        (
            hcm_error(|h| h.http_filters.insert(0, http_filter("lua", &core::Node::default()))),
            "filters[0].http_filters[0]: HTTP filter \"lua\"",
        ),
        (
            hcm_error(|h| {
                h.http_filters.pop();
            }),
            "must end with envoy.filters.http.router",
        ),
        (
            hcm_error(|h| h.max_request_headers_kb = Some(protobuf::UInt32Value { value: 9000 })),
            "max_request_headers_kb",
        ),
        (hcm_error(|h| h.route_specifier = None), "route_specifier: is required"),
        (hcm_error(|h| h.stream_idle_timeout = seconds(-1)), "stream_idle_timeout: duration"),
    ] {
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }
}

#[test]
fn optional_and_native_filters_are_left_out() {
    let mut hcm = sample_hcm();
    let mut optional = http_filter("lua", &core::Node::default());
    optional.is_optional = true;
    hcm.http_filters.insert(0, optional);
    let native = Any { type_url: "type.googleapis.com/stats.PluginConfig".into(), value: vec![] };
    hcm.http_filters.insert(
        0,
        hcm_pb::HttpFilter {
            name: "istio.stats".into(),
            config_type: Some(hcm_pb::http_filter::ConfigType::TypedConfig(native)),
            ..Default::default()
        },
    );
    let mut message = sample_listener();
    message.filter_chains[0].filters = vec![network(&hcm)];
    listener(&message).unwrap();
}

fn cluster_error(change: impl FnOnce(&mut cluster_pb::Cluster)) -> String {
    let mut message = sample_cluster();
    change(&mut message);
    cluster(&message).unwrap_err().to_string()
}

#[test]
fn clusters_refuse_what_they_cannot_do() {
    for (error, expect) in [
        (
            cluster_error(|c| c.health_checks = vec![Default::default()]),
            "health_checks: is not supported",
        ),
        (cluster_error(|c| c.lb_policy = 42), "lb_policy: 42 is not known"),
        (
            cluster_error(|c| {
                c.cluster_discovery_type = Some(cluster_pb::cluster::ClusterDiscoveryType::Type(1));
            }),
            "load_assignment: is required",
        ),
        (
            cluster_error(|c| {
                c.cluster_discovery_type = Some(cluster_pb::cluster::ClusterDiscoveryType::Type(0));
                let mut load = sample_endpoints();
                let names = &mut load.endpoints[0].lb_endpoints[0].host_identifier;
                *names = Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(
                    endpoint_pb::Endpoint {
                        address: address("example.com", 80),
                        ..Default::default()
                    },
                ));
                c.load_assignment = Some(load);
            }),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: \"example.com\" is not an IP",
        ),
    ] {
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }
}

#[test]
fn balancing_policies_from_either_place() {
    let policy = |change: &dyn Fn(&mut cluster_pb::Cluster)| {
        let mut message = sample_cluster();
        change(&mut message);
        cluster(&message).unwrap().config.lb.policy
    };
    assert_eq!(policy(&|_| {}), LbPolicy::RoundRobin);
    let least = LbPolicy::LeastRequest { choices: 2, full_scan: false, active_bias: 1.0 };
    assert_eq!(policy(&|c| c.lb_policy = 1), least);
    assert_eq!(
        policy(&|c| c.lb_policy = 2),
        LbPolicy::RingHash { ring_min: 1024, ring_max: 8 << 20 }
    );
    assert_eq!(policy(&|c| c.lb_policy = 5), LbPolicy::Maglev { table_size: 65_537 });
    use crate::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
    let typed = policy(&|c| {
        let extension = core::TypedExtensionConfig {
            name: "least".into(),
            typed_config: Some(pack(&LeastRequest { selection_method: 1, ..Default::default() })),
        };
        c.load_balancing_policy = Some(cluster_pb::LoadBalancingPolicy {
            policies: vec![cluster_pb::load_balancing_policy::Policy {
                typed_extension_config: Some(extension),
            }],
        });
    });
    assert_eq!(typed, LbPolicy::LeastRequest { choices: 2, full_scan: true, active_bias: 1.0 });
}

fn route_error(change: impl FnOnce(&mut route_pb::VirtualHost)) -> String {
    let mut message = sample_routes();
    change(&mut message.virtual_hosts[0]);
    route_config(&message).unwrap_err().to_string()
}

#[test]
fn routes_refuse_what_they_cannot_do() {
    let zero = |v: &mut route_pb::VirtualHost| {
        let Some(route_pb::route::Action::Route(action)) = &mut v.routes[0].action else { return };
        action.cluster_specifier =
            Some(route_pb::route_action::ClusterSpecifier::WeightedClusters(Default::default()));
    };
    let bomb = |v: &mut route_pb::VirtualHost| {
        let regex = crate::pb::envoy::r#type::matcher::v3::RegexMatcher {
            regex: "((a{100}){100}){100}".into(),
            ..Default::default()
        };
        v.routes[0].r#match.as_mut().unwrap().path_specifier =
            Some(route_pb::route_match::PathSpecifier::SafeRegex(regex));
    };
    for (error, expect) in [
        (route_error(|v| v.domains.clear()), "virtual_hosts[0].domains: at least one"),
        (route_error(|v| v.domains.push("reviews".into())), "domain \"reviews\" appears twice"),
        (
            route_error(|v| v.routes[0].r#match = None),
            "virtual_hosts[0].routes[0].match: is required",
        ),
        (route_error(|v| v.routes[0].action = None), "routes[0].action: is required"),
        (route_error(zero), "route.weighted_clusters.clusters: the weights add up to zero"),
        (route_error(bomb), "match.safe_regex.regex: bad regular expression"),
        (
            route_error(|v| {
                let header = core::HeaderValue {
                    key: "Host".into(),
                    value: "x".into(),
                    ..Default::default()
                };
                v.request_headers_to_add
                    .push(core::HeaderValueOption { header: Some(header), ..Default::default() });
            }),
            "request_headers_to_add[0].header.key: \"Host\" is not a header that edits may change",
        ),
        (
            route_error(|v| v.request_headers_to_remove.push(":path".into())),
            "request_headers_to_remove[0]: \":path\" cannot be removed",
        ),
    ] {
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }
}
