use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::route::ClusterChoice;

fn chain(name: &str, matches: ChainMatch) -> FilterChain {
    let tcp = TcpConfig {
        stat_prefix: name.into(),
        clusters: ClusterChoice::One(name.into()),
        cluster_from_sni: false,
        sni_port: None,
        idle_timeout: None,
        connect_attempts_max: 1,
        connection_duration_max: None,
        hash_source_ip: false,
        tunnel: None,
        access_log: None,
        metrics: None,
    };
    FilterChain {
        name: name.into(),
        matches,
        tls: None,
        handshake_timeout: None,
        network: Network::Tcp(Arc::new(tcp)),
    }
}

fn listener(chains: Vec<FilterChain>, default: bool) -> ListenerConfig {
    ListenerConfig {
        name: "l".into(),
        address: "0.0.0.0:15006".parse().unwrap(),
        additional_addresses: Vec::new(),
        bind: true,
        direction: Direction::Inbound,
        use_original_dst: false,
        transparent: false,
        inspectors: Inspectors::default(),
        chains,
        default_chain: default.then(|| chain("default", ChainMatch::default())),
        inspect_timeout: Duration::ZERO,
        continue_on_inspect_timeout: false,
        buffer_bytes_max: None,
        access_log: None,
    }
}

fn conn<'a>(dst: &str, sni: Option<&'a str>, alpn: &'a [&'a [u8]], tls: bool) -> ConnInfo<'a> {
    let src = "10.1.1.1:999".parse().unwrap();
    ConnInfo { dst: dst.parse().unwrap(), src, direct_src: src, sni, alpn, tls }
}

fn port(port: u16) -> ChainMatch {
    ChainMatch { destination_port: Some(port), ..Default::default() }
}

fn tls(alpn: &[&str]) -> ChainMatch {
    ChainMatch {
        transport_protocol: "tls".into(),
        application_protocols: alpn.iter().map(|a| a.as_bytes().into()).collect(),
        ..Default::default()
    }
}

fn names(names: &[&str]) -> ChainMatch {
    ChainMatch { server_names: names.iter().map(|n| (*n).into()).collect(), ..Default::default() }
}

fn prefix(text: &str, bits: u8) -> ChainMatch {
    let range = Cidr::new(text.parse().unwrap(), bits).unwrap();
    ChainMatch { prefix_ranges: vec![range], ..Default::default() }
}

fn selected(listener: &ListenerConfig, conn: &ConnInfo<'_>) -> String {
    listener.select_chain(conn).map_or("none".into(), |chain| chain.name.to_string())
}

#[test]
fn istio_permissive_inbound() {
    let with_port = |matches: ChainMatch| ChainMatch { destination_port: Some(8080), ..matches };
    let plain = ChainMatch { transport_protocol: "raw_buffer".into(), ..Default::default() };
    let listener = listener(
        vec![
            chain("mtls", with_port(tls(&["istio", "istio-peer-exchange", "istio-http/1.1"]))),
            chain("tls", with_port(tls(&[]))),
            chain("plain", with_port(plain)),
            chain("any-mtls", tls(&["istio"])),
        ],
        true,
    );
    let istio: &[&[u8]] = &[b"istio", b"h2"];
    for (conn, expect) in [
        (conn("10.0.0.1:8080", None, istio, true), "mtls"),
        (conn("10.0.0.1:8080", Some("x"), &[b"h2"], true), "tls"),
        (conn("10.0.0.1:8080", None, &[], true), "tls"),
        (conn("10.0.0.1:8080", None, &[], false), "plain"),
        (conn("10.0.0.1:9090", None, istio, true), "any-mtls"),
        (conn("10.0.0.1:9090", None, &[], false), "default"),
    ] {
        assert_eq!(selected(&listener, &conn), expect, "{conn:?}");
    }
}

#[test]
fn a_narrowing_criterion_is_final() {
    // As Envoy: the port match leaves only chains of that port, even if none of them goes on to match.
    let wrong_name = ChainMatch { server_names: vec!["a.com".into()], ..port(443) };
    let listener =
        listener(vec![chain("port", wrong_name), chain("open", ChainMatch::default())], false);
    assert_eq!(selected(&listener, &conn("1.1.1.1:443", Some("b.com"), &[], true)), "none");
    assert_eq!(selected(&listener, &conn("1.1.1.1:443", Some("a.com"), &[], true)), "port");
    assert_eq!(selected(&listener, &conn("1.1.1.1:80", Some("b.com"), &[], true)), "open");
}

#[test]
fn server_names_by_specificity() {
    let listener = listener(
        vec![
            chain("any", ChainMatch::default()),
            chain("com", names(&["*.com"])),
            chain("sub", names(&["*.a.com"])),
            chain("exact", names(&["x.a.com"])),
        ],
        false,
    );
    for (sni, expect) in [
        (Some("x.a.com"), "exact"),
        (Some("X.A.com"), "exact"),
        (Some("y.a.com"), "sub"),
        (Some("z.y.a.com"), "sub"),
        (Some("a.com"), "com"),
        (Some("a.org"), "any"),
        (None, "any"),
    ] {
        assert_eq!(selected(&listener, &conn("1.1.1.1:443", sni, &[], true)), expect, "{sni:?}");
    }
}

#[test]
fn longest_destination_prefix() {
    let listener = listener(
        vec![
            chain("all", prefix("0.0.0.0", 0)),
            chain("ten", prefix("10.0.0.0", 8)),
            chain("host", prefix("10.0.0.7", 32)),
        ],
        true,
    );
    for (dst, expect) in [
        ("10.0.0.7:1", "host"),
        ("10.0.0.8:1", "ten"),
        ("[::ffff:10.0.0.8]:1", "ten"),
        ("11.0.0.1:1", "all"),
        ("[2001:db8::1]:1", "default"),
    ] {
        assert_eq!(selected(&listener, &conn(dst, None, &[], false)), expect, "{dst}");
    }
    assert!(Cidr::new("10.0.0.0".parse().unwrap(), 33).is_none());
}

#[test]
fn the_clients_first_protocol_wins() {
    let listener =
        listener(vec![chain("h1", tls(&["http/1.1"])), chain("h2", tls(&["h2"]))], false);
    assert_eq!(selected(&listener, &conn("1.1.1.1:1", None, &[b"h2", b"http/1.1"], true)), "h2");
    assert_eq!(selected(&listener, &conn("1.1.1.1:1", None, &[b"http/1.1", b"h2"], true)), "h1");
    assert_eq!(selected(&listener, &conn("1.1.1.1:1", None, &[b"x"], true)), "none");
}

#[test]
fn sources() {
    let local = ChainMatch { source_type: SourceType::SameIpOrLoopback, ..Default::default() };
    let external = ChainMatch { source_type: SourceType::External, ..Default::default() };
    let one_port = ChainMatch { source_ports: vec![999], ..external.clone() };
    let listener = listener(
        vec![chain("local", local), chain("ext", external), chain("port", one_port)],
        false,
    );
    let mut here = conn("10.1.1.1:1", None, &[], false);
    assert_eq!(selected(&listener, &here), "local");
    here.src = "10.2.2.2:999".parse().unwrap();
    assert_eq!(selected(&listener, &here), "port");
    here.src = "10.2.2.2:1000".parse().unwrap();
    assert_eq!(selected(&listener, &here), "ext");
}
