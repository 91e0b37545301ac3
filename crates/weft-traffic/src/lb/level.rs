//! Priorities, panic and localities: which group of hosts a pick draws from.
//!
//! Everything that depends only on health is computed when the set or an ejection changes, following
//! Envoy's priority load calculation; a pick then costs one draw for each choice.

use std::rc::Rc;
use std::time::Instant;

use super::picker::Picker;
use super::{Host, LbPolicy};
use crate::cluster::{EndpointSet, Health, LbConfig};

/// All priorities of a cluster.
#[derive(Debug, Default)]
pub(super) struct Levels {
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    /// Of 100.
    load: u32,
    groups: Vec<Group>,
    /// Sum of group weights.
    weight: f64,
}

/// Hosts drawn from together: a locality, or the whole priority.
#[derive(Debug)]
struct Group {
    weight: f64,
    picker: Picker,
}

/// Hosts of one priority while the levels are built.
#[derive(Debug, Default)]
struct Members {
    all: Vec<usize>,
    healthy: Vec<usize>,
    degraded: Vec<usize>,
}

/// What levels are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct World<'w> {
    pub(super) lb: &'w LbConfig,
    pub(super) set: &'w EndpointSet,
    /// Parallel to the set's endpoints.
    pub(super) hosts: &'w [Rc<Host>],
    pub(super) now: Instant,
    pub(super) seed: u64,
}

/// One draw of a pick.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) hash: Option<u64>,
    /// How many draws there were before.
    pub(super) attempt: u32,
    pub(super) now: Instant,
}

impl Levels {
    /// Hosts in priorities of `without` are only used when nothing else is there.
    pub(super) fn build(world: &World<'_>, without: &[u32]) -> Levels {
        let World { lb, set, hosts, .. } = *world;
        let all = by_priority(set, hosts);
        let is_left = |(priority, _): &(u32, Members)| !without.contains(priority);
        let serves =
            |(_, level): &(u32, Members)| !level.healthy.is_empty() || !level.degraded.is_empty();
        let left_out = all.iter().filter(|level| is_left(level)).any(serves);
        let kept = all.into_iter().filter(|level| !left_out || is_left(level));
        let members: Vec<Members> = kept.map(|(_, members)| members).collect();
        let loads = loads(&members, set.overprovisioning, lb.panic_threshold);
        let mut levels = Vec::new();
        for (members, load) in members.iter().zip(loads) {
            if load.share == 0 {
                continue;
            }
            let chosen = match load.from {
                From::All => &members.all,
                From::Healthy => &members.healthy,
                From::Degraded => &members.degraded,
            };
            if !chosen.is_empty() {
                levels.push(Level::build(world, members, chosen, load.share));
            }
        }
        Levels { levels }
    }

    pub(super) fn pick(
        &mut self,
        draw: &Draw,
        rng: &mut impl FnMut() -> u64,
        hosts: &[Rc<Host>],
    ) -> Option<usize> {
        let level = match self.levels.len() {
            0 => return None,
            1 => &mut self.levels[0],
            _ => {
                // With a hash the priority follows it, so that a key stays on its host.
                let number = draw.hash.unwrap_or_else(&mut *rng);
                let total: u32 = self.levels.iter().map(|level| level.load).sum();
                let mut left = (number % u64::from(total.max(1))) as u32;
                let at = self.levels.iter().position(|level| {
                    let here = left < level.load;
                    left = left.saturating_sub(level.load);
                    here
                })?;
                &mut self.levels[at]
            }
        };
        level.pick(draw, rng, hosts)
    }
}

impl Level {
    fn build(world: &World<'_>, members: &Members, chosen: &[usize], load: u32) -> Level {
        let lb = world.lb;
        let hashes = matches!(lb.policy, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
        let groups = match lb.locality_weighted && !hashes {
            true => locality_groups(world, members, chosen),
            false => Vec::new(),
        };
        // Without usable locality weights the whole priority is one group.
        let groups = match groups.is_empty() {
            true => vec![Group { weight: 1.0, picker: Picker::build(world, chosen) }],
            false => groups,
        };
        let weight = groups.iter().map(|group| group.weight).sum();
        Level { load, groups, weight }
    }

    fn pick(
        &mut self,
        draw: &Draw,
        rng: &mut impl FnMut() -> u64,
        hosts: &[Rc<Host>],
    ) -> Option<usize> {
        let last = self.groups.len().checked_sub(1)?;
        let at = match last {
            0 => 0,
            last => {
                let mut left = unit(rng()) * self.weight;
                let found = self.groups.iter().position(|group| {
                    left -= group.weight;
                    left < 0.0
                });
                found.unwrap_or(last)
            }
        };
        self.groups[at].picker.pick(draw, rng, hosts)
    }
}

/// A draw in 0..1.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// A locality takes its weight in proportion to how much of it is usable, with overprovisioning.
fn locality_groups(world: &World<'_>, members: &Members, chosen: &[usize]) -> Vec<Group> {
    let set = world.set;
    let locality = |index: usize| &set.endpoints[index].locality;
    let mut localities: Vec<usize> = Vec::new();
    for &index in chosen {
        if !localities.iter().any(|&seen| locality(seen) == locality(index)) {
            localities.push(index);
        }
    }
    let mut groups = Vec::new();
    for first in localities {
        let here = |index: &usize| locality(*index) == locality(first);
        let usable: Vec<usize> = chosen.iter().copied().filter(here).collect();
        let all = members.all.iter().filter(|&index| here(index)).count();
        let share = usable.len() as f64 / all.max(1) as f64;
        let available = (share * f64::from(set.overprovisioning) / 100.0).min(1.0);
        let weight = f64::from(locality(first).weight) * available;
        if weight > 0.0 {
            groups.push(Group { weight, picker: Picker::build(world, &usable) });
        }
    }
    groups
}

fn by_priority(set: &EndpointSet, hosts: &[Rc<Host>]) -> Vec<(u32, Members)> {
    let mut priorities: Vec<u32> = set.endpoints.iter().map(|endpoint| endpoint.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut levels: Vec<(u32, Members)> =
        priorities.iter().map(|priority| (*priority, Members::default())).collect();
    for (index, endpoint) in set.endpoints.iter().enumerate() {
        let Ok(at) = priorities.binary_search(&endpoint.priority) else { continue };
        let (_, members) = &mut levels[at];
        members.all.push(index);
        match endpoint.health {
            _ if hosts[index].is_ejected() => {}
            Health::Healthy => members.healthy.push(index),
            Health::Degraded => members.degraded.push(index),
            Health::Unhealthy | Health::Draining => {}
        }
    }
    levels
}

#[derive(Debug, Clone, Copy)]
struct Load {
    share: u32,
    from: From,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    Healthy,
    Degraded,
    /// Panic: health is ignored.
    All,
}

/// Envoy's priority loads. Health of a priority is its usable share × overprovisioning, at most 100;
/// priorities take traffic in order until 100 is reached. When all together do not reach 100, those
/// below the panic threshold use all their hosts.
///
/// Degraded hosts only take what healthy ones leave, and here only when a priority has no healthy host
/// at all; Envoy can split one priority between both.
fn loads(members: &[Members], overprovisioning: u32, panic_threshold: f64) -> Vec<Load> {
    let health: Vec<u32> = members
        .iter()
        .map(|level| {
            let usable = if level.healthy.is_empty() { &level.degraded } else { &level.healthy };
            let part = usable.len() as u64 * u64::from(overprovisioning);
            (part / level.all.len().max(1) as u64).min(100) as u32
        })
        .collect();
    let total = health.iter().sum::<u32>().min(100);
    let panics: Vec<bool> = members
        .iter()
        .map(|level| {
            let usable = level.healthy.len() + level.degraded.len();
            let percent = 100.0 * usable as f64 / level.all.len().max(1) as f64;
            total < 100 && percent < panic_threshold
        })
        .collect();
    if panics.iter().all(|panic| *panic) {
        return all_panic(members);
    }
    let mut left = 100;
    let mut loads = Vec::with_capacity(members.len());
    for ((level, health), panic) in members.iter().zip(&health).zip(&panics) {
        let share = (health * 100).checked_div(total).unwrap_or(0).min(left);
        left -= share;
        let from = match (panic, level.healthy.is_empty()) {
            (true, _) => From::All,
            (false, false) => From::Healthy,
            (false, true) => From::Degraded,
        };
        loads.push(Load { share, from });
    }
    // Rounding leaves a few points; they go to the first priority that takes anything.
    if let Some(load) = loads.iter_mut().find(|load| load.share > 0) {
        load.share += left;
    }
    loads
}

/// Every priority is in panic: traffic follows host counts.
fn all_panic(members: &[Members]) -> Vec<Load> {
    let total: usize = members.iter().map(|level| level.all.len()).sum();
    let share = |level: &Members| (level.all.len() * 100 / total.max(1)).max(1) as u32;
    members.iter().map(|level| Load { share: share(level), from: From::All }).collect()
}
