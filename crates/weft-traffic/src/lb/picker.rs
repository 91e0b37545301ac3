//! The policies, each over one fixed list of hosts.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Instant;

use super::level::{Draw, World};
use super::maglev::Maglev;
use super::ring::Ring;
use super::{Host, LbPolicy};
use crate::cluster::SlowStart;

/// Ready to pick; lists hold indexes into the endpoint set and are not empty.
#[derive(Debug)]
pub(super) enum Picker {
    RoundRobin {
        list: Vec<usize>,
        next: usize,
    },
    /// Unequal weights: earliest deadline first. `active_bias` is set for least request,
    /// `slow_start` while some of the hosts are new.
    Weighted {
        schedule: Schedule,
        active_bias: Option<f64>,
        slow_start: Option<SlowStart>,
    },
    LeastRequest {
        list: Vec<usize>,
        choices: u32,
        full_scan: bool,
    },
    Random {
        list: Vec<usize>,
    },
    Ring(Ring),
    Maglev(Maglev),
}

impl Picker {
    pub(super) fn build(world: &World<'_>, list: &[usize]) -> Picker {
        let World { lb, set, hosts, now, seed } = *world;
        let is_new = |slow_start: &SlowStart| {
            list.iter().any(|index| hosts[*index].warm_at(slow_start, now).is_some())
        };
        let slow_start = lb.slow_start.filter(is_new);
        let weight = |index: &usize| set.endpoints[*index].weight.max(1);
        let equal = slow_start.is_none()
            && list.iter().map(weight).all(|w| w == list.first().map_or(1, weight));
        let list = list.to_vec();
        let schedule = || {
            let slow = |index: usize| cold(&hosts[index], slow_start.as_ref(), now);
            Schedule::new(list.iter().map(|i| (*i, weight(i))), seed, slow)
        };
        match lb.policy {
            LbPolicy::RoundRobin if equal => {
                let next = seed as usize % list.len().max(1);
                Picker::RoundRobin { list, next }
            }
            LbPolicy::RoundRobin => {
                Picker::Weighted { schedule: schedule(), active_bias: None, slow_start }
            }
            LbPolicy::LeastRequest { choices, full_scan, .. } if equal => {
                Picker::LeastRequest { list, choices, full_scan }
            }
            LbPolicy::LeastRequest { active_bias, .. } => {
                let active_bias = Some(active_bias);
                Picker::Weighted { schedule: schedule(), active_bias, slow_start }
            }
            LbPolicy::Random | LbPolicy::ClusterProvided => Picker::Random { list },
            LbPolicy::RingHash { ring_min, ring_max } => {
                Picker::Ring(Ring::build(lb, set, &list, ring_min, ring_max))
            }
            LbPolicy::Maglev { table_size } => {
                Picker::Maglev(Maglev::build(lb, set, &list, table_size))
            }
        }
    }

    pub(super) fn pick(
        &mut self,
        draw: &Draw,
        rng: &mut impl FnMut() -> u64,
        hosts: &[Rc<Host>],
    ) -> Option<usize> {
        let Draw { hash, attempt, now } = *draw;
        match self {
            Picker::RoundRobin { list, next } => {
                let index = *list.get(*next % list.len().max(1))?;
                *next = (*next + 1) % list.len();
                Some(index)
            }
            Picker::Weighted { schedule, active_bias, slow_start } => {
                let load = |index: usize| match *active_bias {
                    Some(bias) => (f64::from(hosts[index].active()) + 1.0).powf(bias),
                    None => 1.0,
                };
                let slow = |index: usize| cold(&hosts[index], slow_start.as_ref(), now);
                schedule.pick(|index| load(index) * slow(index))
            }
            Picker::LeastRequest { list, choices, full_scan } => match full_scan {
                true => least_of_all(list, rng(), hosts),
                false => least_of_drawn(list, *choices, rng, hosts),
            },
            Picker::Random { list } => drawn(list, rng()),
            Picker::Ring(ring) => ring.pick(hash.unwrap_or_else(rng), attempt),
            Picker::Maglev(table) => table.pick(hash.unwrap_or_else(rng), attempt),
        }
    }
}

/// How much longer than others a host that is new waits for its turn.
fn cold(host: &Host, slow_start: Option<&SlowStart>, now: Instant) -> f64 {
    slow_start.map_or(1.0, |slow_start| 1.0 / host.warmth(slow_start, now).max(WARMTH_MIN))
}

/// Nobody waits for ever, whatever the least weight that is configured.
const WARMTH_MIN: f64 = 1e-6;

fn drawn(list: &[usize], random: u64) -> Option<usize> {
    list.get((random % list.len().max(1) as u64) as usize).copied()
}

/// Power of `choices` choices, drawn with replacement as Envoy does.
fn least_of_drawn(
    list: &[usize],
    choices: u32,
    rng: &mut impl FnMut() -> u64,
    hosts: &[Rc<Host>],
) -> Option<usize> {
    let mut best = drawn(list, rng())?;
    for _ in 1..choices {
        let other = drawn(list, rng())?;
        if hosts[other].active() < hosts[best].active() {
            best = other;
        }
    }
    Some(best)
}

/// The least loaded of all; starts anywhere so that ties spread.
fn least_of_all(list: &[usize], random: u64, hosts: &[Rc<Host>]) -> Option<usize> {
    let start = (random % list.len().max(1) as u64) as usize;
    let (tail, head) = list.split_at_checked(start)?;
    head.iter().chain(tail).min_by_key(|index| hosts[**index].active()).copied()
}

/// Earliest deadline first: a host's deadlines are `max weight ÷ its weight` apart, so every step is at
/// least 1 and the clock stays exact for long; it is set back before it loses precision.
#[derive(Debug)]
pub(super) struct Schedule {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    /// Ties go to who waited longest.
    order: u64,
    index: usize,
    step: f64,
}

/// Clock value at which deadlines are set back: far below where adding 1 is lost.
const CLOCK_MAX: f64 = 1e12;

impl Schedule {
    /// `slow` stretches a host's steps.
    fn new(
        hosts: impl Iterator<Item = (usize, u32)> + Clone,
        seed: u64,
        slow: impl Fn(usize) -> f64,
    ) -> Schedule {
        let top = hosts.clone().map(|(_, weight)| weight).max().unwrap_or(1);
        let mut schedule = Schedule { heap: BinaryHeap::new(), now: 0.0, order: 0 };
        for (index, weight) in hosts {
            let step = f64::from(top) / f64::from(weight);
            schedule.push(Entry { deadline: step * slow(index), order: 0, index, step });
        }
        // Start somewhere in the rotation, so that workers and restarts do not all favour the heavy.
        for _ in 0..seed % (schedule.heap.len().max(1) as u64) {
            schedule.pick(&slow);
        }
        schedule
    }

    fn push(&mut self, mut entry: Entry) {
        self.order += 1;
        entry.order = self.order;
        self.heap.push(entry);
    }

    /// `slow` stretches the chosen host's next step.
    fn pick(&mut self, slow: impl Fn(usize) -> f64) -> Option<usize> {
        let mut entry = self.heap.pop()?;
        self.now = entry.deadline;
        let index = entry.index;
        entry.deadline = self.now + entry.step * slow(index);
        self.push(entry);
        if self.now > CLOCK_MAX {
            let back = self.now;
            self.heap =
                self.heap.drain().map(|e| Entry { deadline: e.deadline - back, ..e }).collect();
            self.now = 0.0;
        }
        Some(index)
    }
}

impl Ord for Entry {
    /// Reversed: the heap's greatest is the earliest.
    fn cmp(&self, other: &Entry) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
