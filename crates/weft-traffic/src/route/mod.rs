//! A lowered route configuration and the choice of the route for a request.
//!
//! Envoy's order: virtual host by authority (exact, longest suffix wildcard, longest prefix wildcard,
//! `*`), then the first route of that host that matches. Immutable; a lookup does not allocate. Hosts
//! and routes are behind `Arc`, so a request can keep its route when the table is replaced.

mod action;
mod hash;
mod host;
mod path;
mod redirect;

use std::sync::Arc;

use weft_http::RequestHead;

use crate::cors::CorsPolicy;
use crate::fault::FaultPolicy;
use crate::headers::HeaderEdits;
use crate::matcher::{CookieMatch, Fraction, HeaderMatch, QueryMatch};
use crate::rate_limit::{LocalRateLimit, RateLimitRule};
use crate::retry::RetryPolicy;

pub use action::{
    ClusterChoice, ClusterRef, HostRewrite, Mirror, PathRewrite, RouteAction, RouteRateLimits,
    WeightedCluster, WeightedClusters,
};
pub use hash::{HashInput, HashPolicy, HashSource, SetCookie, hash_ip};
pub use host::HostIndex;
pub use path::PathMatch;
pub use redirect::{Redirect, RedirectPath, to_https};

/// One route configuration, from RDS or inline.
#[derive(Debug, Clone)]
pub struct RouteTable {
    pub name: Arc<str>,
    pub hosts: Vec<Arc<VirtualHost>>,
    index: HostIndex,
    pub edits: Edits,
    /// Edits of the most specific level are applied last instead of first.
    pub most_specific_edits_last: bool,
    /// Every cluster must exist before the table is used (`validate_clusters`).
    pub validate_clusters: bool,
    /// More hosts can be asked for on demand (VHDS).
    pub vhds: bool,
}

/// Request and response header edits of one level.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    pub request: HeaderEdits,
    pub response: HeaderEdits,
}

/// One virtual host.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// `reviews.default.svc.cluster.local:9080`, `allow_any`, `block_all`.
    pub name: Arc<str>,
    pub routes: Vec<Arc<Route>>,
    pub edits: Edits,
    pub require_tls: RequireTls,
    pub cors: Option<Arc<CorsPolicy>>,
    pub fault: Option<Arc<FaultPolicy>>,
    /// By the filter's name; None: not here.
    pub limits: Vec<(Box<str>, Option<Arc<LocalRateLimit>>)>,
    /// What makes descriptors of requests whose route makes none.
    pub rate_limits: Vec<RateLimitRule>,
    /// For routes without their own.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Send `x-envoy-attempt-count` upstream.
    pub attempt_count_upstream: bool,
    /// Send it to the client.
    pub attempt_count_downstream: bool,
}

/// `VirtualHost.require_tls`: plain requests are redirected to https with 301.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequireTls {
    No,
    All,
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    pub name: Arc<str>,
    pub matches: RouteMatch,
    pub action: Action,
    pub edits: Edits,
    /// Istio's resource that made the route
    /// (`/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME`).
    pub origin: Option<Arc<str>>,
    /// Which of its rules: `http[1]`.
    pub rule: Option<Arc<str>>,
    /// The resource's generation, as its control plane counts.
    pub generation: Option<Arc<str>>,
    /// Span name (`decorator.operation`).
    pub operation: Option<Arc<str>>,
    /// Overrides the listener's tracing percentages.
    pub tracing: Option<crate::http::Tracing>,
    pub cors: Option<Arc<CorsPolicy>>,
    pub fault: Option<Arc<FaultPolicy>>,
    /// By the filter's name; None: not here.
    pub limits: Vec<(Box<str>, Option<Arc<LocalRateLimit>>)>,
    /// Overrides the virtual host's.
    pub buffer_bytes_max: Option<u64>,
}

/// What a route asks of a request; every list must match in full.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    pub cookies: Vec<CookieMatch>,
    /// Content type is gRPC.
    pub grpc: bool,
    /// Only this part of the requests.
    pub fraction: Option<Fraction>,
}

/// What is done with a request that matched.
#[derive(Debug, Clone)]
pub enum Action {
    Forward(RouteAction),
    Redirect(Redirect),
    Direct {
        status: u16,
        body: bytes::Bytes,
    },
    /// `non_forwarding_action`: for configurations of servers only; answered 404 by a proxy.
    NonForwarding,
}

/// The outcome of a lookup.
#[derive(Debug, Clone, Copy)]
pub enum RouteResult<'t> {
    Found(Found<'t>),
    /// No virtual host has this authority: 404, flag NR.
    NoHost,
    /// The host has no route for this request: 404, flag NR.
    NoRoute(&'t Arc<VirtualHost>),
    /// `require_tls`: answer 301 to the same URL with https.
    RedirectToTls(&'t Arc<VirtualHost>),
}

/// A route with its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Found<'t> {
    pub table: &'t RouteTable,
    pub host: &'t Arc<VirtualHost>,
    pub route: &'t Arc<Route>,
    /// The cluster that was drawn; None unless the action forwards.
    pub cluster: Option<ClusterRef<'t>>,
}

impl RouteTable {
    /// Puts a table together. `hosts` and their domains must already be checked by [`HostIndex::build`].
    pub(crate) fn new(
        name: Arc<str>,
        hosts: Vec<Arc<VirtualHost>>,
        index: HostIndex,
    ) -> RouteTable {
        RouteTable {
            name,
            hosts,
            index,
            edits: Edits::default(),
            most_specific_edits_last: false,
            validate_clusters: false,
            vhds: false,
        }
    }

    /// The route for a request. `random` decides fractions and weights; draw it once per request.
    pub fn route<'t>(&'t self, head: &RequestHead, random: u64) -> RouteResult<'t> {
        let Some(host) = self.host(head.authority()) else { return RouteResult::NoHost };
        if host.require_tls == RequireTls::All && head.scheme == weft_http::Scheme::Http {
            return RouteResult::RedirectToTls(host);
        }
        let Some(route) = host.routes.iter().find(|route| route.matches.is_match(head, random))
        else {
            return RouteResult::NoRoute(host);
        };
        let cluster = match &route.action {
            Action::Forward(action) => Some(action.clusters.draw(random)),
            Action::Redirect(_) | Action::Direct { .. } | Action::NonForwarding => None,
        };
        RouteResult::Found(Found { table: self, host, route, cluster })
    }

    /// The virtual host for an authority (`host` or `host:port`).
    pub fn host(&self, authority: &[u8]) -> Option<&Arc<VirtualHost>> {
        self.index.find(authority).and_then(|index| self.hosts.get(index))
    }

    /// Names of all clusters that routes may choose, each once, in order of first use.
    pub fn cluster_names(&self) -> Vec<Arc<str>> {
        let mut seen = std::collections::HashSet::new();
        let mut names = Vec::new();
        for route in self.hosts.iter().flat_map(|host| &host.routes) {
            let Action::Forward(action) = &route.action else { continue };
            for name in
                action.clusters.names().chain(action.mirrors.iter().filter_map(Mirror::name))
            {
                if seen.insert(name.clone()) {
                    names.push(name.clone());
                }
            }
        }
        names
    }
}

impl RouteMatch {
    pub fn is_match(&self, head: &RequestHead, random: u64) -> bool {
        self.path.is_match(head)
            && self.headers.iter().all(|matcher| matcher.is_match(head))
            && (self.query.is_empty() || self.query.iter().all(|q| q.is_match(head.query())))
            && self.cookies.iter().all(|matcher| matcher.is_match(head))
            && (!self.grpc || is_grpc(head))
            && self.fraction.is_none_or(|fraction| fraction.hit(random))
    }
}

/// `application/grpc` or `application/grpc+…`, as Envoy decides it.
pub fn is_grpc(head: &RequestHead) -> bool {
    let Some(value) = head.headers.get_known(weft_http::Known::ContentType) else { return false };
    match value.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+')),
        None => false,
    }
}

impl<'t> Found<'t> {
    /// Request edits in the order to apply them.
    pub fn request_edits(&self) -> impl Iterator<Item = &'t HeaderEdits> {
        self.levels().into_iter().flatten().map(|edits| &edits.request)
    }

    /// Response edits in the order to apply them.
    pub fn response_edits(&self) -> impl Iterator<Item = &'t HeaderEdits> {
        self.levels().into_iter().flatten().map(|edits| &edits.response)
    }

    fn levels(&self) -> [Option<&'t Edits>; 4] {
        let weighted = self.cluster.and_then(|cluster| cluster.edits);
        let mut levels =
            [weighted, Some(&self.route.edits), Some(&self.host.edits), Some(&self.table.edits)];
        if self.table.most_specific_edits_last {
            levels.reverse();
        }
        levels
    }

    /// The retry policy in force: the route's, else the virtual host's.
    pub fn retry(&self) -> Option<&'t Arc<RetryPolicy>> {
        match &self.route.action {
            Action::Forward(action) => action.retry.as_ref().or(self.host.retry.as_ref()),
            _ => None,
        }
    }

    /// The CORS policy in force: the route's, else the virtual host's.
    pub fn cors(&self) -> Option<&'t Arc<CorsPolicy>> {
        self.route.cors.as_ref().or(self.host.cors.as_ref())
    }

    /// The fault in force: the route's, else the virtual host's (else the filter's own).
    pub fn fault(&self) -> Option<&'t Arc<FaultPolicy>> {
        self.route.fault.as_ref().or(self.host.fault.as_ref())
    }

    /// What the route, else the virtual host, says instead of the filter of this name; `Some(None)`:
    /// there is no limit here.
    pub fn limit(&self, filter: &str) -> Option<Option<&'t Arc<LocalRateLimit>>> {
        let mut all = self.route.limits.iter().chain(&self.host.limits);
        all.find(|(name, _)| **name == *filter).map(|(_, limit)| limit.as_ref())
    }

    /// What makes descriptors of the request: the route's, and the virtual host's where the route
    /// has none or includes them.
    pub fn rate_limits(&self) -> impl Iterator<Item = &'t RateLimitRule> {
        let own = match &self.route.action {
            Action::Forward(action) => action.rate_limits.as_deref(),
            _ => None,
        };
        let with_host = own.is_none_or(|own| own.host_too);
        let host = if with_host { &self.host.rate_limits[..] } else { &[][..] };
        own.into_iter().flat_map(|own| &own.rules).chain(host)
    }
}

#[cfg(test)]
pub(crate) fn test_head(
    method: &str,
    authority: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> RequestHead {
    RequestHead {
        method: weft_http::Method::from_bytes(method.as_bytes()),
        scheme: weft_http::Scheme::Http,
        authority: Some(bytes::Bytes::copy_from_slice(authority.as_bytes())),
        target: weft_http::Target::Path(bytes::Bytes::copy_from_slice(path.as_bytes())),
        version: weft_http::Version::H11,
        headers: headers.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests;
