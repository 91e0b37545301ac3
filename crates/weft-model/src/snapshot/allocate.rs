//! Addresses for ServiceEntry hosts that declare none (Istio's automatic allocation): one of
//! 240.240.0.0/16 and one of 2001:2::/48 for each host, so that bytes to different hosts on one
//! port can be told apart once DNS answers with them.
//!
//! A function of the entries alone: every control plane, and the same one after a restart, gives
//! the same answer. A host's address follows from its name; where two want the same one the older
//! entry has it and the younger gets the next free one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{MeshService, Resolution, ServiceKind, Snapshot};

/// Istio's label on a ServiceEntry; `false` keeps it without addresses.
const SWITCH: &str = "networking.istio.io/enable-autoallocate-ip";
/// 240.240.0.1 to 240.240.255.253; `weft why` gives the one after it to names that nobody knows.
const FIRST: u16 = 1;
const LAST: u16 = 0xfffd;

/// By namespace, ServiceEntry and host.
pub(crate) type Allocated = BTreeMap<(Arc<str>, Arc<str>, Arc<str>), [IpAddr; 2]>;

impl Snapshot {
    /// The addresses (IPv4, then IPv6) that are allocated for a service that has none of its own;
    /// nothing for services that do not get any: those of Kubernetes, wildcard hosts, resolution
    /// NONE, and entries labelled `networking.istio.io/enable-autoallocate-ip: "false"`.
    pub fn allocated_addresses(&self, service: &MeshService) -> &[IpAddr] {
        if !is_wanted(service) {
            return &[];
        }
        let allocated = self.inner.allocated.get_or_init(|| Arc::new(all(self)));
        allocated.get(&key(service)).map_or(&[], <[IpAddr; 2]>::as_slice)
    }
}

fn key(service: &MeshService) -> (Arc<str>, Arc<str>, Arc<str>) {
    (service.namespace.clone(), service.name.clone(), service.host.clone())
}

fn is_wanted(service: &MeshService) -> bool {
    let refused =
        service.labels.get(SWITCH).is_some_and(|value| value.eq_ignore_ascii_case("false"));
    service.kind == ServiceKind::ServiceEntry
        && service.addresses.is_empty()
        && service.cidrs.is_empty()
        && service.resolution != Resolution::None
        && !service.host.starts_with('*')
        && !refused
}

fn all(snapshot: &Snapshot) -> Allocated {
    let mut wanted: Vec<&Arc<MeshService>> =
        snapshot.services().filter(|service| is_wanted(service)).collect();
    wanted.sort_by_cached_key(|service| (service.creation.unwrap_or(i64::MAX), key(service)));
    let mut taken = BTreeSet::new();
    let mut allocated = Allocated::new();
    for service in wanted {
        let name = format!("{}/{}/{}", service.namespace, service.name, service.host);
        // Past 65,533 hosts the rest goes without, as it would in Istio.
        let Some(number) = free(&taken, hash(name.as_bytes())) else { break };
        taken.insert(number);
        let [high, low] = number.to_be_bytes();
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number);
        allocated.insert(key(service), [Ipv4Addr::new(240, 240, high, low).into(), v6.into()]);
    }
    allocated
}

/// The first number from `start` on, going round, that nobody has.
fn free(taken: &BTreeSet<u16>, start: u32) -> Option<u16> {
    let span = u32::from(LAST - FIRST) + 1;
    if taken.len() >= span as usize {
        return None;
    }
    let mut number = FIRST + (start % span) as u16;
    while taken.contains(&number) {
        number = if number == LAST { FIRST } else { number + 1 };
    }
    Some(number)
}

/// FNV-1a: short, and the same everywhere for ever.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
