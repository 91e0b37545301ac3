//! The registry of one process: shards of workers, generic families, the series budget.
//!
//! Locks here are taken when a series is seen for the first time and by scrapes, never per
//! request.

use crate::buckets::Buckets;
use crate::cell::{Cell, ShardCells};
use crate::family::{Counter, Family, Gauge, GaugeFn, Histogram, Kind, Series};
use crate::istio::{FlowLabels, SeriesLabels};
use crate::scrape::Scrape;
use crate::shard::Shard;
use crate::text::{Exposition, labels_text};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How many series one process may hold. Past it, values go to one `other` series, so that
/// totals stay exact and a hostile peer cannot grow memory.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Istio's request and TCP label sets together.
    pub istio_series_max: usize,
    /// Label sets of one generic family.
    pub family_series_max: usize,
    /// Host names in labels that requests brought, not configuration.
    pub hosts_max: usize,
}

impl Default for Budget {
    /// About 350 bytes a series and worker: 4096 keeps a sidecar's share below 2 MB.
    fn default() -> Self {
        Self { istio_series_max: 4096, family_series_max: 1024, hosts_max: 64 }
    }
}

/// Handle to the metrics of one process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    budget: Budget,
    buckets: Arc<Buckets>,
    series: Mutex<Interner>,
    /// Set while the budget is spent, so that shards stop asking.
    full: AtomicBool,
    /// Cells that their workers have given up, of series that others still count in. Locked first,
    /// and for as long as a cell is on its way here or a scrape adds up.
    retired: Mutex<HashMap<u32, Cell>>,
    evictions: AtomicU64,
    shards: Mutex<Vec<Arc<ShardCells>>>,
    families: Mutex<BTreeMap<&'static str, Family>>,
    hosts: Mutex<HashSet<Box<str>>>,
}

/// Longest host name that may be a label's value. Bytes.
const HOST_BYTES_MAX: usize = 253;

/// Dense ids for label sets, shared by all shards.
#[derive(Default)]
pub(crate) struct Interner {
    ids: HashMap<SeriesLabels, u32>,
    /// By id; `None`: the id is free.
    labels: Vec<Option<SeriesLabels>>,
    /// By id: cells that a worker may count in.
    live: Vec<u32>,
    free: Vec<u32>,
    /// Series of the overflow, which need no room in the budget.
    others: usize,
    flows: HashSet<Arc<FlowLabels>>,
}

impl Registry {
    /// A registry with the default budget.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_budget(budget: Budget) -> Self {
        Self::with_budget_and_buckets(budget, Buckets::default())
    }

    /// With other bounds of Istio's histograms than its own.
    pub fn with_budget_and_buckets(budget: Budget, buckets: Buckets) -> Self {
        Self { inner: Arc::new(Inner { budget, buckets: Arc::new(buckets), ..Inner::default() }) }
    }

    /// A worker's own part. Call it on the worker's thread: the shard stays there.
    pub fn shard(&self) -> Shard {
        let cells = Arc::new(ShardCells::default());
        lock(&self.inner.shards).push(cells.clone());
        Shard::new(self.clone(), cells)
    }

    /// The shared counter of this name and label set; the same cell on every call.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        Counter(self.counter_cell(name, help, labels, Ownership::Shared))
    }

    /// The shared gauge of this name and label set.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Gauge {
        Gauge(self.gauge_cell(name, help, labels, Ownership::Shared))
    }

    /// A gauge computed at each scrape. A second call with the same labels replaces it.
    pub fn gauge_fn(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        compute: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let compute: GaugeFn = Arc::new(compute);
        self.with_family(name, help, Kind::Gauge, labels, |series, key| {
            series.insert(key, Series::Computed(compute));
        });
    }

    /// The histogram of this name and label set. `bounds` are ascending upper bounds in the
    /// unit the name says; the bounds of the first call for a label set count.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &[f64],
        labels: &[(&'static str, &str)],
    ) -> Histogram {
        self.with_family(name, help, Kind::Histogram, labels, |series, key| {
            let entry =
                series.entry(key).or_insert_with(|| Series::Histogram(Histogram::new(bounds)));
            match entry {
                Series::Histogram(histogram) => histogram.clone(),
                _ => Histogram::new(bounds),
            }
        })
        .unwrap_or_else(|| Histogram::new(bounds))
    }

    /// Everything in Prometheus text format 0.0.4.
    pub fn render_prometheus(&self, out: &mut Vec<u8>) {
        for chunk in self.scrape() {
            out.extend_from_slice(&chunk);
        }
    }

    /// The same text in pieces of about 64 KiB, so that a large scrape needs little memory.
    pub fn scrape(&self) -> Scrape {
        self.scrape_as(Exposition::Text)
    }

    /// In either form.
    pub fn scrape_as(&self, form: Exposition) -> Scrape {
        let mut generic = Vec::new();
        for (name, family) in lock(&self.inner.families).iter() {
            family.render(name, form, &mut generic);
        }
        // No cell moves and no id changes hands while this is held.
        let retired = lock(&self.inner.retired);
        let shards: Vec<Arc<ShardCells>> = lock(&self.inner.shards).clone();
        let labels = lock(&self.inner.series).labels.clone();
        let mut scrape = Scrape::new(generic, labels, self.inner.buckets.clone(), form);
        shards.iter().for_each(|shard| shard.each(|id, cell| scrape.add(id, cell)));
        retired.iter().for_each(|(id, cell)| scrape.add(*id, cell));
        scrape
    }

    pub(crate) fn buckets(&self) -> &Arc<Buckets> {
        &self.inner.buckets
    }

    /// The id of a label set for one more cell, or `None` when the budget is spent. The overflow is
    /// always admitted.
    pub(crate) fn series_id(&self, labels: &SeriesLabels) -> Option<u32> {
        let mut series = lock(&self.inner.series);
        let Interner { ids, labels: list, live, free, others, .. } = &mut *series;
        let is_other = labels.flow().is_none();
        let admitted = is_other || ids.len() - *others < self.inner.budget.istio_series_max;
        match ids.entry(labels.clone()) {
            Entry::Occupied(entry) => {
                live[*entry.get() as usize] += 1;
                Some(*entry.get())
            }
            Entry::Vacant(entry) if admitted => {
                let id = match free.pop() {
                    Some(id) => id,
                    None => {
                        list.push(None);
                        live.push(0);
                        u32::try_from(list.len() - 1).expect("the budget bounds the list")
                    }
                };
                list[id as usize] = Some(labels.clone());
                live[id as usize] = 1;
                *others += usize::from(is_other);
                Some(*entry.insert(id))
            }
            Entry::Vacant(_) => {
                self.inner.full.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Takes a shard's idle cells from it: what others count in goes on counting them, a series that
    /// nobody counts in is forgotten. Gives the addresses of the cells, and how many series went.
    pub(crate) fn retire_idle(
        &self,
        cells: &ShardCells,
        idle_calls_max: u8,
    ) -> (HashSet<usize>, u64) {
        let mut retired = lock(&self.inner.retired);
        let gone = cells.take_idle(idle_calls_max);
        if gone.is_empty() {
            return (HashSet::new(), 0);
        }
        let addresses = gone.iter().map(|(_, cell)| cell.address()).collect();
        let mut series = lock(&self.inner.series);
        let Interner { ids, labels, live, free, flows, .. } = &mut *series;
        let mut evicted = 0;
        for (id, cell) in gone {
            live[id as usize] -= 1;
            if live[id as usize] > 0 {
                match retired.get(&id) {
                    Some(known) => known.absorb(&cell),
                    None => _ = retired.insert(id, cell),
                }
                continue;
            }
            retired.remove(&id);
            if let Some(labels) = labels[id as usize].take() {
                ids.remove(&labels);
            }
            free.push(id);
            evicted += 1;
        }
        // Nobody else gets at one of these but under this lock.
        flows.retain(|flow| Arc::strong_count(flow) > 1);
        if evicted > 0 {
            self.inner.full.store(false, Ordering::Relaxed);
            self.inner.evictions.fetch_add(evicted, Ordering::Relaxed);
        }
        (addresses, evicted)
    }

    /// Istio's series that were forgotten because nobody counted in them.
    pub fn evictions(&self) -> u64 {
        self.inner.evictions.load(Ordering::Relaxed)
    }

    /// Istio's series at the moment.
    pub fn series(&self) -> usize {
        lock(&self.inner.series).ids.len()
    }

    /// Whether a host name that a request brought may be a label's value. The first ones may, for
    /// good; a scan with random names must not make a series of each.
    pub(crate) fn admits_host(&self, host: &str) -> bool {
        let mut hosts = lock(&self.inner.hosts);
        if hosts.contains(host) {
            return true;
        }
        let room = hosts.len() < self.inner.budget.hosts_max && host.len() <= HOST_BYTES_MAX;
        room && hosts.insert(host.into())
    }

    /// True while there is no room for a further label set.
    pub(crate) fn is_full(&self) -> bool {
        self.inner.full.load(Ordering::Relaxed)
    }

    /// One shared copy of equal flow labels.
    pub(crate) fn flow_labels(&self, labels: FlowLabels) -> Arc<FlowLabels> {
        let mut series = lock(&self.inner.series);
        match series.flows.get(&labels) {
            Some(known) => known.clone(),
            None => {
                let labels = Arc::new(labels);
                // Flows without room for a series of their own are not worth remembering.
                if series.flows.len() < self.inner.budget.istio_series_max {
                    series.flows.insert(labels.clone());
                }
                labels
            }
        }
    }

    pub(crate) fn counter_cell(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        ownership: Ownership,
    ) -> Arc<AtomicU64> {
        self.with_family(name, help, Kind::Counter, labels, |series, key| {
            let entry = series.entry(key).or_insert_with(|| Series::Counter(vec![Arc::default()]));
            match entry {
                Series::Counter(cells) => cell(cells, ownership),
                _ => Arc::default(),
            }
        })
        .unwrap_or_default()
    }

    pub(crate) fn gauge_cell(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        ownership: Ownership,
    ) -> Arc<AtomicI64> {
        self.with_family(name, help, Kind::Gauge, labels, |series, key| {
            let entry = series.entry(key).or_insert_with(|| Series::Gauge(vec![Arc::default()]));
            match entry {
                Series::Gauge(cells) => cell(cells, ownership),
                _ => Arc::default(),
            }
        })
        .unwrap_or_default()
    }

    /// Runs `with` on the family and the key to use. `None` when the name already belongs to
    /// another kind: a bug of the caller, which then counts into the void.
    fn with_family<T>(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&'static str, &str)],
        with: impl FnOnce(&mut BTreeMap<String, Series>, String) -> T,
    ) -> Option<T> {
        let mut families = lock(&self.inner.families);
        let family =
            families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        debug_assert_eq!(family.kind, kind, "metric {name} is registered as two kinds");
        if family.kind != kind {
            return None;
        }
        let mut key = labels_text(labels);
        if family.series.len() >= self.inner.budget.family_series_max
            && !family.series.contains_key(&key)
        {
            let other: Vec<(&str, &str)> =
                labels.iter().map(|(name, _)| (*name, "other")).collect();
            key = labels_text(&other);
        }
        Some(with(&mut family.series, key))
    }
}

/// Whether a cell has one writing thread of its own or is shared by all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    Shared,
    Own,
}

/// The first cell is the shared one.
fn cell<T: Default>(cells: &mut Vec<Arc<T>>, ownership: Ownership) -> Arc<T> {
    match (ownership, cells.first()) {
        (Ownership::Shared, Some(shared)) => shared.clone(),
        _ => {
            let own = Arc::<T>::default();
            cells.push(own.clone());
            own
        }
    }
}

/// Metrics survive a panic elsewhere: the data under these locks is valid at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("budget", &self.inner.budget).finish_non_exhaustive()
    }
}
