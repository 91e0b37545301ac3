//! Ketama-style ring hash over xxHash64, laid out as Envoy's so that both send a key to the same host.

use xxhash_rust::xxh64::xxh64;

use super::maglev::{hash_key, total_weight};
use crate::cluster::{EndpointSet, LbConfig};

/// Points sorted by hash.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Every host gets points in proportion to its weight; the lightest host decides the scale so that
    /// it has a whole number of them.
    pub(super) fn build(
        lb: &LbConfig,
        set: &EndpointSet,
        list: &[usize],
        min: u64,
        max: u64,
    ) -> Ring {
        let total = total_weight(set, list);
        let share = |index: usize| f64::from(set.endpoints[index].weight.max(1)) / total;
        let lightest = list.iter().map(|&index| share(index)).fold(f64::INFINITY, f64::min);
        let scale = ((lightest * min as f64).ceil() / lightest).min(max as f64);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut made, mut target) = (0.0, 0.0);
        for &index in list {
            let key = hash_key(lb, &set.endpoints[index]);
            target += scale * share(index);
            let mut copy = 0u64;
            while made < target {
                let name = format!("{key}_{copy}");
                points.push((xxh64(name.as_bytes(), 0), index as u32));
                copy += 1;
                made += 1.0;
            }
        }
        points.sort_unstable();
        Ring { points }
    }

    /// The first point at or after the hash; a further attempt moves to the next point.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<usize> {
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let size = self.points.len().max(1);
        let (_, index) = self.points.get((at + attempt as usize) % size)?;
        Some(*index as usize)
    }
}
