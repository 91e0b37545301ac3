//! The way of one request through one proxy's tables.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_model::{Origin, Snapshot};
use weft_traffic::cluster::{ClusterKind, Transport};
use weft_traffic::lb::LbPolicy;
use weft_traffic::matcher::Fraction;
use weft_traffic::route::{ClusterChoice, Found, HostRewrite};
use weft_traffic::{
    Action, Cluster, ConnInfo, Endpoint, FilterChain, ListenerConfig, Network, RouteAction,
    RouteResult, Tables,
};

use super::client::Client;
use super::request::Request;

/// Endpoints listed of one cluster.
const ENDPOINTS_MAX: usize = 20;

/// Every step, as far as the request comes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Walk {
    pub(super) from: String,
    /// Namespace and name of the proxy that takes it first.
    pub(super) proxy: String,
    /// The address the client connects to.
    pub(super) to: SocketAddr,
    pub(super) listener: Option<String>,
    pub(super) chain: Option<String>,
    /// `None`: not looked at as HTTP.
    pub(super) http: Option<Http>,
    /// Where it may go, with shares that add up to 100.
    pub(super) destinations: Vec<Destination>,
    /// What the client gets when it goes nowhere, or without anybody being asked.
    pub(super) answer: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Http {
    pub(super) routes: String,
    pub(super) virtual_host: Option<String>,
    pub(super) route: Option<String>,
    /// The resource the route comes from; none for a service without rules.
    pub(super) rule: Option<Decision>,
    /// What happens on the way: timeouts, retries, rewrites, faults, mirrors.
    pub(super) actions: Vec<String>,
}

/// A resource that decided something.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Decision {
    /// `VirtualService shop/reviews`.
    pub(super) resource: String,
    /// `http[1]`.
    pub(super) rule: Option<String>,
    /// `FILE:LINE`.
    pub(super) written_in: String,
    pub(super) generation: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Destination {
    pub(super) cluster: String,
    pub(super) percent: f64,
    /// The DestinationRule that shaped the cluster.
    pub(super) policy: Option<Decision>,
    pub(super) balancing: String,
    pub(super) endpoints: Vec<Candidate>,
    pub(super) endpoints_left_out: usize,
    /// Why nothing can be sent there.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    pub(super) address: String,
    pub(super) workload: Option<String>,
    pub(super) locality: String,
    pub(super) priority: u32,
    pub(super) weight: u32,
    pub(super) tls: bool,
}

impl Walk {
    /// Whether some endpoint may see the request, or a rule answers it.
    pub(super) fn arrives(&self) -> bool {
        match &self.http {
            Some(http) if self.answer.is_some() => http.route.is_some(),
            _ => self.destinations.iter().any(|destination| destination.problem.is_none()),
        }
    }
}

pub(super) fn walk(
    snapshot: &Snapshot,
    tables: &Tables,
    client: &Client,
    request: &Request,
) -> Walk {
    let mut walk = Walk {
        from: client.name.clone(),
        proxy: format!("{}/{}", client.view.namespace, client.view.name),
        to: client.to,
        listener: None,
        chain: None,
        http: None,
        destinations: Vec::new(),
        answer: None,
    };
    let walker = Walker { snapshot, tables, request };
    let Some(listener) = walker.listener(client.to) else {
        walk.answer = Some("connection refused: no listener".to_owned());
        return walk;
    };
    walk.listener = Some(listener.name.to_string());
    let Some(chain) = walker.chain(listener, client) else {
        walk.answer = Some("connection closed: no filter chain for it".to_owned());
        return walk;
    };
    walk.chain = Some(chain.name.to_string());
    match &chain.network {
        Network::Tcp(tcp) => walk.destinations = walker.destinations(&tcp.clusters),
        Network::Http(config) => match tables.route_table(&config.routes) {
            Some(table) => walker.route(table, &mut walk),
            None => walk.answer = Some("404: its routes are not there".to_owned()),
        },
    }
    walk
}

struct Walker<'a> {
    snapshot: &'a Snapshot,
    tables: &'a Tables,
    request: &'a Request,
}

impl<'a> Walker<'a> {
    /// The listener of the address; of its port on every address; the one for captured traffic.
    fn listener(&self, to: SocketAddr) -> Option<&'a ListenerConfig> {
        let usable = || {
            self.tables
                .listeners()
                .filter(|listener| listener.direction != weft_traffic::listener::Direction::Inbound)
        };
        let exact = |listener: &&Arc<ListenerConfig>| listener.address == to;
        let any_address = |listener: &&Arc<ListenerConfig>| {
            listener.address.ip().is_unspecified() && listener.address.port() == to.port()
        };
        usable()
            .find(exact)
            .or_else(|| usable().find(any_address))
            .or_else(|| usable().find(|listener| listener.use_original_dst))
            .map(|listener| &**listener)
    }

    fn chain(&self, listener: &'a ListenerConfig, client: &Client) -> Option<&'a FilterChain> {
        let alpn: &[&[u8]] = match self.request.tls {
            true => &[b"h2", b"http/1.1"],
            false => &[b"http/1.1"],
        };
        let source = SocketAddr::new(client.address, 40_000);
        listener.select_chain(&ConnInfo {
            dst: client.to,
            src: source,
            direct_src: source,
            sni: self.request.tls.then_some(&*self.request.host),
            alpn,
            tls: self.request.tls,
        })
    }

    fn route(&self, table: &weft_traffic::RouteTable, walk: &mut Walk) {
        let mut http = Http {
            routes: table.name.to_string(),
            virtual_host: None,
            route: None,
            rule: None,
            actions: Vec::new(),
        };
        let head = &self.request.head;
        match table.route(head, 0) {
            RouteResult::NoHost => walk.answer = Some("404: no virtual host for it".to_owned()),
            RouteResult::NoRoute(host) => {
                http.virtual_host = Some(host.name.to_string());
                walk.answer = Some("404: no rule matches".to_owned());
            }
            RouteResult::RedirectToTls(host) => {
                http.virtual_host = Some(host.name.to_string());
                http.route = Some("httpsRedirect".to_owned());
                let to = weft_traffic::route::to_https(head);
                walk.answer = Some(format!("301 to {}", String::from_utf8_lossy(&to)));
            }
            RouteResult::Found(found) => {
                http.virtual_host = Some(found.host.name.to_string());
                http.route = Some(found.route.name.to_string());
                http.rule =
                    self.decision(found.route.origin.as_deref(), found.route.rule.as_deref());
                self.act(&found, &mut http, walk);
            }
        }
        walk.http = Some(http);
    }

    fn act(&self, found: &Found<'_>, http: &mut Http, walk: &mut Walk) {
        match &found.route.action {
            Action::Forward(action) => {
                http.actions = on_the_way(found, action, self.request);
                walk.destinations = self.destinations(&action.clusters);
            }
            Action::Redirect(redirect) => {
                let to = redirect.location(found.route, &self.request.head);
                walk.answer =
                    Some(format!("{} to {}", redirect.status, String::from_utf8_lossy(&to)));
            }
            Action::Direct { status, body } => {
                let body = String::from_utf8_lossy(body);
                walk.answer = Some(format!("{status} {body}").trim_end().to_owned());
            }
            Action::NonForwarding => walk.answer = Some("404".to_owned()),
        }
    }

    fn destinations(&self, choice: &ClusterChoice) -> Vec<Destination> {
        match choice {
            ClusterChoice::One(name) => vec![self.destination(name, 100.0)],
            ClusterChoice::Header(header) => {
                let named = self.request.head.headers.get(&**header);
                let name = named.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("");
                vec![self.destination(name, 100.0)]
            }
            ClusterChoice::Weighted(weighted) => {
                let total: f64 = weighted.iter().map(|cluster| f64::from(cluster.weight)).sum();
                let chosen = weighted.iter().filter(|cluster| cluster.weight > 0);
                chosen
                    .map(|cluster| {
                        let percent = f64::from(cluster.weight) * 100.0 / total;
                        self.destination(&cluster.name, percent)
                    })
                    .collect()
            }
        }
    }

    fn destination(&self, name: &str, percent: f64) -> Destination {
        let mut destination = Destination {
            cluster: name.to_owned(),
            percent,
            policy: None,
            balancing: String::new(),
            endpoints: Vec::new(),
            endpoints_left_out: 0,
            problem: None,
        };
        let Some(cluster) = self.tables.cluster(name) else {
            destination.problem =
                Some("503: no such cluster (no such service or subset)".to_owned());
            return destination;
        };
        destination.policy = self.decision(cluster.config.istio.config.as_deref(), None);
        destination.balancing = balancing(cluster);
        let all = &cluster.endpoints.endpoints;
        destination.endpoints =
            all.iter().take(ENDPOINTS_MAX).map(|endpoint| candidate(cluster, endpoint)).collect();
        destination.endpoints_left_out = all.len().saturating_sub(ENDPOINTS_MAX);
        let elsewhere = matches!(cluster.config.kind, ClusterKind::OriginalDst { .. });
        if all.is_empty() && name == weft_xds::names::BLACK_HOLE_CLUSTER {
            destination.problem = Some("refused: the host is not in the registry".to_owned());
        } else if all.is_empty() && !elsewhere {
            destination.problem = Some("503: no healthy endpoint".to_owned());
        }
        destination
    }

    /// The resource that Istio's path names.
    fn decision(&self, path: Option<&str>, rule: Option<&str>) -> Option<Decision> {
        let (_, rest) = path?.split_once("/namespaces/")?;
        let mut parts = rest.split('/');
        let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let (kind, meta) = match kind {
            "virtual-service" => {
                ("VirtualService", &self.snapshot.virtual_service(namespace, name)?.meta)
            }
            "destination-rule" => {
                let is_it =
                    |meta: &weft_model::Meta| &*meta.namespace == namespace && &*meta.name == name;
                let mut rules = self.snapshot.all_destination_rules();
                ("DestinationRule", &rules.find(|rule| is_it(&rule.meta))?.meta)
            }
            other => {
                let (kind, meta) = self.snapshot.gateway_api_meta(other, namespace, name)?;
                (kind.as_str(), meta)
            }
        };
        let Origin { file, line, .. } = &meta.origin;
        Some(Decision {
            resource: format!("{kind} {namespace}/{name}"),
            rule: rule.map(str::to_owned),
            written_in: format!("{file}:{line}"),
            generation: format!("{:016x}", meta.generation),
        })
    }
}

fn balancing(cluster: &Cluster) -> String {
    match &cluster.config.kind {
        ClusterKind::Dynamic(_) => "what the request's host resolves to".to_owned(),
        ClusterKind::OriginalDst { .. } => "the address the client asked for".to_owned(),
        _ => match cluster.config.lb.policy {
            LbPolicy::RoundRobin => "round robin",
            LbPolicy::LeastRequest { .. } => "least request",
            LbPolicy::Random => "random",
            LbPolicy::RingHash { .. } => "ring hash",
            LbPolicy::Maglev { .. } => "Maglev",
            LbPolicy::ClusterProvided => "the cluster's own",
        }
        .to_owned(),
    }
}

fn candidate(cluster: &Cluster, endpoint: &Endpoint) -> Candidate {
    let locality = &endpoint.locality;
    let parts = [&*locality.region, &*locality.zone, &*locality.sub_zone];
    let workload = endpoint.workload.as_ref();
    Candidate {
        address: endpoint.address.to_string(),
        workload: workload.map(|workload| format!("{}/{}", workload.namespace, workload.name)),
        locality: parts.join("/").trim_end_matches('/').to_owned(),
        priority: endpoint.priority,
        weight: endpoint.weight,
        tls: matches!(cluster.transport(endpoint), Transport::Tls(_)),
    }
}

fn percent(fraction: Fraction) -> String {
    let share = f64::from(fraction.numerator) * 100.0 / f64::from(fraction.denominator.max(1));
    format!("{share} %")
}

fn on_the_way(found: &Found<'_>, action: &RouteAction, request: &Request) -> Vec<String> {
    let mut actions = Vec::new();
    if let Some(timeout) = action.timeouts.request {
        actions.push(format!("timeout {timeout:?}"));
    }
    if let Some(retry) = found.retry() {
        let each = retry.per_try_timeout.map(|limit| format!(", {limit:?} each"));
        actions.push(format!("retries {}{}", retry.retries_max, each.unwrap_or_default()));
    }
    if let Some(rewrite) = &action.path_rewrite {
        let path = rewrite.apply(found.route, request.head.path_and_query());
        actions.push(format!("path becomes {}", String::from_utf8_lossy(&path)));
    }
    match &action.host_rewrite {
        Some(HostRewrite::Literal(host)) => {
            actions.push(format!("host becomes {}", String::from_utf8_lossy(host)));
        }
        Some(HostRewrite::Auto) => actions.push("host becomes the endpoint's".to_owned()),
        Some(HostRewrite::Header(name)) => actions.push(format!("host becomes header {name}'s")),
        Some(HostRewrite::Path(_)) => actions.push("host is made of the path".to_owned()),
        None => {}
    }
    if let Some(fault) = found.fault() {
        if let Some(delay) = &fault.delay {
            actions.push(format!(
                "fault: delay {:?} for {}",
                delay.duration,
                percent(delay.fraction)
            ));
        }
        if let Some(abort) = &fault.abort {
            actions.push(format!("fault: abort {:?} for {}", abort.kind, percent(abort.fraction)));
        }
    }
    for mirror in &action.mirrors {
        actions.push(format!("copy to {}", mirror.name().map_or("?", |name| name)));
    }
    if found.cors().is_some() {
        actions.push("CORS policy".to_owned());
    }
    if let Some(fraction) = &found.route.matches.fraction {
        actions.push(format!("this rule takes {} of the requests", percent(*fraction)));
    }
    actions
}
