//! What a forwarding route does: cluster choice, rewrites, mirrors, timeouts, retries, hashing.

use std::sync::Arc;

use bytes::Bytes;
use weft_http::RequestHead;

use super::{Edits, HashPolicy, Route};
use crate::matcher::{Fraction, Substitution};
use crate::rate_limit::RateLimitRule;
use crate::retry::RetryPolicy;
use crate::timeout::RouteTimeouts;

/// `RouteAction`.
#[derive(Debug, Clone)]
pub struct RouteAction {
    pub clusters: ClusterChoice,
    /// Answer when the cluster does not exist; Envoy: 503.
    pub cluster_not_found_status: u16,
    pub timeouts: RouteTimeouts,
    pub retry: Option<Arc<RetryPolicy>>,
    pub path_rewrite: Option<PathRewrite>,
    pub host_rewrite: Option<HostRewrite>,
    /// Keep the host before a rewrite in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    pub mirrors: Vec<Mirror>,
    /// Empty: consistent-hash balancers draw at random.
    pub hash: HashPolicy,
    /// High priority: the other set of circuit breaker limits.
    pub high_priority: bool,
    /// Overrides the listener for websocket; None: as the listener says.
    pub websocket: Option<bool>,
    /// What makes descriptors for rate limits, where the route has rules of its own.
    pub rate_limits: Option<Box<RouteRateLimits>>,
}

/// `RouteAction.rate_limits`.
#[derive(Debug, Clone)]
pub struct RouteRateLimits {
    pub rules: Vec<RateLimitRule>,
    /// The virtual host's make descriptors, too.
    pub host_too: bool,
}

/// Which cluster takes a request or connection.
#[derive(Debug, Clone)]
pub enum ClusterChoice {
    One(Arc<str>),
    /// The value of this request header (lower case) names the cluster.
    Header(Arc<str>),
    Weighted(WeightedClusters),
}

/// Clusters with weights; the sum is not zero.
#[derive(Debug, Clone)]
pub struct WeightedClusters {
    clusters: Vec<WeightedCluster>,
    total: u64,
}

#[derive(Debug, Clone)]
pub struct WeightedCluster {
    /// Empty when `header` names the cluster.
    pub name: Arc<str>,
    pub header: Option<Arc<str>>,
    pub weight: u32,
    pub edits: Edits,
    /// Literal host rewrite for this destination.
    pub host_rewrite: Option<Bytes>,
}

/// The cluster that was drawn.
#[derive(Debug, Clone, Copy)]
pub struct ClusterRef<'t> {
    /// None: take the name from request header `header`.
    pub name: Option<&'t Arc<str>>,
    pub header: Option<&'t Arc<str>>,
    /// Edits of the weighted entry.
    pub edits: Option<&'t Edits>,
    pub host_rewrite: Option<&'t Bytes>,
}

impl WeightedClusters {
    /// None if there is no cluster or all weights are zero.
    pub fn new(clusters: Vec<WeightedCluster>) -> Option<WeightedClusters> {
        let total = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        (total > 0).then_some(WeightedClusters { clusters, total })
    }

    pub fn iter(&self) -> impl Iterator<Item = &WeightedCluster> {
        self.clusters.iter()
    }

    fn draw(&self, random: u64) -> &WeightedCluster {
        let mut left = random % self.total;
        for cluster in &self.clusters {
            match left.checked_sub(u64::from(cluster.weight)) {
                Some(rest) => left = rest,
                None => return cluster,
            }
        }
        // Not reached: the draw is below the sum of the weights.
        &self.clusters[self.clusters.len() - 1]
    }
}

impl ClusterChoice {
    /// The cluster for this draw.
    pub fn draw(&self, random: u64) -> ClusterRef<'_> {
        match self {
            ClusterChoice::One(name) => {
                ClusterRef { name: Some(name), header: None, edits: None, host_rewrite: None }
            }
            ClusterChoice::Header(header) => {
                ClusterRef { name: None, header: Some(header), edits: None, host_rewrite: None }
            }
            ClusterChoice::Weighted(weighted) => {
                let cluster = weighted.draw(random);
                ClusterRef {
                    name: cluster.header.is_none().then_some(&cluster.name),
                    header: cluster.header.as_ref(),
                    edits: Some(&cluster.edits),
                    host_rewrite: cluster.host_rewrite.as_ref(),
                }
            }
        }
    }

    /// Names that are known without a request.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, weighted) = match self {
            ClusterChoice::One(name) => (Some(name), None),
            ClusterChoice::Header(_) => (None, None),
            ClusterChoice::Weighted(weighted) => (None, Some(weighted)),
        };
        let weighted = weighted.into_iter().flat_map(WeightedClusters::iter);
        one.into_iter().chain(weighted.filter(|c| c.header.is_none()).map(|c| &c.name))
    }
}

impl<'t> ClusterRef<'t> {
    /// The cluster's name. None: the header that should name it is missing or not text.
    pub fn resolve<'r>(&self, head: &'r RequestHead) -> Option<&'r str>
    where
        't: 'r,
    {
        match (self.name, self.header) {
            (Some(name), _) => Some(name),
            (None, Some(header)) => std::str::from_utf8(head.headers.get(&**header)?).ok(),
            (None, None) => None,
        }
    }
}

/// How the path changes on the way.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Replaces what the route matched; the whole path of an exact or regex match.
    Prefix(Box<[u8]>),
    Regex(Substitution),
}

impl PathRewrite {
    /// The new path with the old query.
    pub fn apply(&self, route: &Route, path_and_query: &[u8]) -> Bytes {
        let split = path_and_query.iter().position(|&byte| byte == b'?');
        let (path, query) = path_and_query.split_at(split.unwrap_or(path_and_query.len()));
        let mut out = match self {
            PathRewrite::Prefix(prefix) => {
                let rest = &path[route.matches.path.covered(path)..];
                [prefix, rest].concat()
            }
            PathRewrite::Regex(substitution) => substitution.replace(path),
        };
        out.extend_from_slice(query);
        // A message needs a path in origin form (RFC 9112 §3.2.1) whatever the substitution made.
        if out.first() != Some(&b'/') {
            out.insert(0, b'/');
        }
        out.into()
    }
}

/// How the authority changes on the way.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    Literal(Bytes),
    /// The endpoint's host name (DNS clusters).
    Auto,
    /// The value of this request header, where present.
    Header(Arc<str>),
    /// A substitution over the path without query.
    Path(Substitution),
}

/// `RequestMirrorPolicy`: a copy whose answer is thrown away.
#[derive(Debug, Clone)]
pub struct Mirror {
    pub cluster: ClusterChoice,
    pub fraction: Fraction,
    /// Otherwise the copy's host gets `-shadow`.
    pub keep_host: bool,
    /// Host of the copy.
    pub host_rewrite: Option<Bytes>,
    /// Whether the copy is traced; None: as the request.
    pub traced: Option<bool>,
}

impl Mirror {
    /// The cluster, unless a header names it.
    pub fn name(&self) -> Option<&Arc<str>> {
        match &self.cluster {
            ClusterChoice::One(name) => Some(name),
            ClusterChoice::Header(_) | ClusterChoice::Weighted(_) => None,
        }
    }
}
