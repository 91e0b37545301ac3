//! Maglev hashing (Eisenbud et al., NSDI 2016), with weights as Envoy does them.

use xxhash_rust::xxh64::xxh64;

use crate::cluster::{Endpoint, EndpointSet, LbConfig};

/// Slots to host indexes.
#[derive(Debug)]
pub(super) struct Maglev {
    table: Vec<u32>,
}

/// A host that still claims slots.
struct Claim {
    index: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    /// Position in the host's permutation.
    next: u64,
}

const FREE: u32 = u32::MAX;

impl Maglev {
    /// `size` is prime (lowering checks it), so every permutation reaches every slot.
    pub(super) fn build(lb: &LbConfig, set: &EndpointSet, list: &[usize], size: u64) -> Maglev {
        let mut keys: Vec<(String, usize)> =
            list.iter().map(|&index| (hash_key(lb, &set.endpoints[index]), index)).collect();
        // The table does not depend on the order of the endpoints.
        keys.sort();
        let total = total_weight(set, list);
        let mut claims: Vec<Claim> = keys
            .into_iter()
            .map(|(key, index)| {
                let endpoint = &set.endpoints[index];
                Claim {
                    index: index as u32,
                    offset: xxh64(key.as_bytes(), 0) % size,
                    skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                    // Of 1, as in Envoy: rounding decides ties, so it has to be the same.
                    weight: f64::from(endpoint.weight.max(1)) / total,
                    target: 0.0,
                    next: 0,
                }
            })
            .collect();
        let heaviest = claims.iter().map(|claim| claim.weight).fold(0.0, f64::max);
        let mut table = vec![FREE; size as usize];
        let mut taken = 0;
        let mut round = 1.0;
        while taken < size && !claims.is_empty() {
            for claim in &mut claims {
                if taken == size {
                    break;
                }
                // Lighter hosts sit out rounds until their weight has added up.
                if round * claim.weight < claim.target {
                    continue;
                }
                claim.target += heaviest;
                let slot = claim.take_free(&mut table, size);
                table[slot] = claim.index;
                taken += 1;
            }
            round += 1.0;
        }
        Maglev { table }
    }

    /// A further attempt hashes to another slot.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = match attempt {
            0 => hash,
            // As Envoy: flips high bits so that the slot is unrelated.
            attempt => hash ^ !(u64::from(attempt) - 1),
        };
        let slot = hash % self.table.len().max(1) as u64;
        self.table.get(slot as usize).filter(|index| **index != FREE).map(|index| *index as usize)
    }
}

impl Claim {
    fn take_free(&mut self, table: &mut [u32], size: u64) -> usize {
        loop {
            let slot = (self.offset + self.skip * self.next) % size;
            self.next += 1;
            if table[slot as usize] == FREE {
                return slot as usize;
            }
        }
    }
}

/// Sum of the weights of the listed endpoints.
pub(super) fn total_weight(set: &EndpointSet, list: &[usize]) -> f64 {
    list.iter().map(|&index| u64::from(set.endpoints[index].weight.max(1))).sum::<u64>() as f64
}

/// What is hashed for a host: its address, or its name if the cluster says so.
pub(super) fn hash_key(lb: &LbConfig, endpoint: &Endpoint) -> String {
    match lb.hash_by_hostname && !endpoint.hostname.is_empty() {
        true => endpoint.hostname.to_string(),
        false => endpoint.address.to_string(),
    }
}
