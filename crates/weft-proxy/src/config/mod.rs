//! From accepted xDS resources to the tables workers use. One resource that cannot be used is
//! refused with its path and reason, the last good one stays, and the others are not held up.
//!
//! ```text
//! Update → lower → warming (listeners wait for routes, endpoints, secrets; routes for endpoints) → Tables → workers
//! ```
//! Sans-io: sockets, files and time belong to `subscriber`, `saved` and `runtime`.

#[doc(hidden)] // Public for fuzzing alone.
pub mod secret;

pub mod saved;
pub mod subscriber;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_traffic::cluster::{ClusterKind, Transport};
use weft_traffic::http::RouteSource;
use weft_traffic::listener::Network;
use weft_traffic::route::RouteTable;
use weft_traffic::tables::Change;
use weft_traffic::tls::{CertSource, CrlSource, RootSource, Validation};
use weft_traffic::{Cluster, EndpointSet, ListenerConfig, Tables, lower};
use weft_xds::ResourceType;
use weft_xds::names::{SECRET_DEFAULT, SECRET_ROOT};
use weft_xds::nds::NameTable;
use weft_xds::pb::envoy::config::cluster::v3::Cluster as ClusterPb;
use weft_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_xds::pb::envoy::config::listener::v3::Listener as ListenerPb;
use weft_xds::pb::envoy::config::route::v3::RouteConfiguration;
use weft_xds::session::{Rejection, Resource, Wanted};

use crate::dns::Names;
use crate::state::unix_now;
use crate::tls::Secrets;
use crate::tls::files::FileSecret;

/// How long a listener or a route table waits for what it refers to, as in Envoy: a control plane may
/// take five seconds for each answer. Past it, it serves what it can:
/// a missing route table answers 404, missing endpoints 503.
pub const WARMING_MAX: Duration = Duration::from_secs(15);

/// Everything received and what became of it.
pub struct Config {
    tables: Arc<Tables>,
    held: [BTreeMap<Arc<str>, Held>; ResourceType::COUNT],
    /// Why the newest version of a resource is not used.
    rejected: [BTreeMap<Arc<str>, String>; ResourceType::COUNT],
    versions: [String; ResourceType::COUNT],
    answered_types: [bool; ResourceType::COUNT],
    warming: BTreeMap<Arc<str>, Warming>,
    /// Route tables that wait for the endpoints of new clusters; the version before serves on.
    warming_routes: BTreeMap<Arc<str>, WarmingRoute>,
    /// Grows when a listener in use changes.
    listeners_version: u64,
    /// EDS services that were answered, also with nothing.
    answered: BTreeSet<Arc<str>>,
    /// Endpoints of DNS clusters before resolution.
    unresolved: HashMap<Arc<str>, Arc<EndpointSet>>,
    secrets: Arc<Secrets>,
    /// `default` is ours, made with the CA; otherwise it is asked of SDS.
    own_identity: bool,
    /// The hosts of the mesh, for a workload whose DNS we answer.
    names: Arc<Names>,
    /// Names are waited for until then.
    names_due: Option<Instant>,
}

/// A resource in use.
#[derive(Debug, Clone)]
pub struct Held {
    /// As received.
    pub resource: Resource,
    /// Unix seconds.
    pub updated: i64,
}

struct Warming {
    listener: Arc<ListenerConfig>,
    since: Instant,
}

struct WarmingRoute {
    table: Arc<RouteTable>,
    since: Instant,
}

/// Secrets that configuration refers to, by where they come from.
#[derive(Debug, Default)]
pub struct SecretNames {
    /// To ask of SDS.
    pub sds: BTreeSet<Arc<str>>,
    /// To read from disk.
    pub files: Vec<FileSecret>,
    /// All names that must be present before a listener can do TLS.
    listeners: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// All names that clusters refer to.
    clusters: BTreeSet<Arc<str>>,
}

impl Config {
    /// Nothing received yet.
    pub fn new(secrets: Arc<Secrets>, own_identity: bool) -> Config {
        Config {
            tables: Arc::default(),
            held: Default::default(),
            rejected: Default::default(),
            versions: Default::default(),
            answered_types: Default::default(),
            warming: BTreeMap::new(),
            warming_routes: BTreeMap::new(),
            listeners_version: 0,
            answered: BTreeSet::new(),
            unresolved: HashMap::new(),
            secrets,
            own_identity,
            names: Arc::default(),
            names_due: None,
        }
    }

    /// The workload asks us for names: it should not before we know them. A control plane that has
    /// none to tell is not waited for longer than for anything else.
    pub fn expect_names(&mut self, now: Instant) {
        self.names_due = Some(now + WARMING_MAX);
    }

    /// Takes in changes of one type. What cannot be used is named in the error; the rest is used.
    pub fn apply(
        &mut self,
        ty: ResourceType,
        version: &str,
        upserts: &[Resource],
        removes: &[Arc<str>],
        now: Instant,
        lookup: &dyn Fn(&str) -> Vec<IpAddr>,
    ) -> Result<(), Rejection> {
        let mut changes = Vec::new();
        let mut reasons = Vec::new();
        let mut names = Vec::new();
        for resource in upserts {
            match self.upsert(ty, resource, now, lookup, &mut changes) {
                Ok(()) => {
                    let held = Held { resource: resource.clone(), updated: unix_now() };
                    self.held[ty.index()].insert(resource.name.clone(), held);
                    self.rejected[ty.index()].remove(&resource.name);
                }
                Err(reason) => {
                    self.rejected[ty.index()].insert(resource.name.clone(), reason.clone());
                    names.push(resource.name.clone());
                    reasons.push(reason);
                }
            }
        }
        for name in removes {
            self.remove(ty, name, &mut changes);
        }
        if !changes.is_empty() {
            self.tables = Arc::new(self.tables.with(changes));
        }
        // An answer it is, also when a part of it is refused: one bad resource must not keep the
        // good ones from serving.
        self.answered_types[ty.index()] = true;
        if ty == ResourceType::NameTable {
            self.names_due = None;
        }
        if reasons.is_empty() {
            self.versions[ty.index()] = version.to_owned();
            return Ok(());
        }
        Err(Rejection { reason: reasons.join("; "), names })
    }

    fn upsert(
        &mut self,
        ty: ResourceType,
        resource: &Resource,
        now: Instant,
        lookup: &dyn Fn(&str) -> Vec<IpAddr>,
        changes: &mut Vec<Change>,
    ) -> Result<(), String> {
        let malformed =
            |error: &dyn std::fmt::Display| format!("{ty} {:?}: {error}", resource.name);
        let name = resource.name.clone();
        match ty {
            ResourceType::Listener => {
                let message = resource.decode::<ListenerPb>().map_err(|e| malformed(&e))?;
                let listener = lower::listener(&message).map_err(|e| e.to_string())?;
                for what in left_out(&listener) {
                    tracing::warn!(listener = %name, what, "left out: this proxy does not have it");
                }
                let since = self.warming.get(&name).map_or(now, |warming| warming.since);
                self.warming.insert(name, Warming { listener: Arc::new(listener), since });
            }
            ResourceType::Route => {
                let message = resource.decode::<RouteConfiguration>().map_err(|e| malformed(&e))?;
                let table = lower::route_config(&message).map_err(|e| e.to_string())?;
                let since = self.warming_routes.remove(&name).map_or(now, |older| older.since);
                let table = Arc::new(table);
                // Which cluster a request gets must not change before there is somebody in it: the
                // endpoints of a cluster that is new are only now asked for.
                match self.unanswered(&table).is_empty() {
                    true => changes.push(Change::Route(name, Some(table))),
                    false => {
                        self.warming_routes.insert(name, WarmingRoute { table, since });
                    }
                }
            }
            ResourceType::Cluster => {
                let message = resource.decode::<ClusterPb>().map_err(|e| malformed(&e))?;
                let cluster = lower::cluster(&message).map_err(|e| e.to_string())?;
                let cluster = self.resolve(cluster, lookup);
                changes.push(Change::Cluster(name, Some(Arc::new(cluster))));
            }
            ResourceType::Endpoint => {
                let message =
                    resource.decode::<ClusterLoadAssignment>().map_err(|e| malformed(&e))?;
                let endpoints = lower::endpoints(&message).map_err(|e| e.to_string())?;
                let endpoints = self.dated(&name, endpoints, now);
                self.answered.insert(name.clone());
                changes.push(Change::Endpoints(name, Some(Arc::new(endpoints))));
            }
            ResourceType::Secret => {
                secret::install(resource, &self.secrets, self.own_identity)
                    .map_err(|error| malformed(&error))?;
            }
            ResourceType::NameTable => {
                let table = resource.decode::<NameTable>().map_err(|e| malformed(&e))?;
                self.names = Arc::new(Names::new(table));
            }
        }
        Ok(())
    }

    /// Endpoints of a cluster that lets new ones warm up: with the time each became known.
    fn dated(&self, service: &str, endpoints: EndpointSet, now: Instant) -> EndpointSet {
        // An EDS name is nearly always its cluster's; without the date an endpoint counts as old.
        match self.tables.cluster(service) {
            Some(cluster) if cluster.config.lb.slow_start.is_some() => {
                endpoints.dated(&cluster.endpoints, now)
            }
            _ => endpoints,
        }
    }

    fn remove(&mut self, ty: ResourceType, name: &Arc<str>, changes: &mut Vec<Change>) {
        self.held[ty.index()].remove(name);
        self.rejected[ty.index()].remove(name);
        match ty {
            ResourceType::Listener => {
                self.warming.remove(name);
                self.listeners_version += 1;
                changes.push(Change::Listener(name.clone(), None));
            }
            ResourceType::Route => {
                self.warming_routes.remove(name);
                changes.push(Change::Route(name.clone(), None));
            }
            ResourceType::Cluster => {
                self.admit_routes_without(name, changes);
                self.unresolved.remove(name);
                changes.push(Change::Cluster(name.clone(), None));
            }
            ResourceType::Endpoint => {
                // Gone, or asked for and not there: an answer too.
                self.answered.insert(name.clone());
                changes.push(Change::Endpoints(name.clone(), None));
            }
            ResourceType::Secret => {
                if !(self.own_identity && **name == *SECRET_DEFAULT) {
                    self.secrets.remove(name);
                }
            }
            ResourceType::NameTable => self.names = Arc::default(),
        }
    }

    /// A DNS cluster starts with whatever addresses its names already have.
    fn resolve(&mut self, cluster: Cluster, lookup: &dyn Fn(&str) -> Vec<IpAddr>) -> Cluster {
        let ClusterKind::Dns(dns) = &cluster.config.kind else {
            self.unresolved.remove(&cluster.name);
            return cluster;
        };
        let logical = dns.logical;
        self.unresolved.insert(cluster.name.clone(), cluster.endpoints.clone());
        let resolved = cluster.endpoints.resolved(logical, lookup);
        cluster.with_endpoints(Arc::new(resolved))
    }

    /// Brings DNS clusters up to what their names resolve to now. True when something changed.
    pub fn reresolve(&mut self, lookup: &dyn Fn(&str) -> Vec<IpAddr>, now: Instant) -> bool {
        let mut changes = Vec::new();
        for (name, endpoints) in &self.unresolved {
            let Some(cluster) = self.tables.cluster(name) else { continue };
            let ClusterKind::Dns(dns) = &cluster.config.kind else { continue };
            let resolved = endpoints.resolved(dns.logical, lookup);
            if resolved.endpoints != cluster.endpoints.endpoints {
                let resolved = self.dated(name, resolved, now);
                changes.push(Change::Resolved(name.clone(), Arc::new(resolved)));
            }
        }
        if changes.is_empty() {
            return false;
        }
        self.tables = Arc::new(self.tables.with(changes));
        true
    }

    /// EDS services of this table's clusters that were not answered yet.
    fn unanswered(&self, table: &RouteTable) -> Vec<Arc<str>> {
        let services = table
            .cluster_names()
            .into_iter()
            .filter_map(|name| self.tables.cluster(&name)?.eds_service().cloned());
        services.filter(|service| !self.answered.contains(service)).collect()
    }

    /// Lets route tables in whose endpoints are here or whose time is up.
    fn admit_routes(&mut self, now: Instant) {
        let mut changes = Vec::new();
        for (name, warming) in std::mem::take(&mut self.warming_routes) {
            let missing = self.unanswered(&warming.table);
            if !missing.is_empty() && now.duration_since(warming.since) < WARMING_MAX {
                self.warming_routes.insert(name, warming);
                continue;
            }
            if !missing.is_empty() {
                tracing::warn!(route = %name, ?missing, "route table starts without endpoints");
                // Not waited for again with every later version.
                self.answered.extend(missing);
            }
            changes.push(Change::Route(name, Some(warming.table)));
        }
        if !changes.is_empty() {
            self.tables = Arc::new(self.tables.with(changes));
        }
    }

    /// A cluster goes: tables in use that lead to it make way for those that wait.
    fn admit_routes_without(&mut self, cluster: &Arc<str>, changes: &mut Vec<Change>) {
        let tables = self.tables.clone();
        let ready = self.warming_routes.extract_if(.., |name, _| {
            tables.route(name).is_some_and(|table| table.cluster_names().contains(cluster))
        });
        changes.extend(ready.map(|(name, warming)| Change::Route(name, Some(warming.table))));
    }

    /// Lets in what waited, routes and listeners, where needs are met or time is up. True when a
    /// listener was.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.admit_routes(now);
        if self.names_due.is_some_and(|due| due <= now) {
            tracing::warn!("no name table came; names of the mesh are asked of name servers");
            self.names_due = None;
        }
        if self.warming.is_empty() {
            return false;
        }
        let wanted = self.secret_names();
        let secrets = self.secrets.current();
        let eds_missing = self.tables.eds_names().iter().any(|name| !self.answered.contains(name));
        let has =
            |name: &Arc<str>| secrets.certificate(name).is_some() || secrets.roots(name).is_some();
        // Without our identity calls into the mesh would fail. Other secrets of clusters concern
        // one destination each and hold nothing up.
        let identity_here = [SECRET_DEFAULT, SECRET_ROOT]
            .iter()
            .all(|name| wanted.clusters.get(*name).is_none_or(has));
        let mut changes = Vec::new();
        self.warming.retain(|name, warming| {
            let routes_here = route_names(&warming.listener)
                .iter()
                .all(|route| self.tables.route(route).is_some());
            let own = wanted.listeners.get(name);
            let secrets_here = identity_here && own.is_none_or(|names| names.iter().all(has));
            let ready = routes_here && secrets_here && !eds_missing;
            if !ready && now.duration_since(warming.since) < WARMING_MAX {
                return true;
            }
            if !ready {
                tracing::warn!(listener = %name, routes_here, secrets_here, eds_missing, "listener starts without all it refers to");
            }
            changes.push(Change::Listener(name.clone(), Some(warming.listener.clone())));
            false
        });
        if changes.is_empty() {
            return false;
        }
        self.listeners_version += 1;
        self.tables = Arc::new(self.tables.with(changes));
        true
    }

    /// When the time is up of the next that waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        let listeners = self.warming.values().map(|warming| warming.since);
        let routes = self.warming_routes.values().map(|warming| warming.since);
        let warming = listeners.chain(routes).min().map(|since| since + WARMING_MAX);
        warming.into_iter().chain(self.names_due).min()
    }

    /// What to subscribe to, given what is configured: EDS, RDS and SDS by name.
    pub fn wanted(&self) -> [(ResourceType, Wanted); 3] {
        let mut routes = self.tables.route_names();
        for warming in self.warming.values() {
            routes.extend(route_names(&warming.listener));
        }
        [
            (ResourceType::Endpoint, Wanted::Names(self.tables.eds_names())),
            (ResourceType::Route, Wanted::Names(routes)),
            (ResourceType::Secret, Wanted::Names(self.secret_names().sds)),
        ]
    }

    /// Forgets what is no longer subscribed to: nobody tells us of changes to it any more.
    pub fn forget_unwanted(&mut self) {
        let mut changes = Vec::new();
        for (ty, wanted) in self.wanted() {
            let Wanted::Names(names) = wanted else { continue };
            let gone: Vec<Arc<str>> = self.held[ty.index()]
                .keys()
                .filter(|name| !names.contains(*name))
                .cloned()
                .collect();
            for name in gone {
                self.remove(ty, &name, &mut changes);
                self.answered.remove(&name);
            }
        }
        if !changes.is_empty() {
            self.tables = Arc::new(self.tables.with(changes));
        }
    }

    /// Secrets that listeners and clusters refer to.
    pub fn secret_names(&self) -> SecretNames {
        let mut names = SecretNames::default();
        let warming = self.warming.values().map(|warming| &warming.listener);
        for listener in self.tables.listeners().chain(warming) {
            for chain in listener.chains.iter().chain(&listener.default_chain) {
                let Some(tls) = &chain.tls else { continue };
                let refs = names.refer(&tls.certificates, tls.validation.as_ref());
                names.listeners.entry(listener.name.clone()).or_default().extend(refs);
            }
        }
        for cluster in self.tables.clusters() {
            let config = &cluster.config;
            let matched = config.transport_matches.iter().map(|entry| &entry.transport);
            for transport in matched.chain([&config.transport]) {
                if let Transport::Tls(tls) = transport {
                    let refs = names.refer(&tls.certificates, tls.validation.as_ref());
                    names.clusters.extend(refs);
                }
            }
        }
        if self.own_identity {
            names.sds.remove(SECRET_DEFAULT);
        }
        names
    }

    /// CDS and LDS were answered, and nothing waits for anything.
    pub fn is_complete(&self) -> bool {
        self.answered_types[ResourceType::Cluster.index()]
            && self.answered_types[ResourceType::Listener.index()]
            && self.warming.is_empty()
            && self.warming_routes.is_empty()
            && self.names_due.is_none()
    }

    /// The hosts of the mesh, as far as we were told.
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// The tables of the moment.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Grows when a listener in use changes.
    pub fn listeners_version(&self) -> u64 {
        self.listeners_version
    }

    /// DNS endpoints of a cluster before resolution.
    pub fn unresolved(&self, cluster: &str) -> Option<Arc<EndpointSet>> {
        self.unresolved.get(cluster).cloned()
    }

    /// Resources of a type in use.
    pub fn held(&self, ty: ResourceType) -> impl Iterator<Item = &Held> {
        self.held[ty.index()].values()
    }

    /// Why the newest version of a resource is not used.
    pub fn rejection(&self, ty: ResourceType, name: &str) -> Option<&str> {
        self.rejected[ty.index()].get(name).map(String::as_str)
    }

    /// Rejected resources of which no version is in use.
    pub fn rejected_only(&self, ty: ResourceType) -> impl Iterator<Item = (&str, &str)> {
        let held = &self.held[ty.index()];
        self.rejected[ty.index()]
            .iter()
            .filter(|(name, _)| !held.contains_key(*name))
            .map(|(name, error)| (&**name, error.as_str()))
    }

    /// Version of the last accepted response of a type.
    pub fn version(&self, ty: ResourceType) -> String {
        self.versions[ty.index()].clone()
    }

    /// A newer version of this listener waits for what it refers to.
    pub fn is_warming(&self, name: &str) -> bool {
        self.warming.contains_key(name)
    }
}

impl SecretNames {
    /// Notes what one TLS context refers to; returns the names.
    fn refer(
        &mut self,
        certificates: &[CertSource],
        validation: Option<&Validation>,
    ) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for source in certificates {
            match source {
                CertSource::Sds(name) => names.push(name.clone()),
                CertSource::Files { chain, key } => {
                    self.files
                        .push(FileSecret::Certificate { chain: chain.clone(), key: key.clone() });
                }
                CertSource::Inline { .. } => {}
            }
        }
        match validation.and_then(|validation| validation.roots.as_ref()) {
            Some(RootSource::Sds(name)) => names.push(name.clone()),
            Some(RootSource::File(path)) => self.files.push(FileSecret::Roots(path.clone())),
            Some(RootSource::System) => self.files.push(FileSecret::SystemRoots),
            Some(RootSource::Inline(_)) | None => {}
        }
        if let Some(CrlSource::File(path)) = validation.and_then(|all| all.revoked.as_ref()) {
            self.files.push(FileSecret::Lists(path.clone()));
        }
        for name in &names {
            match FileSecret::from_sds_name(name) {
                Some(file) => self.files.push(file),
                None => {
                    self.sds.insert(name.clone());
                }
            }
        }
        names
    }
}

fn route_names(listener: &ListenerConfig) -> Vec<Arc<str>> {
    let chains = listener.chains.iter().chain(&listener.default_chain);
    chains
        .filter_map(|chain| match &chain.network {
            Network::Http(http) => match &http.routes {
                RouteSource::Rds(name) => Some(name.clone()),
                RouteSource::Inline(_) => None,
            },
            Network::Tcp(_) => None,
        })
        .collect()
}

/// Tracers and sinks of logs that a control plane asks for and that we do not have.
fn left_out(listener: &ListenerConfig) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for chain in listener.chains.iter().chain(&listener.default_chain) {
        let (tracer, logs) = match &chain.network {
            Network::Http(http) => {
                let tracing = http.tracing.as_ref();
                (tracing.and_then(|tracing| tracing.unknown.as_deref()), &http.access_log)
            }
            Network::Tcp(tcp) => (None, &tcp.access_log),
        };
        names.extend(tracer);
        names.extend(logs.iter().flat_map(|logs| logs.unknown()).map(|name| &**name));
    }
    names
}
