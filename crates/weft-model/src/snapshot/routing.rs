//! Indexes and lookups of VirtualServices, DestinationRules and Gateways, and who sees what
//! (`exportTo`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::table::Table;
use super::{Snapshot, selects};
use crate::names::{MESH_GATEWAY, host_matches, resolve_gateway, resolve_host};
use crate::object::{Labels, Meta, Resource};
use crate::spec::{Destination, DestinationRule, Gateway, VirtualService};

type Vs = Arc<Resource<VirtualService>>;
type Dr = Arc<Resource<DestinationRule>>;

/// `exportTo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Not said: the mesh's default for the kind.
    #[default]
    Default,
    /// `*`.
    Public,
    /// These namespaces; `.` stands for the resource's own, `~` for nobody.
    Namespaces(BTreeSet<String>),
}

impl Visibility {
    pub fn parse(export_to: &[String]) -> Visibility {
        if export_to.is_empty() {
            Visibility::Default
        } else if export_to.iter().any(|to| to == "*") {
            Visibility::Public
        } else {
            Visibility::Namespaces(export_to.iter().cloned().collect())
        }
    }

    /// Is a resource of namespace `own` visible from `from`? `default` is the mesh's list for
    /// the kind; empty means everybody.
    pub fn visible(&self, default: &[String], own: &str, from: &str) -> bool {
        match self {
            Visibility::Default if default.is_empty() => true,
            Visibility::Default => Visibility::parse(default).visible(&[], own, from),
            Visibility::Public => true,
            Visibility::Namespaces(names) => {
                names.contains(from) || (own == from && names.contains("."))
            }
        }
    }
}

impl Snapshot {
    /// VirtualServices for `host` as seen from a namespace, on a gateway (`namespace/name`, or
    /// `mesh` for sidecars): those that name the host first, then wildcards from the longest;
    /// within that the oldest first. Istio lets the first one win.
    pub fn virtual_services_for(
        &self,
        host: &str,
        from_namespace: &str,
        gateway: &str,
    ) -> Vec<&Vs> {
        let Some(routes) = self.inner.virtual_services.by_gateway.get(gateway) else {
            return Vec::new();
        };
        let mut found: Vec<&Vs> = Vec::new();
        let exact = routes.exact.get(host).into_iter().flatten();
        let wildcards = routes.wildcard.iter().filter(|(pattern, _)| host_matches(pattern, host));
        for vs in exact.chain(wildcards.map(|(_, vs)| vs)) {
            if self.virtual_service_visible(vs, from_namespace)
                && !found.iter().any(|other| Arc::ptr_eq(other, vs))
            {
                found.push(vs);
            }
        }
        found
    }

    /// All VirtualServices on a gateway (`namespace/name` or `mesh`) visible from a namespace,
    /// the oldest first.
    pub fn virtual_services(&self, gateway: &str, from_namespace: &str) -> Vec<&Vs> {
        let routes = self.inner.virtual_services.by_gateway.get(gateway);
        let all = routes.into_iter().flat_map(|routes| &routes.all);
        all.filter(|vs| self.virtual_service_visible(vs, from_namespace)).collect()
    }

    /// One VirtualService by its own name.
    pub fn virtual_service(&self, namespace: &str, name: &str) -> Option<&Vs> {
        self.inner.virtual_services.table.get(namespace, name)
    }

    pub fn all_virtual_services(&self) -> impl Iterator<Item = &Vs> {
        self.inner.virtual_services.table.iter()
    }

    fn virtual_service_visible(&self, vs: &Resource<VirtualService>, from: &str) -> bool {
        let default = &self.mesh().default_virtual_service_export_to;
        Visibility::parse(&vs.spec.export_to).visible(default, &vs.meta.namespace, from)
    }

    /// The DestinationRule for a host seen from a namespace: the client's namespace, the
    /// service's, the root's; in each the most specific host. Rules of one namespace for one
    /// host are merged. Rules with a workload selector are left out.
    pub fn destination_rule_for(&self, host: &str, from_namespace: &str) -> Option<&Dr> {
        self.destination_rule(host, from_namespace, None)
    }

    /// As [`Self::destination_rule_for`], for a client workload: rules that select it come
    /// before those without a selector.
    pub fn destination_rule_for_workload(
        &self,
        host: &str,
        from_namespace: &str,
        labels: &Labels,
    ) -> Option<&Dr> {
        self.destination_rule(host, from_namespace, Some(labels))
    }

    fn destination_rule(&self, host: &str, from: &str, labels: Option<&Labels>) -> Option<&Dr> {
        let service = self.service_from(host, from).map(|service| &*service.namespace);
        let root = self.mesh().root_namespace.as_str();
        let mut tried: Vec<&str> = Vec::new();
        for namespace in [Some(from), service, Some(root)].into_iter().flatten() {
            if tried.contains(&namespace) {
                continue;
            }
            tried.push(namespace);
            let rules = self.inner.destination_rules.by_namespace.get(namespace);
            if let Some(found) = rules.and_then(|rules| self.rule_in(rules, host, from, labels)) {
                return Some(found);
            }
        }
        None
    }

    fn rule_in<'a>(
        &'a self,
        rules: &'a RulesByHost,
        host: &str,
        from: &str,
        labels: Option<&Labels>,
    ) -> Option<&'a Dr> {
        let exact = rules.exact.get(host).into_iter();
        let wildcard = rules.wildcard.iter().filter(|(pattern, _)| host_matches(pattern, host));
        for candidates in exact.chain(wildcard.map(|(_, rules)| rules)) {
            let visible = |rule: &&Dr| self.destination_rule_visible(rule, from);
            let selecting = candidates.iter().filter(visible).find(|rule| {
                let selector = rule.spec.workload_selector.as_ref();
                selector.zip(labels).is_some_and(|(s, labels)| {
                    &*rule.meta.namespace == from && selects(&s.match_labels, labels)
                })
            });
            let general = || {
                candidates.iter().filter(visible).find(|rule| rule.spec.workload_selector.is_none())
            };
            if let Some(found) = selecting.or_else(general) {
                return Some(found);
            }
        }
        None
    }

    fn destination_rule_visible(&self, rule: &Resource<DestinationRule>, from: &str) -> bool {
        let default = &self.mesh().default_destination_rule_export_to;
        Visibility::parse(&rule.spec.export_to).visible(default, &rule.meta.namespace, from)
    }

    /// Every DestinationRule as written (not merged).
    /// By its own name.
    pub(crate) fn destination_rule_named(&self, namespace: &str, name: &str) -> Option<&Dr> {
        self.inner.destination_rules.table.get(namespace, name)
    }

    pub fn all_destination_rules(&self) -> impl Iterator<Item = &Dr> {
        self.inner.destination_rules.table.iter()
    }

    /// Gateways whose selector picks a proxy with these labels, in any namespace, the oldest
    /// first. Without a selector a Gateway picks every gateway proxy.
    pub fn gateways_for(&self, labels: &Labels) -> Vec<&Arc<Resource<Gateway>>> {
        let picks = |gateway: &&Arc<Resource<Gateway>>| selects(&gateway.spec.selector, labels);
        let mut gateways: Vec<_> = self.inner.gateways.iter().filter(picks).collect();
        gateways.sort_by(|a, b| a.meta.age_order(&b.meta));
        gateways
    }

    pub fn gateway(&self, namespace: &str, name: &str) -> Option<&Arc<Resource<Gateway>>> {
        self.inner.gateways.get(namespace, name)
    }

    pub fn all_gateways(&self) -> impl Iterator<Item = &Arc<Resource<Gateway>>> {
        self.inner.gateways.iter()
    }
}

/// VirtualServices by gateway and host.
#[derive(Clone, Default)]
pub(crate) struct VirtualServices {
    table: Table<Resource<VirtualService>>,
    by_gateway: Arc<BTreeMap<String, Arc<RoutesByHost>>>,
}

#[derive(Clone, Default)]
struct RoutesByHost {
    /// The oldest first.
    all: Vec<Vs>,
    exact: BTreeMap<String, Vec<Vs>>,
    /// By pattern length from the longest, then age.
    wildcard: Vec<(String, Vs)>,
}

impl VirtualServices {
    pub(crate) fn insert(&mut self, vs: &Resource<VirtualService>) -> bool {
        let vs = Arc::new(normal_virtual_service(vs));
        let old = self.table.insert(&vs.meta.namespace, &vs.meta.name, vs.clone());
        let changed = old.as_ref().is_none_or(|old| old.meta.generation != vs.meta.generation);
        if let Some(old) = old {
            self.unindex(&old);
        }
        self.index(&vs);
        changed
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> bool {
        match self.table.remove(namespace, name) {
            Some(old) => {
                self.unindex(&old);
                true
            }
            None => false,
        }
    }

    fn index(&mut self, vs: &Vs) {
        for gateway in &vs.spec.gateways {
            let by_gateway = Arc::make_mut(&mut self.by_gateway);
            let routes = Arc::make_mut(by_gateway.entry(gateway.clone()).or_default());
            insert_by_age(&mut routes.all, vs, |vs| &vs.meta);
            for host in &vs.spec.hosts {
                if host.starts_with('*') {
                    let before = |(pattern, other): &(String, Vs)| {
                        pattern.len() > host.len()
                            || (pattern.len() == host.len()
                                && other.meta.age_order(&vs.meta).is_lt())
                    };
                    let at = routes.wildcard.partition_point(before);
                    routes.wildcard.insert(at, (host.clone(), vs.clone()));
                } else {
                    let list = routes.exact.entry(host.clone()).or_default();
                    insert_by_age(list, vs, |vs| &vs.meta);
                }
            }
        }
    }

    fn unindex(&mut self, vs: &Vs) {
        let by_gateway = Arc::make_mut(&mut self.by_gateway);
        for gateway in &vs.spec.gateways {
            let Some(routes) = by_gateway.get_mut(gateway) else { continue };
            let routes = Arc::make_mut(routes);
            routes.all.retain(|other| !Arc::ptr_eq(other, vs));
            routes.wildcard.retain(|(_, other)| !Arc::ptr_eq(other, vs));
            for host in &vs.spec.hosts {
                if let Some(list) = routes.exact.get_mut(host) {
                    list.retain(|other| !Arc::ptr_eq(other, vs));
                    if list.is_empty() {
                        routes.exact.remove(host);
                    }
                }
            }
            if routes.all.is_empty() {
                by_gateway.remove(gateway);
            }
        }
    }
}

fn insert_by_age<T: Clone>(list: &mut Vec<T>, item: &T, meta: impl Fn(&T) -> &Meta) {
    let at = list.partition_point(|other| meta(other).age_order(meta(item)).is_lt());
    list.insert(at, item.clone());
}

/// With hosts, destinations and gateways resolved.
fn normal_virtual_service(vs: &Resource<VirtualService>) -> Resource<VirtualService> {
    let mut vs = vs.clone();
    let namespace = vs.meta.namespace.clone();
    let resolve = |destination: &mut Destination| {
        destination.host = resolve_host(&destination.host, &namespace);
    };
    let gateways = |gateways: &mut Vec<String>| {
        gateways.iter_mut().for_each(|name| *name = resolve_gateway(name, &namespace));
    };
    let spec = &mut vs.spec;
    if spec.gateways.is_empty() {
        spec.gateways.push(MESH_GATEWAY.to_string());
    }
    gateways(&mut spec.gateways);
    // A short host means a service to sidecars; to a gateway it is what clients send.
    if spec.gateways.iter().any(|gateway| gateway == MESH_GATEWAY) {
        spec.hosts.iter_mut().for_each(|host| *host = resolve_host(host, &namespace));
    } else {
        spec.hosts.iter_mut().for_each(|host| host.make_ascii_lowercase());
    }
    for http in &mut spec.http {
        http.route.iter_mut().for_each(|route| resolve(&mut route.destination));
        http.mirror.iter_mut().for_each(resolve);
        http.mirrors.iter_mut().for_each(|mirror| resolve(&mut mirror.destination));
        http.matches.iter_mut().for_each(|m| gateways(&mut m.gateways));
    }
    for tls in &mut spec.tls {
        tls.route.iter_mut().for_each(|route| resolve(&mut route.destination));
        tls.matches.iter_mut().for_each(|m| gateways(&mut m.gateways));
    }
    for tcp in &mut spec.tcp {
        tcp.route.iter_mut().for_each(|route| resolve(&mut route.destination));
        tcp.matches.iter_mut().for_each(|m| gateways(&mut m.gateways));
    }
    vs
}

/// DestinationRules by namespace and host.
#[derive(Clone, Default)]
pub(crate) struct DestinationRules {
    table: Table<Resource<DestinationRule>>,
    by_namespace: Arc<BTreeMap<Arc<str>, Arc<RulesByHost>>>,
}

#[derive(Clone, Default)]
struct RulesByHost {
    exact: BTreeMap<String, Vec<Dr>>,
    /// By pattern length from the longest.
    wildcard: Vec<(String, Vec<Dr>)>,
}

impl DestinationRules {
    pub(crate) fn insert(&mut self, rule: &Resource<DestinationRule>) -> bool {
        let mut rule = rule.clone();
        rule.spec.host = resolve_host(&rule.spec.host, &rule.meta.namespace);
        let (namespace, name) = (rule.meta.namespace.clone(), rule.meta.name.clone());
        let (host, generation) = (rule.spec.host.clone(), rule.meta.generation);
        let old = self.table.insert(&namespace, &name, Arc::new(rule));
        let changed = old.as_ref().is_none_or(|old| old.meta.generation != generation);
        if let Some(old) = old.filter(|old| old.spec.host != host) {
            self.index(&namespace, &old.spec.host);
        }
        self.index(&namespace, &host);
        changed
    }

    pub(crate) fn remove(&mut self, namespace: &Arc<str>, name: &str) -> bool {
        match self.table.remove(namespace, name) {
            Some(old) => {
                self.index(namespace, &old.spec.host);
                true
            }
            None => false,
        }
    }

    /// Makes the entry of one host anew from the table.
    fn index(&mut self, namespace: &Arc<str>, host: &str) {
        let of_host = self.table.namespace(namespace).filter(|rule| rule.spec.host == host);
        let mut rules: Vec<&Dr> = of_host.collect();
        rules.sort_by(|a, b| a.meta.age_order(&b.meta));
        let merged = merge(&rules);
        let by_namespace = Arc::make_mut(&mut self.by_namespace);
        let entry = Arc::make_mut(by_namespace.entry(namespace.clone()).or_default());
        if host.starts_with('*') {
            entry.wildcard.retain(|(pattern, _)| pattern != host);
            if !merged.is_empty() {
                let at = entry.wildcard.partition_point(|(other, _)| other.len() > host.len());
                entry.wildcard.insert(at, (host.to_string(), merged));
            }
        } else if merged.is_empty() {
            entry.exact.remove(host);
        } else {
            entry.exact.insert(host.to_string(), merged);
        }
    }
}

/// Istio's merge of rules for one host in one namespace: subsets of all (the first of a name
/// wins), the traffic policy of the first that has one. Only rules with the same `exportTo` and
/// no workload selector merge.
fn merge(rules: &[&Dr]) -> Vec<Dr> {
    let mut merged: Vec<Dr> = Vec::new();
    for rule in rules {
        let into = merged.iter_mut().find(|other| {
            rule.spec.workload_selector.is_none()
                && other.spec.workload_selector.is_none()
                && other.spec.export_to == rule.spec.export_to
        });
        let Some(into) = into else {
            merged.push((*rule).clone());
            continue;
        };
        let into = Arc::make_mut(into);
        for subset in &rule.spec.subsets {
            if !into.spec.subsets.iter().any(|other| other.name == subset.name) {
                into.spec.subsets.push(subset.clone());
            }
        }
        if into.spec.traffic_policy.is_none() {
            into.spec.traffic_policy = rule.spec.traffic_policy.clone();
        }
    }
    merged
}
