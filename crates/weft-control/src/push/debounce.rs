//! Follows the world: endpoints at once, configuration after a quiet time.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;
use weft_model::{Resolution, Severity, Touched};
use weft_translate::ProxyView;

use super::published::Published;
use super::{Options, Pusher};
use crate::world::{State, Update, World};

/// A configuration change that waits for others to join it.
struct Waiting {
    first: Instant,
    last: Instant,
    touched: Touched,
    /// Something that any proxy's configuration may depend on changed.
    everyone: bool,
}

pub(super) async fn follow(pusher: Arc<Pusher>, world: World) {
    tokio::select! {
        () = world.synced() => {}
        () = pusher.shutdown.cancelled() => return,
    }
    let (mut state, mut updates) = world.subscribe();
    pusher.endpoints.reset(state.snapshot.clone());
    pusher.publish(Published::new(Arc::clone(&state)), Instant::now(), |_| true);
    let mut errors = HashSet::new();
    pusher.note_errors(&state, &mut errors);
    pusher.ready.send_replace(true);
    let mut waiting: Option<Waiting> = None;
    loop {
        let due = waiting.as_ref().map(|waiting| waiting.due(&pusher.options));
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
                    pusher.push_config(&state, &waiting);
                }
            }
            () = pusher.shutdown.cancelled() => return,
        }
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
    fn join(slot: &mut Option<Self>, now: Instant, touched: Touched, everyone: bool) {
        let waiting = slot.get_or_insert_with(|| Self {
            first: now,
            last: now,
            touched: Touched::default(),
            everyone: false,
        });
        waiting.last = now;
        waiting.everyone |= everyone;
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
        // Endpoints of services that are not sent as EDS are inside their clusters.
        let is_eds = |host: &&Arc<str>| {
            let eds = |state: &State| {
                let service = state.snapshot.service(host);
                service.is_none_or(|service| service.resolution == Resolution::Static)
            };
            eds(before) && eds(&state)
        };
        let hosts: BTreeSet<Arc<str>> =
            touched.endpoints_only.iter().filter(is_eds).cloned().collect();
        let everyone = !touched.only_endpoints() || hosts.len() < touched.endpoints_only.len();
        match everyone {
            true => self.endpoints.reset(state.snapshot.clone()),
            false => self.endpoints.advance(state.snapshot.clone(), &hosts),
        }
        if !hosts.is_empty() {
            self.metrics.trigger_endpoint.inc();
            self.registry.endpoints_changed(&hosts, now.into_std());
        }
        if everyone || !touched.workloads.is_empty() {
            Waiting::join(waiting, now, touched, everyone);
        }
    }

    fn push_config(&self, state: &Arc<State>, waiting: &Waiting) {
        let Waiting { first, touched, everyone, .. } = waiting;
        self.metrics.debounce.observe(first.elapsed().as_secs_f64());
        if *everyone {
            self.metrics.trigger_config.inc();
            let live = self.registry.proxies();
            let views = live.iter().map(|proxy| &proxy.view);
            let published = self.registry.published().next(Arc::clone(state), true, views);
            self.publish(published, *first, |_| true);
            return;
        }
        let old = self.registry.published();
        let concerned = concerned(touched, &old.state, state);
        let live = self.registry.proxies();
        let published = old.next(Arc::clone(state), false, live.iter().map(|proxy| &proxy.view));
        self.metrics.trigger_proxy.inc();
        self.publish(published, *first, concerned);
    }

    fn publish(
        &self,
        published: Published,
        changed: Instant,
        touched: impl Fn(&ProxyView) -> bool,
    ) {
        let begun = Instant::now();
        let services = published.state.snapshot.services().count();
        self.metrics.services.set(i64::try_from(services).unwrap_or(i64::MAX));
        self.registry.publish(&Arc::new(published), changed.into_std(), touched);
        self.metrics.context_init.observe(begun.elapsed().as_secs_f64());
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

/// Which proxies stand beside one of the touched workloads, by name or by an address it has
/// or had.
fn concerned(touched: &Touched, before: &State, now: &State) -> impl Fn(&ProxyView) -> bool {
    let names = touched.workloads.clone();
    let mut ips: HashSet<IpAddr> = HashSet::new();
    for (namespace, name) in &names {
        for state in [before, now] {
            if let Some(workload) = state.snapshot.workload_by_name(namespace, name) {
                ips.extend(workload.ips.iter().copied());
            }
        }
    }
    move |view: &ProxyView| {
        names.contains(&(Arc::clone(&view.namespace), Arc::clone(&view.name)))
            || view.addresses.iter().any(|ip| ips.contains(ip))
    }
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
            Waiting::join(&mut waiting, begun + MS * 50 * i, Touched::default(), i == 3);
        }
        let due = waiting.as_ref().map(|waiting| waiting.due(&options));
        assert_eq!(due, Some(begun + MS * (99 * 50 + 100)), "100 ms after the last");
        for i in 100..400 {
            Waiting::join(&mut waiting, begun + MS * 50 * i, Touched::default(), false);
        }
        let waiting = waiting.unwrap();
        assert_eq!(waiting.due(&options), begun + Duration::from_secs(10), "10 s after the first");
        assert!(waiting.everyone, "what one change needs, all of them need");
    }
}
