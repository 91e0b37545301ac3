//! Names of DNS clusters, resolved in the background on the control runtime. A name that cannot be
//! resolved keeps its last addresses; an empty answer is believed. Must not know clusters beyond
//! their names, family and refresh.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::task::JoinHandle;
use weft_traffic::cluster::{ClusterKind, DnsFamily};
use weft_traffic::{Cluster, EndpointSet};

/// Shortest time between two lookups of a name, whatever the configuration or TTL says.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// Names resolved at the same time for all clusters.
const NAMES_MAX: usize = 4096;

/// How a name is to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lookup {
    family: DnsFamily,
    refresh: Duration,
}

/// Resolves the names of the DNS clusters of the moment.
pub struct Dns {
    resolver: Option<TokioResolver>,
    found: Arc<Mutex<HashMap<Arc<str>, Vec<IpAddr>>>>,
    tasks: HashMap<Arc<str>, (Lookup, JoinHandle<()>)>,
    /// Told whenever a name's addresses have changed.
    changed: Arc<tokio::sync::Notify>,
}

impl Dns {
    /// Uses the system's resolver configuration. `changed` is notified of new addresses.
    pub fn new(changed: Arc<tokio::sync::Notify>) -> Dns {
        let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        let resolver = match resolver {
            Ok(resolver) => Some(resolver),
            Err(error) => {
                tracing::warn!(%error, "no DNS configuration; DNS clusters stay empty");
                None
            }
        };
        Dns { resolver, found: Arc::default(), tasks: HashMap::new(), changed }
    }

    /// Resolves exactly the names of these clusters from now on. Call it on the control runtime.
    pub fn follow<'c>(
        &mut self,
        clusters: impl Iterator<Item = &'c Arc<Cluster>>,
        unresolved: impl Fn(&str) -> Option<Arc<EndpointSet>>,
    ) {
        let mut wanted: HashMap<Arc<str>, Lookup> = HashMap::new();
        for cluster in clusters {
            let ClusterKind::Dns(dns) = &cluster.config.kind else { continue };
            let Some(names) = unresolved(&cluster.name) else { continue };
            for name in names.names() {
                let lookup = Lookup { family: dns.family, refresh: dns.refresh.max(REFRESH_MIN) };
                if wanted.len() < NAMES_MAX {
                    wanted.entry(name).or_insert(lookup);
                }
            }
        }
        self.tasks.retain(|name, (lookup, task)| {
            let keep = wanted.get(name) == Some(lookup);
            if !keep {
                task.abort();
            }
            keep
        });
        self.lock().retain(|name, _| wanted.contains_key(name));
        let Some(resolver) = &self.resolver else { return };
        for (name, lookup) in wanted {
            if self.tasks.contains_key(&name) {
                continue;
            }
            let (found, changed) = (self.found.clone(), self.changed.clone());
            let task =
                keep_resolving(resolver.clone(), name.clone(), lookup.clone(), found, changed);
            self.tasks.insert(name, (lookup, tokio::spawn(task)));
        }
    }

    /// Addresses found so far.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        self.lock().get(name).cloned().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Vec<IpAddr>>> {
        self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        for (_, task) in self.tasks.values() {
            task.abort();
        }
    }
}

async fn keep_resolving(
    resolver: TokioResolver,
    name: Arc<str>,
    lookup: Lookup,
    found: Arc<Mutex<HashMap<Arc<str>, Vec<IpAddr>>>>,
    changed: Arc<tokio::sync::Notify>,
) {
    loop {
        match resolver.lookup_ip(&*name).await {
            Ok(answer) => {
                let addresses = of_family(answer.iter().collect(), lookup.family);
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if found.get(&name) != Some(&addresses) {
                    tracing::debug!(%name, ?addresses, "name resolved");
                    found.insert(name.clone(), addresses);
                    changed.notify_one();
                }
            }
            Err(error) => tracing::debug!(%name, %error, "name not resolved; addresses stay"),
        }
        tokio::time::sleep(lookup.refresh).await;
    }
}

/// Envoy's `dns_lookup_family`; sorted, so that an answer in another order is no change.
pub(super) fn of_family(mut addresses: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    addresses.sort();
    addresses.dedup();
    let keep = |v4: bool| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect()
    };
    let first_of = |preferred: bool| match keep(preferred) {
        found if found.is_empty() => keep(!preferred),
        found => found,
    };
    match family {
        DnsFamily::V4Only => keep(true),
        DnsFamily::V6Only => keep(false),
        DnsFamily::V4Preferred => first_of(true),
        // Envoy's AUTO prefers IPv6.
        DnsFamily::Auto => first_of(false),
        DnsFamily::All => addresses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(of_family(vec![v6, v4, v4], DnsFamily::All), [v4, v6]);
        assert_eq!(of_family(vec![v6, v4], DnsFamily::V4Only), [v4]);
        assert_eq!(of_family(vec![v6, v4], DnsFamily::Auto), [v6]);
        assert_eq!(of_family(vec![v4], DnsFamily::Auto), [v4]);
        assert_eq!(of_family(vec![v6], DnsFamily::V4Preferred), [v6]);
    }
}
