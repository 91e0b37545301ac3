//! Random resources of every kind but HTTP rules, and probes that tell their effects apart.
//! Everything decides alike each time: one endpoint, or a hash.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use weft_testkit::client::Wire;

use super::super::ask::Ask;
use super::super::dice::Dice;
use super::probe::Probe;
use super::stage::{PODS, SERVICES, STREAMS};
use super::{BYTES, HTTP, OWN_BYTES, OWN_HTTP, Part, SNI, behind};

pub fn parts(dice: &mut Dice) -> Vec<Part> {
    let mut parts: Vec<Part> = (0..SERVICES)
        .map(|number| if number % 2 == 0 { hashed(dice, number) } else { pool(dice, number) })
        .collect();
    parts.extend((0..3).map(|number| entry(dice, number)));
    parts.extend([gateways(dice), streams_at_gateway(dice), streams(dice), inbound(dice)]);
    parts
}

fn resource(kind: &str, name: &str, spec: &Value) -> Value {
    let group = if kind == "PeerAuthentication" { "security" } else { "networking" };
    json!({
        "apiVersion": format!("{group}.istio.io/v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

fn get(host: &str, target: &str, headers: &[(&'static str, &str)]) -> Ask {
    let mut all = vec![("host", host.to_owned())];
    all.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Ask { wire: Wire::H1, method: Method::GET, target: target.to_owned(), headers: all, body: "" }
}

/// The same key, the same endpoint.
fn hashed(dice: &mut Dice, number: usize) -> Part {
    let host = format!("s{number}");
    let mut subset = json!({"name": "odd", "labels": {"parity": "odd"}});
    if dice.one_in(2) {
        subset["trafficPolicy"] = json!({"loadBalancer": {"consistentHash": hash(dice)}});
    }
    let mut policy = json!({"loadBalancer": {"consistentHash": hash(dice)}});
    if dice.one_in(3) {
        let level = json!({"port": {"number": 80}, "loadBalancer": {"consistentHash": hash(dice)}});
        policy["portLevelSettings"] = json!([level]);
    }
    let rule = json!({"host": host, "trafficPolicy": policy, "subsets": [
        subset, {"name": "even", "labels": {"parity": "even"}},
    ]});
    let routes = json!({"hosts": [host], "http": [
        {"match": [{"uri": {"prefix": "/odd"}}], "route": [{"destination": {"host": host, "subset": "odd"}}]},
        {"match": [{"uri": {"prefix": "/even"}}], "route": [{"destination": {"host": host, "subset": "even"}}]},
        {"route": [{"destination": {"host": host}}]},
    ]});
    let mut probes = Vec::new();
    for key in 0..10 {
        let value = format!("key-{}", dice.below(1000));
        let path = dice.pick(&["/", "/odd", "/even"]);
        let cookie = format!("first=1; user={value}");
        let headers = [("x-a", value.as_str()), ("cookie", cookie.as_str())];
        let mut ask = get(&host, &format!("{path}?q={value}&r={key}"), &headers);
        if dice.one_in(3) {
            ask.wire = Wire::H2;
        }
        probes.push(Probe::Http(HTTP, ask));
    }
    let resources =
        vec![resource("DestinationRule", &host, &rule), resource("VirtualService", &host, &routes)];
    Part { resources, probes }
}

fn hash(dice: &mut Dice) -> Value {
    let mut hash = match dice.below(4) {
        0 => json!({"httpHeaderName": "x-a"}),
        1 => json!({"httpQueryParameterName": "q"}),
        2 => json!({"useSourceIp": true}),
        _ => json!({"httpCookie": {"name": "user", "ttl": "0s"}}),
    };
    match dice.below(4) {
        0 => hash["ringHash"] = json!({"minimumRingSize": dice.pick(&[16, 64, 2048])}),
        1 => hash["maglev"] = json!({"tableSize": dice.pick(&[251, 1009])}),
        2 => hash["maglev"] = json!({}),
        _ => {}
    }
    hash
}

/// Limits, which several requests at once meet; one endpoint.
fn pool(dice: &mut Dice, number: usize) -> Part {
    let host = format!("s{number}");
    let mut http = json!({});
    let mut tcp = json!({});
    if dice.one_in(2) {
        tcp["maxConnections"] = json!(dice.pick(&[1, 2, 100]));
    }
    if dice.one_in(2) {
        http["http1MaxPendingRequests"] = json!(dice.pick(&[1, 2, 100]));
    }
    if dice.one_in(2) {
        http["http2MaxRequests"] = json!(dice.pick(&[1, 3, 100]));
    }
    // How many wait at once while connections are opened is chance, which a short queue would show.
    let queue = http["http1MaxPendingRequests"].as_u64().unwrap_or(100);
    if dice.one_in(4) && queue == 100 {
        http["maxRequestsPerConnection"] = json!(1);
    }
    match dice.below(4) {
        0 => http["h2UpgradePolicy"] = json!("UPGRADE"),
        1 => http["h2UpgradePolicy"] = json!("DO_NOT_UPGRADE"),
        2 => http["useClientProtocol"] = json!(true),
        _ => {}
    }
    let policy = json!({"connectionPool": {"tcp": tcp, "http": http}});
    let rule = json!({"host": host, "trafficPolicy": policy, "subsets": [
        {"name": "v3", "labels": {"version": "v3"}},
    ]});
    let routes = json!({"hosts": [host], "http": [
        {"route": [{"destination": {"host": host, "subset": "v3"}}]},
    ]});
    let mut slow = get(&host, "/", &[("x-sleep", "600")]);
    let mut quick = get(&host, "/", &[]);
    if dice.one_in(2) {
        (slow.wire, quick.wire) = (Wire::H2, Wire::H2);
    }
    let probes = vec![Probe::Http(HTTP, quick), Probe::Burst(HTTP, slow, 5)];
    let resources =
        vec![resource("DestinationRule", &host, &rule), resource("VirtualService", &host, &routes)];
    Part { resources, probes }
}

/// A ServiceEntry with one endpoint, or none.
fn entry(dice: &mut Dice, number: usize) -> Part {
    let (name, pod) = (format!("ext-{number}"), dice.pick(&PODS));
    let host = format!("{name}.test");
    let mut hosts = vec![host.clone()];
    let resolution = dice.pick(&["STATIC", "DNS", "STATIC", "DNS_ROUND_ROBIN"]);
    if resolution == "STATIC" && dice.one_in(2) {
        hosts.push(format!("*.wild-{number}.test"));
    }
    let mut ports =
        vec![json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080})];
    if dice.one_in(2) {
        let more = json!({"number": 8080, "name": "http-more", "protocol": "HTTP"});
        ports.push(more);
    }
    let mut endpoint = json!({"address": format!("POD:{pod}")});
    if dice.one_in(4) {
        endpoint["ports"] = json!({"http": dice.pick(&[8080, 7999])});
    }
    let mut spec = json!({
        "hosts": hosts, "ports": ports, "resolution": resolution,
        "location": dice.pick(&["MESH_EXTERNAL", "MESH_INTERNAL"]),
    });
    if !dice.one_in(6) || resolution != "STATIC" {
        spec["endpoints"] = json!([endpoint]);
    }
    let mut resources = vec![resource("ServiceEntry", &name, &spec)];
    if dice.one_in(3) {
        let rule = json!({"host": host, "trafficPolicy": {"tls": {"mode": "DISABLE"}}});
        resources.push(resource("DestinationRule", &name, &rule));
    }
    let mut probes = Vec::new();
    for host in [
        host.clone(),
        format!("{host}:80"),
        format!("{host}:8080"),
        host.to_uppercase(),
        format!("a.wild-{number}.test"),
        format!("wild-{number}.test"),
        format!("other-{number}.test"),
    ] {
        let mut ask = get(&host, "/x", &[]);
        if dice.one_in(3) {
            ask.wire = Wire::H2;
        }
        probes.push(Probe::Http(HTTP, ask));
    }
    Part { resources, probes }
}

/// HTTP servers of several Gateways on two ports, and rules bound to some of them.
fn gateways(dice: &mut Dice) -> Part {
    const HOSTS: &[&str] = &["one.test", "*.two.test", "a.two.test", "*.test", "three.test"];
    let mut resources = Vec::new();
    let mut names = Vec::new();
    for number in 0..=dice.below(3) {
        let mut servers = Vec::new();
        for server in 0..=dice.below(2) {
            let port = dice.pick(&[80, 8080]);
            let hosts: Vec<String> = (0..=dice.below(2))
                .map(|_| {
                    let space = dice.pick(&["", "", "./", "default/", "elsewhere/"]);
                    format!("{space}{}", dice.pick(HOSTS))
                })
                .collect();
            let port =
                json!({"number": port, "name": format!("http-{server}"), "protocol": "HTTP"});
            servers.push(json!({"port": port, "hosts": hosts}));
        }
        let name = format!("gw-{number}");
        let spec = json!({"selector": {"app": "router"}, "servers": servers});
        resources.push(resource("Gateway", &name, &spec));
        names.push(name);
    }
    for number in 0..=dice.below(3) {
        let hosts: BTreeSet<&str> = (0..=dice.below(2)).map(|_| dice.pick(HOSTS)).collect();
        let bound: Vec<&String> = names.iter().filter(|_| !dice.one_in(3)).collect();
        let mut first = json!({"route": [{"destination": {"host": "one"}}]});
        first["match"] = match dice.below(3) {
            0 => json!([{"uri": {"prefix": format!("/{number}")}}]),
            1 => json!([{"port": dice.pick(&[80, 8080])}]),
            _ => json!([{"authority": {"prefix": "a."}}]),
        };
        let rest = json!({"route": [{"destination": {"host": "two"}}]});
        let mut rules = vec![first];
        if dice.one_in(2) {
            rules.push(rest);
        }
        let bound = if bound.is_empty() { vec![&names[0]] } else { bound };
        let spec = json!({"hosts": hosts, "gateways": bound, "http": rules});
        resources.push(resource("VirtualService", &format!("at-gateways-{number}"), &spec));
    }
    let mut probes = Vec::new();
    for port in [80, 8080] {
        for host in ["one.test", "A.two.test", "b.two.test", "three.test", "c.test:80", "other"] {
            let path = dice.pick(&["/", "/0", "/1/x"]);
            probes.push(Probe::Http(behind(port), get(host, path, &[])));
        }
    }
    Part { resources, probes }
}

/// `bytes` in a version that has one pod, or none.
fn version(dice: &mut Dice) -> Value {
    let subset = dice.pick(&["v1", "v2", "v3", "v1", "v2", "nobody"]);
    json!({"host": "bytes", "subset": subset})
}

const NAMES: &[&str] = &["a.tls.test", "*.tls.test", "b.tls.test", "*.deep.tls.test"];
const ASKED: &[&str] = &["a.tls.test", "b.tls.test", "x.tls.test", "x.deep.tls.test", "c.test"];

/// TCP and TLS servers, with rules by port and server name.
fn streams_at_gateway(dice: &mut Dice) -> Part {
    let mut servers = Vec::new();
    for (number, port) in [31400, 31401].into_iter().enumerate() {
        if dice.one_in(3) {
            continue;
        }
        let port = json!({"number": port, "name": format!("tcp-{number}"), "protocol": "TCP"});
        servers.push(json!({"port": port, "hosts": ["*"]}));
    }
    let names: Vec<&str> = NAMES.iter().copied().filter(|_| !dice.one_in(3)).collect();
    let hosts = if names.is_empty() || dice.one_in(4) { vec!["*"] } else { names };
    let port = json!({"number": 8443, "name": "tls", "protocol": "TLS"});
    servers.push(json!({"port": port, "hosts": hosts, "tls": {"mode": "PASSTHROUGH"}}));
    let gateway = json!({"selector": {"app": "router"}, "servers": servers});
    let mut tcp = Vec::new();
    for _ in 0..=dice.below(2) {
        let mut rule = json!({"route": [{"destination": version(dice)}]});
        if !dice.one_in(4) {
            rule["match"] = json!([{"port": dice.pick(&[31400, 31401])}]);
        }
        tcp.push(rule);
    }
    let mut tls = Vec::new();
    for _ in 0..=dice.below(3) {
        let hosts: BTreeSet<&str> = (0..=dice.below(2)).map(|_| dice.pick(NAMES)).collect();
        let mut matching = json!({"sniHosts": hosts});
        if dice.one_in(3) {
            matching["port"] = json!(dice.pick(&[8443, 31400]));
        }
        tls.push(json!({"match": [matching], "route": [{"destination": version(dice)}]}));
    }
    let tcp = json!({"hosts": ["*"], "gateways": ["streams"], "tcp": tcp});
    let tls = json!({"hosts": NAMES, "gateways": ["streams"], "tls": tls});
    let resources = vec![
        resource("Gateway", "streams", &gateway),
        resource("VirtualService", "streams-tcp", &tcp),
        resource("VirtualService", "streams-tls", &tls),
    ];
    let mut probes = vec![Probe::Stream(behind(31400), None), Probe::Stream(behind(31401), None)];
    probes.extend(ASKED.iter().map(|name| Probe::Stream(behind(8443), Some(*name))));
    probes.push(Probe::Stream(behind(8443), None));
    Part { resources, probes }
}

/// TCP rules of a service and TLS of ServiceEntries, in a sidecar.
fn streams(dice: &mut Dice) -> Part {
    let mut tcp = Vec::new();
    for _ in 0..dice.below(3) {
        let matching = match dice.below(5) {
            0 => json!({"port": dice.pick(&[15700, 7000])}),
            1 => json!({"sourceLabels": {"team": dice.pick(&["blue", "red"])}}),
            2 => json!({"destinationSubnets": [dice.pick(&["127.0.0.0/8", "10.0.0.0/8"])]}),
            3 => json!({"sourceNamespace": dice.pick(&["default", "other"])}),
            _ => json!({"gateways": ["mesh"], "port": 15700}),
        };
        tcp.push(json!({"match": [matching], "route": [{"destination": version(dice)}]}));
    }
    tcp.push(json!({"route": [{"destination": version(dice)}]}));
    let tcp = json!({"hosts": ["bytes"], "tcp": tcp});
    let mut resources = vec![resource("VirtualService", "bytes", &tcp)];
    for (number, host) in ["a.tls.test", "*.tls.test"].into_iter().enumerate() {
        if dice.one_in(3) {
            continue;
        }
        let port = json!({"number": 443, "name": "tls", "protocol": "TLS", "targetPort": STREAMS});
        let spec = json!({
            "hosts": [host], "ports": [port], "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [{"address": format!("POD:{}", dice.pick(&PODS))}],
        });
        resources.push(resource("ServiceEntry", &format!("tls-{number}"), &spec));
        if dice.one_in(2) {
            let names: Vec<&str> = if host.starts_with('*') {
                NAMES.iter().copied().filter(|_| dice.one_in(2)).collect()
            } else {
                vec![host]
            };
            let names = if names.is_empty() { vec![host] } else { names };
            let rule = json!({
                "match": [{"sniHosts": names, "port": dice.pick(&[15443, 15443, 443])}],
                "route": [{"destination": version(dice)}],
            });
            let spec = json!({"hosts": [host], "tls": [rule]});
            resources.push(resource("VirtualService", &format!("tls-{number}"), &spec));
        }
    }
    let mut probes = vec![Probe::Stream(BYTES, None)];
    probes.extend(ASKED.iter().map(|name| Probe::Stream(SNI, Some(*name))));
    probes.push(Probe::Stream(SNI, None));
    Part { resources, probes }
}

/// Who may reach the sidecar's application, and how.
fn inbound(dice: &mut Dice) -> Part {
    const MODES: &[&str] = &["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
    let mut resources = Vec::new();
    if dice.one_in(2) {
        let spec = json!({"mtls": {"mode": dice.pick(MODES)}});
        resources.push(resource("PeerAuthentication", "all", &spec));
    }
    if !dice.one_in(4) {
        let mut spec = json!({
            "selector": {"matchLabels": {"app": "sidecar"}},
            "mtls": {"mode": dice.pick(MODES)},
        });
        if dice.one_in(2) {
            let port = dice.pick(&["15090", "15091"]);
            spec["portLevelMtls"] = json!({port: {"mode": dice.pick(MODES)}});
        }
        resources.push(resource("PeerAuthentication", "sidecar", &spec));
    }
    let mut h2 = get("anything", "/x", &[]);
    h2.wire = Wire::H2;
    let probes = vec![
        Probe::Http(OWN_HTTP, get("anything", "/x?y", &[("x-a", "1")])),
        Probe::Http(OWN_HTTP, h2),
        Probe::Stream(OWN_HTTP, Some("own.test")),
        Probe::Stream(OWN_BYTES, None),
        Probe::Stream(OWN_BYTES, Some("own.test")),
    ];
    Part { resources, probes }
}
