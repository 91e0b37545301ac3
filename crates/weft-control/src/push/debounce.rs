//! Follows the world: endpoints at once, configuration after a quiet time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_model::{
    Kind, MeshService, Protocol, Resolution, ResourceKey, ServicePort, Severity, Snapshot, Touched,
};
use weft_translate::{ProxyKind, ProxyView};

use super::assignments::Changed;
use super::published::Published;
use super::registry::{Proxy, Touch};
use super::{Options, Pusher};
use crate::world::{State, Update, World};

/// A configuration change that waits for others to join it.
struct Waiting {
    first: Instant,
    last: Instant,
    touched: Touched,
    /// Something that any proxy's configuration may depend on changed.
    everyone: bool,
    /// Addresses of names changed.
    names: bool,
}

/// A configuration that is ready to go out.
struct Prepared {
    published: Published,
    /// By the proxies' numbers.
    touched: HashMap<u64, Touch>,
    /// When the oldest of its changes happened.
    changed: Instant,
}

pub(super) async fn follow(pusher: Arc<Pusher>, world: World) {
    tokio::select! {
        () = world.synced() => {}
        () = pusher.shutdown.cancelled() => return,
    }
    let (mut state, mut updates) = world.subscribe();
    pusher.endpoints.reset(state.snapshot.clone());
    pusher.publish(Prepared {
        published: Published::new(Arc::clone(&state)),
        touched: HashMap::new(),
        changed: Instant::now(),
    });
    let mut errors = HashSet::new();
    pusher.note_errors(&state, &mut errors);
    pusher.ready.send_replace(true);
    let mut waiting: Option<Waiting> = None;
    // One at a time; what changes meanwhile waits. Endpoints do not.
    let mut preparing: Option<JoinHandle<Prepared>> = None;
    loop {
        let due = match &preparing {
            Some(_) => None,
            None => waiting.as_ref().map(|waiting| waiting.due(&pusher.options)),
        };
        tokio::select! {
            update = updates.next() => {
                // Without a writer there will be no change; proxies are still served.
                let Some(update) = update else { return pusher.shutdown.cancelled().await };
                let before = std::mem::replace(&mut state, Arc::clone(&update.state));
                pusher.note_errors(&state, &mut errors);
                pusher.take(&before, update, &mut waiting);
            }
            () = sleep_until(due), if due.is_some() => {
                if let Some(waiting) = waiting.take() {
                    let (pusher, state) = (Arc::clone(&pusher), Arc::clone(&state));
                    let prepare = move || pusher.prepare(state, &waiting);
                    preparing = Some(tokio::task::spawn_blocking(prepare));
                }
            }
            prepared = finished(&mut preparing), if preparing.is_some() => {
                preparing = None;
                pusher.publish(prepared);
            }
            () = pusher.shutdown.cancelled() => return,
        }
    }
}

/// Cancel-safe.
async fn finished(preparing: &mut Option<JoinHandle<Prepared>>) -> Prepared {
    match preparing {
        Some(task) => match task.await {
            Ok(prepared) => prepared,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away.
                Err(_) => std::future::pending().await,
            },
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Waiting {
    /// Lets a change wait, with those that already do.
    fn join(
        slot: &mut Option<Self>,
        now: Instant,
        touched: Touched,
        (everyone, names): (bool, bool),
    ) {
        let waiting = slot.get_or_insert_with(|| Self {
            first: now,
            last: now,
            touched: Touched::default(),
            everyone: false,
            names: false,
        });
        waiting.last = now;
        waiting.everyone |= everyone;
        waiting.names |= names;
        waiting.touched.merge(touched);
    }

    fn due(&self, options: &Options) -> Instant {
        (self.last + options.quiet).min(self.first + options.patience)
    }
}

impl Pusher {
    fn take(&self, before: &State, update: Update, waiting: &mut Option<Waiting>) {
        let now = Instant::now();
        let Update { state, touched } = update;
        let of = |host: &str, wanted: fn(&MeshService) -> bool| {
            let services = [before, &state].map(|state| state.snapshot.service(host));
            services.into_iter().flatten().any(|service| wanted(service))
        };
        // Endpoints of services that are not sent as EDS are inside their clusters.
        let is_eds =
            |host: &&Arc<str>| !of(host, |service| service.resolution != Resolution::Static);
        let hosts: BTreeSet<Arc<str>> =
            touched.endpoints_only.iter().filter(is_eds).cloned().collect();
        let everyone = !touched.only_endpoints()
            || hosts.len() < touched.endpoints_only.len()
            || hosts.iter().any(|host| of(host, has_endpoint_listeners));
        let clusters = self.endpoints.advance(state.snapshot.clone(), &hosts);
        if everyone {
            self.endpoints.reset(state.snapshot.clone());
        }
        if !hosts.is_empty() {
            self.metrics.trigger_endpoint.inc();
            self.registry.endpoints_changed(&clusters, now.into_std());
        }
        // The names of headless services lead to their endpoints.
        let names = everyone || hosts.iter().any(|host| of(host, |service| service.headless));
        if names || !touched.workloads.is_empty() {
            Waiting::join(waiting, now, touched, (everyone, names));
        }
    }

    /// Makes all that connected proxies will ask for, and finds out whom it concerns.
    fn prepare(&self, state: Arc<State>, waiting: &Waiting) -> Prepared {
        let Waiting { first, touched, everyone, names, .. } = waiting;
        self.metrics.debounce.observe(first.elapsed().as_secs_f64());
        match everyone {
            true => self.metrics.trigger_config.inc(),
            false => self.metrics.trigger_proxy.inc(),
        }
        let begun = Instant::now();
        let old = self.registry.published();
        let live = self.registry.live();
        let views = || live.iter().map(|(_, proxy)| &proxy.view);
        let published = old.next(state, (*everyone, *names), views());
        let (before, now) = (&old.state.snapshot, &published.state.snapshot);
        let places: HashSet<ProxyView> = views().map(|view| view.shared(now)).collect();
        published.prepare(&places, &views().collect::<Vec<_>>());
        self.endpoints.retain(&places);
        let endpoints: HashMap<ProxyView, Changed> = match everyone {
            true => places
                .into_iter()
                .map(|view| (view.clone(), self.endpoints.changed(&view)))
                .collect(),
            // Who uses the services was told already.
            false => HashMap::new(),
        };
        let is_secret = |key: &ResourceKey| key.kind == Kind::Secret;
        let secrets = touched.config.iter().any(is_secret);
        let accounts = accounts(touched, [before, now]);
        let touch = |proxy: &Proxy| {
            let place = proxy.view.shared(now);
            let changed = endpoints.get(&place);
            let config = old.differs(&published, &proxy.view);
            let own_secrets = proxy.identity.as_ref().is_some_and(|identity| {
                accounts.contains(&(identity.namespace(), identity.service_account()))
            });
            Touch {
                config,
                secrets: config || own_secrets || (secrets && proxy.view.kind != ProxyKind::Grpc),
                all_endpoints: changed == Some(&Changed::All) || proxy.view.shared(before) != place,
                endpoints: match changed {
                    Some(Changed::Clusters(clusters)) => proxy.used(clusters),
                    Some(Changed::All) | None => BTreeSet::new(),
                },
                names: *names,
            }
        };
        let touched = live.iter().map(|(id, proxy)| (*id, touch(proxy))).collect();
        self.metrics.context_init.observe(begun.elapsed().as_secs_f64());
        Prepared { published, touched, changed: *first }
    }

    fn publish(&self, prepared: Prepared) {
        let Prepared { published, mut touched, changed } = prepared;
        let services = published.state.snapshot.services().count();
        self.metrics.services.set(i64::try_from(services).unwrap_or(i64::MAX));
        self.registry.publish(&Arc::new(published), changed.into_std(), &mut touched);
    }

    /// Counts errors in resources when they are first seen.
    fn note_errors(&self, state: &State, seen: &mut HashSet<String>) {
        let errors: HashSet<String> = state
            .all_diagnostics()
            .filter(|found| found.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        let new = errors.difference(seen).count();
        self.metrics.rejected_configs.add(new as u64);
        *seen = errors;
    }
}

/// Listeners at the addresses of its endpoints: a headless service that is not HTTP.
fn has_endpoint_listeners(service: &MeshService) -> bool {
    let is_bytes = |port: &ServicePort| !port.protocol.is_http() && port.protocol != Protocol::Auto;
    service.headless && service.ports.iter().any(is_bytes)
}

/// Namespace and service account of the touched workloads, as they were and are.
fn accounts<'a>(touched: &Touched, worlds: [&'a Snapshot; 2]) -> HashSet<(&'a str, &'a str)> {
    let mut accounts = HashSet::new();
    for (namespace, name) in &touched.workloads {
        let workloads = worlds.map(|world| world.workload_by_name(namespace, name));
        for workload in workloads.into_iter().flatten() {
            accounts.insert((&*workload.namespace, &*workload.service_account));
        }
    }
    accounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_change_waits_for_quiet_but_not_for_ever() {
        let options = Options::default();
        let begun = Instant::now();
        let mut waiting = None;
        for i in 0..100 {
            Waiting::join(&mut waiting, begun + MS * 50 * i, Touched::default(), (i == 3, false));
        }
        let due = waiting.as_ref().map(|waiting| waiting.due(&options));
        assert_eq!(due, Some(begun + MS * (99 * 50 + 100)), "100 ms after the last");
        for i in 100..400 {
            Waiting::join(&mut waiting, begun + MS * 50 * i, Touched::default(), (false, false));
        }
        let waiting = waiting.unwrap();
        assert_eq!(waiting.due(&options), begun + Duration::from_secs(10), "10 s after the first");
        assert!(waiting.everyone, "what one change needs, all of them need");
    }
}
