//! Findings that need more than one resource: references to nothing, rules that never apply,
//! definitions that collide. The resources stay in force; an error says that they do nothing.

mod gateways;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};

use super::{Protocol, Snapshot};
use crate::diagnostic::{Diagnostic, code};
use crate::names::{MESH_GATEWAY, hosts_overlap};
use crate::object::{Kind, Meta, Resource, ResourceKey};
use crate::spec::{
    Destination, DestinationRule, Gateway, HttpMatchRequest, HttpRoute, ServiceEntry, StringMatch,
    TcpRoute, VirtualService,
};

/// All cross-resource findings, in a stable order.
pub(crate) fn all(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    for vs in snapshot.all_virtual_services() {
        virtual_service(snapshot, vs, &mut out);
    }
    delegates(snapshot, &mut out);
    mesh_hosts(snapshot, &mut out);
    destination_rules(snapshot, &mut out);
    gateways::check(snapshot, &mut out);
    workloads::check(snapshot, &mut out);
    service_entries(snapshot, &mut out);
    super::gateway_api::findings(snapshot, &mut out);
    out
}

/// Rules without hosts apply only where another VirtualService delegates to them.
fn delegates(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for vs in snapshot.all_virtual_services() {
        for delegate in vs.spec.http.iter().filter_map(|route| route.delegate.as_ref()) {
            let namespace = match delegate.namespace.as_str() {
                "" => &*vs.meta.namespace,
                given => given,
            };
            used.insert((namespace, &delegate.name));
        }
    }
    for vs in snapshot.all_virtual_services().filter(|vs| vs.spec.hosts.is_empty()) {
        if !used.contains(&(&*vs.meta.namespace, &*vs.meta.name)) {
            let message = "at least one host is required: no VirtualService delegates to this one, \
                           so its rules apply to nothing";
            let help = "Name the service or domain the rules are for.";
            let kind = Kind::VirtualService;
            let found = finding(code::SCHEMA, kind, &vs.meta, "spec.hosts", message);
            out.push(found.with_help(help));
        }
    }
}

fn finding(
    code: &'static str,
    kind: Kind,
    meta: &Meta,
    path: impl Into<String>,
    message: impl Into<String>,
) -> Diagnostic {
    let key = ResourceKey { kind, namespace: meta.namespace.clone(), name: meta.name.clone() };
    Diagnostic::new(code::severity(code), code, &meta.origin, path, message).with_resource(key)
}

fn virtual_service(snapshot: &Snapshot, vs: &Resource<VirtualService>, out: &mut Vec<Diagnostic>) {
    let mut check = Check { snapshot, vs, out };
    check.gateways();
    let Resource { spec, .. } = vs;
    for (index, route) in spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        for (index, to) in route.route.iter().enumerate() {
            check.destination(&to.destination, &format!("{path}.route[{index}].destination"));
        }
        if let Some(mirror) = &route.mirror {
            check.destination(mirror, &format!("{path}.mirror"));
        }
        for (index, mirror) in route.mirrors.iter().enumerate() {
            check.destination(&mirror.destination, &format!("{path}.mirrors[{index}].destination"));
        }
    }
    for (index, route) in spec.tls.iter().enumerate() {
        for (to, at) in route.route.iter().zip(0..) {
            check.destination(
                &to.destination,
                &format!("spec.tls[{index}].route[{at}].destination"),
            );
        }
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        for (to, at) in route.route.iter().zip(0..) {
            check.destination(
                &to.destination,
                &format!("spec.tcp[{index}].route[{at}].destination"),
            );
        }
    }
    check.unreachable("http", &spec.http, http_takes_all);
    check.unreachable("tcp", &spec.tcp, tcp_takes_all);
    check.repeated_matches();
}

struct Check<'a> {
    snapshot: &'a Snapshot,
    vs: &'a Resource<VirtualService>,
    out: &'a mut Vec<Diagnostic>,
}

impl Check<'_> {
    fn report(&mut self, code: &'static str, path: String, message: String, help: &str) {
        let kind = Kind::VirtualService;
        let found = finding(code, kind, &self.vs.meta, path, message);
        self.out.push(found.with_help(help));
    }

    /// Gateways exist, and some server of each serves each host.
    fn gateways(&mut self) {
        for (index, name) in self.vs.spec.gateways.iter().enumerate() {
            if name == MESH_GATEWAY {
                continue;
            }
            let path = format!("spec.gateways[{index}]");
            let gateway =
                name.split_once('/').and_then(|(ns, name)| self.snapshot.gateway(ns, name));
            let Some(gateway) = gateway else {
                let message = format!("Gateway {name} is not defined; nothing serves these routes");
                self.report(code::NOT_FOUND, path, message, "Define it, or correct its name.");
                continue;
            };
            let gateway = gateway.clone();
            for (index, host) in self.vs.spec.hosts.iter().enumerate() {
                if !serves(&gateway, host, &self.vs.meta.namespace) {
                    let path = format!("spec.hosts[{index}]");
                    let message = format!("no server of Gateway {name} has the host {host:?}");
                    let help = "Add the host to a server of the Gateway.";
                    self.report(code::HOST_NOT_IN_GATEWAY, path, message, help);
                }
            }
        }
    }

    /// Host, port and subset exist.
    fn destination(&mut self, to: &Destination, path: &str) {
        let from = self.vs.meta.namespace.clone();
        let Some(service) = self.snapshot.service_covering(&to.host, &from) else {
            let message =
                format!("the host {:?} is no known service; requests fail with 503", to.host);
            let help =
                "Define a Service or ServiceEntry for it; a short name means this namespace.";
            self.report(code::NOT_FOUND, format!("{path}.host"), message, help);
            return;
        };
        let ports: Vec<u16> = service.ports.iter().map(|port| port.number).collect();
        match to.port {
            Some(port) if !ports.iter().any(|number| u32::from(*number) == port.number) => {
                let message =
                    format!("{:?} has no port {}; it has {ports:?}", to.host, port.number);
                self.report(code::NOT_FOUND, format!("{path}.port.number"), message, "");
            }
            // A sidecar takes the port that was called; a gateway cannot know.
            None if ports.len() > 1 && self.vs.spec.gateways.iter().any(|g| g != MESH_GATEWAY) => {
                let message = format!("{:?} has the ports {ports:?}, and none is chosen", to.host);
                let help = "Set destination.port.number.";
                self.report(code::DESTINATION_PORT_REQUIRED, path.to_string(), message, help);
            }
            Some(_) | None => {}
        }
        if to.subset.is_empty() {
            return;
        }
        let rule = self.snapshot.destination_rule_for(&to.host, &from);
        let known = rule.is_some_and(|r| r.spec.subsets.iter().any(|s| s.name == to.subset));
        if !known {
            let message = format!(
                "no DestinationRule for {:?} has the subset {:?}; requests fail with 503",
                to.host, to.subset
            );
            let help = "Add the subset to the host's DestinationRule.";
            self.report(code::NOT_FOUND, format!("{path}.subset"), message, help);
        }
    }

    /// Rules after one that takes everything; `takes_all` says how it does.
    fn unreachable<T>(
        &mut self,
        field: &str,
        rules: &[T],
        takes_all: fn(&T) -> Option<&'static str>,
    ) {
        let mut all =
            rules.iter().enumerate().filter_map(|(at, rule)| Some((at, takes_all(rule)?)));
        let Some((first, how)) = all.next() else { return };
        for index in first + 1..rules.len() {
            let message = format!(
                "{field} rule {index} is never used: {field} rule {first} {how}, so 100 % of the \
                 traffic goes to it"
            );
            let help = "For a split write one rule with several destinations and weights, such as \
                        50 and 50; otherwise give the earlier rule a narrower match.";
            self.report(code::UNREACHABLE_RULE, format!("spec.{field}[{index}]"), message, help);
        }
    }

    /// Matches that an earlier rule already has.
    fn repeated_matches(&mut self) {
        let mut seen: Vec<(usize, &HttpMatchRequest)> = Vec::new();
        let mut repeats = Vec::new();
        for (rule, route) in self.vs.spec.http.iter().enumerate() {
            for (at, matcher) in route.matches.iter().enumerate() {
                let same = |other: &HttpMatchRequest| {
                    let mut other = other.clone();
                    (other.name, other.stat_prefix) =
                        (matcher.name.clone(), matcher.stat_prefix.clone());
                    other == *matcher
                };
                match seen.iter().find(|(earlier, other)| *earlier != rule && same(other)) {
                    Some((earlier, _)) => repeats.push((rule, at, *earlier)),
                    None => seen.push((rule, matcher)),
                }
            }
        }
        for (rule, at, earlier) in repeats {
            let path = format!("spec.http[{rule}].match[{at}]");
            let message = format!("the match is never used: http rule {earlier} has the same one");
            self.report(code::INEFFECTIVE_MATCH, path, message, "Remove it.");
        }
    }
}

fn http_takes_all(route: &HttpRoute) -> Option<&'static str> {
    let everything = |matcher: &HttpMatchRequest| {
        let any_path = match &matcher.uri {
            None => true,
            Some(StringMatch::Prefix(prefix)) => matches!(prefix.as_str(), "" | "/"),
            Some(_) => false,
        };
        let mut rest = matcher.clone();
        (rest.uri, rest.name, rest.stat_prefix) = (None, String::new(), String::new());
        any_path
            && HttpMatchRequest { ignore_uri_case: false, ..rest } == HttpMatchRequest::default()
    };
    if route.matches.is_empty() {
        Some("has no match")
    } else if route.matches.iter().any(everything) {
        Some("matches everything")
    } else {
        None
    }
}

fn tcp_takes_all(route: &TcpRoute) -> Option<&'static str> {
    route.matches.is_empty().then_some("has no match")
}

/// Does a server's `ns/host` cover the VirtualService's host and namespace?
fn serves(gateway: &Resource<Gateway>, host: &str, namespace: &str) -> bool {
    let own = &*gateway.meta.namespace;
    gateway.spec.servers.iter().flat_map(|server| &server.hosts).any(|pattern| {
        let (wanted, pattern) = pattern.split_once('/').unwrap_or(("*", pattern));
        let visible = match wanted {
            "*" => true,
            "." => namespace == own,
            wanted => wanted == namespace,
        };
        visible && hosts_overlap(pattern, host)
    })
}

/// One host in several VirtualServices on the mesh: the oldest wins.
fn mesh_hosts(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_host: BTreeMap<&str, Vec<&Resource<VirtualService>>> = BTreeMap::new();
    for vs in snapshot.all_virtual_services() {
        if vs.spec.gateways.iter().any(|gateway| gateway == MESH_GATEWAY) {
            for host in &vs.spec.hosts {
                by_host.entry(host).or_default().push(vs);
            }
        }
    }
    for (host, mut all) in by_host {
        all.sort_by(|a, b| a.meta.age_order(&b.meta));
        // Those that only their own namespaces see do not meet.
        let private = |vs: &Resource<VirtualService>| vs.spec.export_to == ["."];
        for vs in &all {
            let meets = |other: &&&Resource<VirtualService>| {
                other.meta.namespace == vs.meta.namespace || !(private(vs) || private(other))
            };
            let names: Vec<String> = all
                .iter()
                .filter(meets)
                .map(|vs| format!("{}/{}", vs.meta.namespace, vs.meta.name))
                .collect();
            if names.len() < 2 {
                continue;
            }
            let message = format!(
                "the host {host:?} is in several VirtualServices on the mesh ({}); the oldest, {}, \
                 wins",
                names.join(", "),
                names[0]
            );
            let (kind, path) = (Kind::VirtualService, "spec.hosts");
            let found = finding(code::DUPLICATE_MESH_HOST, kind, &vs.meta, path, message);
            out.push(found.with_help("Merge them into one VirtualService."));
        }
    }
}

/// Unknown hosts, and several rules of one namespace for one host that disagree.
fn destination_rules(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_host: BTreeMap<(&str, &str), Vec<&Resource<DestinationRule>>> = BTreeMap::new();
    for rule in snapshot.all_destination_rules() {
        unknown_rule_host(snapshot, rule, out);
        if rule.spec.workload_selector.is_none() {
            let key = (&*rule.meta.namespace, rule.spec.host.as_str());
            by_host.entry(key).or_default().push(rule);
        }
    }
    for mut rules in by_host.into_values() {
        rules.sort_by(|a, b| a.meta.age_order(&b.meta));
        for (index, rule) in rules.iter().enumerate() {
            for earlier in &rules[..index] {
                if rule.spec.export_to == earlier.spec.export_to {
                    conflict(earlier, rule, out);
                }
            }
        }
    }
}

fn unknown_rule_host(
    snapshot: &Snapshot,
    rule: &Resource<DestinationRule>,
    out: &mut Vec<Diagnostic>,
) {
    let host = rule.spec.host.as_str();
    let known = if host.contains('*') {
        snapshot.services().any(|service| hosts_overlap(host, &service.host))
    } else {
        snapshot.service_covering(host, &rule.meta.namespace).is_some()
    };
    if !known {
        let message = format!("the host {host:?} is no known service; the rule has no effect");
        let kind = Kind::DestinationRule;
        let found = finding(code::UNKNOWN_RULE_HOST, kind, &rule.meta, "spec.host", message);
        let help = "Define a Service or ServiceEntry for it; a short name means this namespace.";
        out.push(found.with_help(help));
    }
}

fn conflict(
    earlier: &Resource<DestinationRule>,
    rule: &Resource<DestinationRule>,
    out: &mut Vec<Diagnostic>,
) {
    let kind = Kind::DestinationRule;
    let code = code::DESTINATION_RULE_CONFLICT;
    let other = format!("DestinationRule {}/{}", earlier.meta.namespace, earlier.meta.name);
    if rule.spec.traffic_policy.is_some() && earlier.spec.traffic_policy.is_some() {
        let message = format!("{other} has a traffic policy for the same host and wins");
        let path = "spec.trafficPolicy";
        let found = finding(code, kind, &rule.meta, path, message);
        out.push(found.with_help("Keep one traffic policy for the host."));
    }
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        let first = earlier.spec.subsets.iter().find(|other| other.name == subset.name);
        if first.is_some_and(|first| first != subset) {
            let message =
                format!("{other} defines the subset {:?} otherwise and wins", subset.name);
            let path = format!("spec.subsets[{index}]");
            let found = finding(code, kind, &rule.meta, path, message);
            out.push(found.with_help("Give the subsets different names, or merge the rules."));
        }
    }
}

/// A port: its entry, and its index there.
type Entry<'a> = (&'a Resource<ServiceEntry>, usize);

/// One host and port in several ServiceEntries that disagree about the protocol.
fn service_entries(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_port: BTreeMap<(&str, u32), Vec<Entry<'_>>> = BTreeMap::new();
    for entry in snapshot.inner.service_entries.iter() {
        for host in &entry.spec.hosts {
            for (index, port) in entry.spec.ports.iter().enumerate() {
                by_port.entry((host, port.number)).or_default().push((entry, index));
            }
        }
    }
    for ((host, number), all) in by_port {
        let protocol =
            |(entry, index): &Entry<'_>| Protocol::parse(&entry.spec.ports[*index].protocol);
        if all.iter().all(|one| protocol(one) == protocol(&all[0])) {
            continue;
        }
        for (entry, index) in &all {
            let is_other = |(other, _): &&Entry<'_>| {
                (&other.meta.namespace, &other.meta.name)
                    != (&entry.meta.namespace, &entry.meta.name)
            };
            let Some((other, at)) = all.iter().find(is_other) else { continue };
            let message = format!(
                "{host}:{number} is {} here and {} in ServiceEntry {}/{}",
                entry.spec.ports[*index].protocol,
                other.spec.ports[*at].protocol,
                other.meta.namespace,
                other.meta.name
            );
            let kind = Kind::ServiceEntry;
            let path = format!("spec.ports[{index}].protocol");
            let code = code::SERVICE_ENTRY_PROTOCOLS;
            let found = finding(code, kind, &entry.meta, path, message);
            out.push(found.with_help("Give the port one protocol."));
        }
    }
}
