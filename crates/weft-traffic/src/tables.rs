//! Everything a worker routes by, as one immutable value.
//!
//! A change makes a new value that shares all that did not change; workers swap the whole. Clusters and
//! their endpoints may arrive in either order: endpoints wait under their EDS name.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::HashMap;

use crate::cluster::{Cluster, EndpointSet};
use crate::http::RouteSource;
use crate::listener::{ListenerConfig, Network};
use crate::route::RouteTable;

type Map<T> = Arc<HashMap<Arc<str>, Arc<T>>>;

/// All listeners, routes and clusters by name.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    listeners: Map<ListenerConfig>,
    routes: Map<RouteTable>,
    clusters: Map<Cluster>,
    endpoints: Map<EndpointSet>,
    /// Grows with every change; equal versions are equal tables.
    pub version: u64,
}

/// One step of a change. `None` takes the resource away.
#[derive(Debug, Clone)]
pub enum Change {
    Listener(Arc<str>, Option<Arc<ListenerConfig>>),
    Route(Arc<str>, Option<Arc<RouteTable>>),
    Cluster(Arc<str>, Option<Arc<Cluster>>),
    /// By EDS service name.
    Endpoints(Arc<str>, Option<Arc<EndpointSet>>),
    /// Addresses of one DNS cluster, resolved by the proxy.
    Resolved(Arc<str>, Arc<EndpointSet>),
}

impl Tables {
    pub fn listener(&self, name: &str) -> Option<&Arc<ListenerConfig>> {
        self.listeners.get(name)
    }

    pub fn route(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    pub fn listeners(&self) -> impl Iterator<Item = &Arc<ListenerConfig>> {
        self.listeners.values()
    }

    pub fn routes(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.routes.values()
    }

    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// The route table of an HTTP chain: its own, or by name. None: not received yet (404, flag NR).
    pub fn route_table<'a>(&'a self, source: &'a RouteSource) -> Option<&'a Arc<RouteTable>> {
        match source {
            RouteSource::Inline(table) => Some(table),
            RouteSource::Rds(name) => self.route(name),
        }
    }

    /// These tables with a listener added or replaced.
    pub fn with_listener(&self, listener: ListenerConfig) -> Tables {
        self.with([Change::Listener(listener.name.clone(), Some(Arc::new(listener)))])
    }

    /// These tables with a route table added or replaced.
    pub fn with_route(&self, table: RouteTable) -> Tables {
        self.with([Change::Route(table.name.clone(), Some(Arc::new(table)))])
    }

    /// These tables with a cluster added or replaced.
    pub fn with_cluster(&self, cluster: Cluster) -> Tables {
        self.with([Change::Cluster(cluster.name.clone(), Some(Arc::new(cluster)))])
    }

    /// These tables with the endpoints of an EDS service replaced.
    pub fn with_endpoints(&self, service: &str, endpoints: EndpointSet) -> Tables {
        self.with([Change::Endpoints(Arc::from(service), Some(Arc::new(endpoints)))])
    }

    /// Applies changes in order. Each kind's index is copied at most once, whatever their number.
    pub fn with(&self, changes: impl IntoIterator<Item = Change>) -> Tables {
        let mut next = self.clone();
        next.version += 1;
        // EDS names whose clusters must be joined with new endpoints.
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        for change in changes {
            match change {
                Change::Listener(name, listener) => put(&mut next.listeners, name, listener),
                Change::Route(name, table) => put(&mut next.routes, name, table),
                Change::Cluster(name, cluster) => {
                    let cluster = cluster.map(|cluster| next.join(cluster));
                    put(&mut next.clusters, name, cluster);
                }
                Change::Endpoints(service, endpoints) => {
                    put(&mut next.endpoints, service.clone(), endpoints);
                    touched.insert(service);
                }
                Change::Resolved(name, endpoints) => {
                    if let Some(cluster) = next.clusters.get(&name) {
                        let cluster = Arc::new(cluster.with_endpoints(endpoints));
                        put(&mut next.clusters, name, Some(cluster));
                    }
                }
            }
        }
        next.join_all(&touched);
        next
    }

    /// A cluster with the endpoints known for it.
    fn join(&self, cluster: Arc<Cluster>) -> Arc<Cluster> {
        match cluster.eds_service().and_then(|service| self.endpoints.get(service)) {
            Some(endpoints) if !Arc::ptr_eq(endpoints, &cluster.endpoints) => {
                Arc::new(cluster.with_endpoints(endpoints.clone()))
            }
            _ => cluster,
        }
    }

    fn join_all(&mut self, services: &BTreeSet<Arc<str>>) {
        if services.is_empty() {
            return;
        }
        let empty = Arc::new(EndpointSet::default());
        // An EDS name is nearly always its cluster's name, but one service may serve several clusters.
        let joined: Vec<(Arc<str>, Arc<Cluster>)> = self
            .clusters
            .values()
            .filter_map(|cluster| {
                let service =
                    cluster.eds_service().filter(|service| services.contains(*service))?;
                let endpoints = self.endpoints.get(service).unwrap_or(&empty);
                Some((cluster.name.clone(), Arc::new(cluster.with_endpoints(endpoints.clone()))))
            })
            .collect();
        if !joined.is_empty() {
            Arc::make_mut(&mut self.clusters).extend(joined);
        }
    }

    /// RDS names that listeners refer to.
    pub fn route_names(&self) -> BTreeSet<Arc<str>> {
        let mut names = BTreeSet::new();
        for listener in self.listeners.values() {
            for chain in listener.chains.iter().chain(&listener.default_chain) {
                if let Network::Http(http) = &chain.network
                    && let RouteSource::Rds(name) = &http.routes
                {
                    names.insert(name.clone());
                }
            }
        }
        names
    }

    /// EDS names that clusters refer to.
    pub fn eds_names(&self) -> BTreeSet<Arc<str>> {
        self.clusters.values().filter_map(|cluster| cluster.eds_service().cloned()).collect()
    }

    /// Clusters that routes and TCP chains refer to but that do not exist: requests to them get 503 NC.
    pub fn missing_clusters(&self) -> BTreeSet<Arc<str>> {
        let mut wanted: BTreeSet<Arc<str>> = BTreeSet::new();
        for table in self.routes.values() {
            wanted.extend(table.cluster_names());
        }
        for listener in self.listeners.values() {
            for chain in listener.chains.iter().chain(&listener.default_chain) {
                match &chain.network {
                    Network::Tcp(tcp) => wanted.extend(tcp.clusters.names().cloned()),
                    Network::Http(http) => {
                        if let RouteSource::Inline(table) = &http.routes {
                            wanted.extend(table.cluster_names());
                        }
                    }
                }
            }
        }
        wanted.retain(|name| !self.clusters.contains_key(name));
        wanted
    }

    /// Route tables that listeners refer to but that have not arrived.
    pub fn missing_routes(&self) -> BTreeSet<Arc<str>> {
        self.route_names().into_iter().filter(|name| !self.routes.contains_key(name)).collect()
    }
}

fn put<T>(map: &mut Map<T>, name: Arc<str>, value: Option<Arc<T>>) {
    match value {
        Some(value) => {
            Arc::make_mut(map).insert(name, value);
        }
        None if map.contains_key(&name) => {
            Arc::make_mut(map).remove(&name);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::{self, Lowered, samples};

    fn endpoints_of(tables: &Tables, cluster: &str) -> usize {
        tables.cluster(cluster).map_or(0, |cluster| cluster.endpoints.endpoints.len())
    }

    const CLUSTER: &str = "outbound|9080|v1|reviews";

    #[test]
    fn clusters_and_endpoints_join_in_either_order() {
        let cluster = lower::cluster(&samples::sample_cluster()).unwrap();
        let set = lower::endpoints(&samples::sample_endpoints()).unwrap();
        let first = Tables::default().with_cluster(cluster.clone());
        assert_eq!(endpoints_of(&first, CLUSTER), 0);
        assert_eq!(endpoints_of(&first.with_endpoints(CLUSTER, set.clone()), CLUSTER), 2);
        let second = Tables::default().with_endpoints(CLUSTER, set).with_cluster(cluster.clone());
        assert_eq!(endpoints_of(&second, CLUSTER), 2);
        // A new version of the cluster keeps its endpoints; the old tables stay as they were.
        assert_eq!(endpoints_of(&second.with_cluster(cluster), CLUSTER), 2);
        assert_eq!(endpoints_of(&first, CLUSTER), 0);
        let without = second.with([Change::Endpoints(CLUSTER.into(), None)]);
        assert_eq!(endpoints_of(&without, CLUSTER), 0);
    }

    #[test]
    fn an_endpoint_change_shares_everything_else() {
        let cluster = lower::cluster(&samples::sample_cluster()).unwrap();
        let before = Tables::default()
            .with_cluster(cluster)
            .with_route(lower::route_config(&samples::sample_routes()).unwrap())
            .with_listener(lower::listener(&samples::sample_listener()).unwrap());
        let after = before.with_endpoints(CLUSTER, EndpointSet::default());
        assert!(Arc::ptr_eq(before.route("9080").unwrap(), after.route("9080").unwrap()));
        let config = |tables: &Tables| tables.cluster(CLUSTER).unwrap().config.clone();
        assert!(Arc::ptr_eq(&config(&before), &config(&after)));
        assert!(after.version > before.version);
    }

    #[test]
    fn references_are_found() {
        let tables = Tables::default()
            .with_route(lower::route_config(&samples::sample_routes()).unwrap())
            .with_listener(lower::listener(&samples::sample_listener()).unwrap());
        let names = |set: BTreeSet<Arc<str>>| set.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(names(tables.missing_routes()), ["8080"]);
        assert_eq!(names(tables.missing_clusters()), ["inbound|9000||", "v1", "v2"]);
        let any = samples::pack(&samples::sample_routes());
        assert!(matches!(lower::any(&any), Ok(Lowered::Route(_))));
    }
}
