//! Gateways: certificates that are not there, servers that two Gateways both claim, ports nobody
//! can reach.

use std::collections::{BTreeMap, BTreeSet};

use super::finding;
use crate::diagnostic::{Diagnostic, code};
use crate::names::hosts_overlap;
use crate::object::{Kind, Resource};
use crate::snapshot::{Snapshot, selects};
use crate::spec::{Gateway, Server};

/// A server, as its Gateway and its index there.
type Served<'a> = (&'a Resource<Gateway>, usize);

pub(super) fn check(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    for gateway in snapshot.all_gateways() {
        gateway_secrets(snapshot, gateway, out);
        ports(snapshot, gateway, out);
    }
    conflicts(snapshot, out);
    duplicate_certificates(snapshot, out);
}

/// `credentialName` names a Secret in the namespace of the proxies that serve the Gateway.
fn gateway_secrets(snapshot: &Snapshot, gateway: &Resource<Gateway>, out: &mut Vec<Diagnostic>) {
    let mut homes: BTreeSet<&str> = BTreeSet::new();
    for workload in snapshot.workloads() {
        if selects(&gateway.spec.selector, &workload.labels) {
            homes.insert(&workload.namespace);
        }
    }
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let Some(tls) = &server.tls else { continue };
        let names = std::iter::once(&tls.credential_name).chain(&tls.credential_names);
        for name in names.filter(|name| !name.is_empty()) {
            for home in homes.iter().filter(|home| snapshot.secret(home, name).is_none()) {
                let path = format!("spec.servers[{index}].tls.credentialName");
                let message =
                    format!("Secret {home}/{name} is not defined; the server cannot start TLS");
                let kind = Kind::Gateway;
                let found = finding(code::NOT_FOUND, kind, &gateway.meta, path, message);
                out.push(found.with_help("Create the Secret beside the gateway's proxies."));
            }
            for secret in homes.iter().filter_map(|home| snapshot.secret(home, name)) {
                let has = |key: &str| secret.spec.data.get(key).is_some_and(|v| !v.is_empty());
                if (has("tls.crt") && has("tls.key")) || (has("cert") && has("key")) {
                    continue;
                }
                let path = format!("spec.servers[{index}].tls.credentialName");
                let message = format!(
                    "Secret {}/{name} has no certificate and key (tls.crt and tls.key)",
                    secret.meta.namespace
                );
                let (kind, code) = (Kind::Gateway, code::INVALID_CREDENTIAL);
                let found = finding(code, kind, &gateway.meta, path, message);
                out.push(found.with_help("Make it of type kubernetes.io/tls."));
            }
        }
    }
}

/// Ports that a Service in front of the gateway's proxies does not have.
fn ports(snapshot: &Snapshot, gateway: &Resource<Gateway>, out: &mut Vec<Diagnostic>) {
    let proxies: Vec<_> = snapshot
        .workloads()
        .filter(|workload| selects(&gateway.spec.selector, &workload.labels))
        .collect();
    let in_front: Vec<_> =
        proxies.iter().flat_map(|workload| snapshot.services_of(workload)).collect();
    if in_front.is_empty() {
        return;
    }
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let Some(port) = &server.port else { continue };
        let exposed = in_front.iter().any(|service| {
            service.ports.iter().any(|exposed| u32::from(exposed.number) == port.number)
                || service.endpoints.iter().any(|endpoint| {
                    endpoint.ports.values().any(|target| u32::from(*target) == port.number)
                })
        });
        if !exposed {
            let message = format!("no Service in front of its proxies has port {}", port.number);
            let path = format!("spec.servers[{index}].port.number");
            let kind = Kind::Gateway;
            let code = code::GATEWAY_PORT;
            let found = finding(code, kind, &gateway.meta, path, message);
            out.push(found.with_help("Add the port to the gateway's Service."));
        }
    }
}

/// The same selector, port and host in two Gateways: only one of them gets the requests.
fn conflicts(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_place: BTreeMap<(String, u32), Vec<Served<'_>>> = BTreeMap::new();
    for gateway in snapshot.all_gateways() {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(port) = &server.port else { continue };
            let place = (format!("{:?}", gateway.spec.selector), port.number);
            by_place.entry(place).or_default().push((gateway, index));
        }
    }
    for ((_, port), servers) in by_place {
        for (gateway, index) in &servers {
            let server = &gateway.spec.servers[*index];
            let is_rival = |(other, at): &&Served<'_>| {
                let same = std::ptr::eq(*other, *gateway);
                !same && rivals(server, gateway, &other.spec.servers[*at], other)
            };
            let Some((rival, _)) = servers.iter().find(is_rival) else { continue };
            let message = format!(
                "Gateway {}/{} has the same selector, port {port} and an overlapping host",
                rival.meta.namespace, rival.meta.name
            );
            let path = format!("spec.servers[{index}]");
            let kind = Kind::Gateway;
            let code = code::CONFLICTING_GATEWAYS;
            let found = finding(code, kind, &gateway.meta, path, message);
            out.push(found.with_help("Merge the two, or give them different hosts."));
        }
    }
}

fn rivals(a: &Server, of_a: &Resource<Gateway>, b: &Server, of_b: &Resource<Gateway>) -> bool {
    let split = |pattern: &str, own: &str| -> (String, String) {
        let (namespace, host) = pattern.split_once('/').unwrap_or(("*", pattern));
        (if namespace == "." { own } else { namespace }.to_owned(), host.to_owned())
    };
    a.bind == b.bind
        && a.hosts.iter().any(|host_a| {
            let (wanted_a, host_a) = split(host_a, &of_a.meta.namespace);
            b.hosts.iter().any(|host_b| {
                let (wanted_b, host_b) = split(host_b, &of_b.meta.namespace);
                (wanted_a == wanted_b || wanted_a == "*" || wanted_b == "*")
                    && hosts_overlap(&host_a, &host_b)
            })
        })
}

/// One certificate in several Gateways: a browser that reuses its HTTP/2 connection for another of
/// the certificate's names reaches a server that does not know it.
fn duplicate_certificates(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut by_name: BTreeMap<(String, &str), Vec<&Resource<Gateway>>> = BTreeMap::new();
    for gateway in snapshot.all_gateways() {
        let names: BTreeSet<&str> = gateway
            .spec
            .servers
            .iter()
            .filter_map(|server| server.tls.as_ref())
            .map(|tls| tls.credential_name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        for name in names {
            let place = format!("{:?}", gateway.spec.selector);
            by_name.entry((place, name)).or_default().push(gateway);
        }
    }
    for ((_, name), gateways) in by_name.iter().filter(|(_, gateways)| gateways.len() > 1) {
        for gateway in gateways {
            let others: Vec<String> = gateways
                .iter()
                .filter(|other| !std::ptr::eq(**other, *gateway))
                .map(|other| format!("{}/{}", other.meta.namespace, other.meta.name))
                .collect();
            let message = format!(
                "the certificate {name:?} is also that of {}; clients that reuse HTTP/2 \
                 connections may get 404",
                others.join(", ")
            );
            let kind = Kind::Gateway;
            let code = code::DUPLICATE_CERTIFICATE;
            let found = finding(code, kind, &gateway.meta, "spec.servers", message);
            out.push(found.with_help("Put the hosts of one certificate into one Gateway."));
        }
    }
}
