//! Locality load balancing: which endpoints a proxy prefers, by where both are
//! (`localityLbSetting` of a DestinationRule or of the mesh).
//!
//! Preferring the near ones means Envoy's priorities, which only a loss of health moves traffic
//! between; so without outlier detection only `distribute` has an effect, as in Istio, and a
//! service's own `trafficDistribution`, for which unready endpoints are told as such.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::spec::{LocalityDistribute, LocalityFailover, LocalityLbSetting};
use weft_model::{Endpoint, HOSTNAME, Labels, MeshService, TrafficDistribution};

use crate::policy::Policy;
use crate::scope::Scope;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const NETWORK: &str = "topology.istio.io/network";
const CLUSTER: &str = "topology.istio.io/cluster";

/// How the endpoints of one cluster are preferred by one proxy.
pub(crate) enum Preference<'a> {
    /// All alike.
    None,
    /// Fixed shares by locality; localities without one get nothing.
    Distribute(&'a LocalityDistribute),
    /// The nearest that are healthy, by region, zone and subzone.
    Nearest { from: Arc<str>, regions: &'a [LocalityFailover] },
    /// Those that agree with the proxy in the most of these labels, in their order.
    Labels { wanted: Vec<&'a str>, own: Labels },
}

impl<'a> Preference<'a> {
    pub(crate) fn new(scope: &Scope<'a>, policy: &Policy<'a>, service: &MeshService) -> Self {
        let Some(setting) = Setting::of(scope, policy, service) else { return Preference::None };
        let from = Arc::clone(&scope.locality);
        let own = || {
            let node = scope.workload.map_or("", |workload| &*workload.node);
            let place =
                Place { locality: &from, network: "", cluster: &scope.view.cluster_id, node };
            with_place(&scope.view.labels, &place)
        };
        match setting {
            Setting::Service(wanted) => Preference::Labels { wanted: wanted.to_vec(), own: own() },
            Setting::Given(LocalityLbSetting { distribute, .. }) if !distribute.is_empty() => {
                let here = distribute.iter().find(|one| covers(&one.from, &from));
                here.filter(|_| !from.is_empty()).map_or(Preference::None, Preference::Distribute)
            }
            // Nothing would ever leave the first priority.
            _ if policy.outlier_detection.is_none() => Preference::None,
            Setting::Given(given) if !given.failover_priority.is_empty() => Preference::Labels {
                wanted: given.failover_priority.iter().map(String::as_str).collect(),
                own: own(),
            },
            _ if from.is_empty() => Preference::None,
            Setting::Given(given) => Preference::Nearest { from, regions: &given.failover },
            Setting::Default => Preference::Nearest { from, regions: &[] },
        }
    }

    /// Whether the cluster must choose a locality by its weight first.
    pub(crate) fn weighs_localities(&self) -> bool {
        !matches!(self, Preference::None)
    }

    /// 0 is preferred most; numbers may be left out.
    pub(crate) fn rank(&self, endpoint: &Endpoint) -> u32 {
        match self {
            Preference::None | Preference::Distribute(_) => 0,
            Preference::Nearest { from, regions } => distance(from, &endpoint.locality, regions),
            Preference::Labels { wanted, own } => {
                let workload = endpoint.workload.as_ref();
                let place = Place {
                    locality: &endpoint.locality,
                    network: &endpoint.network,
                    cluster: workload.map_or("", |workload| &*workload.cluster),
                    node: workload.map_or("", |workload| &*workload.node),
                };
                let labels = with_place(&endpoint.labels, &place);
                let agrees = |wanted: &&&str| match wanted.split_once('=') {
                    Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
                    None => labels.get(**wanted) == own.get(**wanted),
                };
                let agreed = wanted.iter().take_while(agrees).count();
                u32::try_from(wanted.len() - agreed).unwrap_or(u32::MAX)
            }
        }
    }

    /// The weight of each locality instead of the sum of its endpoints'; 0 takes it out. `None`:
    /// as they are.
    pub(crate) fn weights(&self, localities: &[(&str, u32)]) -> Option<Vec<u32>> {
        let Preference::Distribute(LocalityDistribute { to, .. }) = self else { return None };
        // Each locality belongs to the most specific pattern that covers it.
        let mut patterns: Vec<(&String, u32)> = to.iter().map(|(to, share)| (to, *share)).collect();
        patterns.sort_by_key(|(pattern, _)| {
            (std::cmp::Reverse(pattern.split('/').count()), pattern.contains('*'))
        });
        let owner = |name: &str| patterns.iter().position(|(pattern, _)| covers(pattern, name));
        let owners: Vec<Option<usize>> = localities.iter().map(|(name, _)| owner(name)).collect();
        let mut sums: BTreeMap<usize, u64> = BTreeMap::new();
        for (owner, (_, weight)) in owners.iter().zip(localities) {
            if let Some(owner) = owner {
                *sums.entry(*owner).or_default() += u64::from(*weight);
            }
        }
        let share = |(owner, (_, weight)): (&Option<usize>, &(&str, u32))| {
            let Some(owner) = owner else { return 0 };
            let sum = sums.get(owner).copied().unwrap_or(0).max(1);
            let part = u64::from(patterns[*owner].1) * u64::from(*weight);
            u32::try_from(part.div_ceil(sum)).unwrap_or(u32::MAX)
        };
        Some(owners.iter().zip(localities).map(share).collect())
    }
}

/// The setting that applies, unless locality load balancing is off.
enum Setting<'a> {
    Given(&'a LocalityLbSetting),
    /// What the service itself asks for, as labels to agree in.
    Service(&'static [&'static str]),
    /// Istio's default for the mesh: on, and nothing said.
    Default,
}

/// `trafficDistribution`: same network, region and zone first.
const SAME_ZONE: [&str; 3] = [NETWORK, REGION, ZONE];
/// The same, then subzone and node.
const SAME_NODE: [&str; 5] = [NETWORK, REGION, ZONE, SUBZONE, HOSTNAME];

impl<'a> Setting<'a> {
    fn of(scope: &Scope<'a>, policy: &Policy<'a>, service: &MeshService) -> Option<Self> {
        let of_rule = policy.load_balancer.and_then(|lb| lb.locality_lb_setting.as_ref());
        match (of_rule, service.distribution) {
            (Some(_), _) | (None, TrafficDistribution::Any) => {}
            (None, TrafficDistribution::PreferSameZone) => {
                return Some(Setting::Service(&SAME_ZONE));
            }
            (None, TrafficDistribution::PreferSameNode) => {
                return Some(Setting::Service(&SAME_NODE));
            }
        }
        match of_rule.or(scope.snapshot.mesh().locality_lb_setting.as_ref()) {
            Some(given) if given.enabled == Some(false) => None,
            Some(given) => Some(Setting::Given(given)),
            None => Some(Setting::Default),
        }
    }
}

/// Istio's steps: same subzone, zone, region; then elsewhere, where `failover` puts the regions it
/// does not name for ours last.
fn distance(from: &str, to: &str, regions: &[LocalityFailover]) -> u32 {
    let parts = |locality: &'_ str| -> [String; 3] {
        let mut parts = locality.splitn(3, '/').map(str::to_owned);
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    };
    let (from, to) = (parts(from), parts(to));
    let same = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
    match same {
        3 => 0,
        2 => 1,
        1 => 2,
        _ => match regions.iter().find(|failover| failover.from == from[0]) {
            Some(failover) if failover.to != to[0] => 4,
            _ => 3,
        },
    }
}

/// Whether a pattern (`region/zone/subzone`, each may be `*`, later ones left out) covers a locality.
fn covers(pattern: &str, locality: &str) -> bool {
    let mut parts = locality.splitn(3, '/');
    pattern.splitn(3, '/').all(|wanted| {
        let part = parts.next().unwrap_or_default();
        wanted == "*" || wanted == part
    })
}

/// Where a proxy or an endpoint is; empty: unknown.
struct Place<'p> {
    /// `region/zone/subzone`
    locality: &'p str,
    network: &'p str,
    cluster: &'p str,
    node: &'p str,
}

/// Labels, with those that follow from the place where they are not given.
fn with_place(labels: &Labels, place: &Place<'_>) -> Labels {
    let mut all = labels.clone();
    let mut parts = place.locality.splitn(3, '/');
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            all.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    };
    for key in [REGION, ZONE, SUBZONE] {
        add(key, parts.next().unwrap_or_default());
    }
    add(NETWORK, place.network);
    add(CLUSTER, place.cluster);
    add(HOSTNAME, place.node);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearness_is_by_region_zone_and_subzone() {
        let here = "eu/a/1";
        let steps = |to: &str, regions: &[LocalityFailover]| distance(here, to, regions);
        assert_eq!(steps("eu/a/1", &[]), 0);
        assert_eq!(steps("eu/a/2", &[]), 1);
        assert_eq!(steps("eu/b/1", &[]), 2);
        assert_eq!(steps("us/a/1", &[]), 3);
        assert_eq!(steps("", &[]), 3);
        let to_us = [LocalityFailover { from: "eu".into(), to: "us".into() }];
        assert_eq!(steps("us/a", &to_us), 3);
        assert_eq!(steps("asia/a", &to_us), 4);
    }

    #[test]
    fn patterns_may_leave_out_what_is_below() {
        for (pattern, locality, expect) in [
            ("eu/a/*", "eu/a/1", true),
            ("eu/*", "eu/b/1", true),
            ("eu", "eu/b/1", true),
            ("*", "anything", true),
            ("eu/a", "eu/b", false),
            ("eu/a/1", "eu/a", false),
        ] {
            assert_eq!(covers(pattern, locality), expect, "{pattern} {locality}");
        }
    }

    #[test]
    fn shares_are_split_over_the_localities_of_a_pattern() {
        let to = [("eu/a/*".to_owned(), 80), ("eu/*".to_owned(), 20)].into_iter().collect();
        let rule = LocalityDistribute { from: "eu/a/*".into(), to };
        let preference = Preference::Distribute(&rule);
        let localities = [("eu/a/1", 1), ("eu/b", 3), ("eu/c", 1), ("us/a", 5)];
        assert_eq!(preference.weights(&localities), Some(vec![80, 15, 5, 0]));
    }
}
