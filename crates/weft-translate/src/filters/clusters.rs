//! Patches of clusters.

use prost::Message as _;
use weft_model::spec::{ApplyTo, Operation};
use weft_xds::Resource;
use weft_xds::pb::envoy::config::cluster::v3::Cluster;

use super::Patching;
use super::compile::Compiled;

impl Patching<'_, '_> {
    /// Clusters are bytes already, which most proxies share: only those that change are read.
    pub(super) fn clusters(&mut self, clusters: &mut Vec<Resource>) {
        let patches = self.of(ApplyTo::Cluster);
        if patches.is_empty() {
            return;
        }
        clusters.retain_mut(|resource| {
            let Ok(mut cluster) = Cluster::decode(&resource.body[..]) else { return true };
            let mut changed = false;
            for patch in &patches {
                if !patch.is_of_cluster(&cluster) {
                    continue;
                }
                if patch.operation == Operation::Remove {
                    return false;
                }
                if patch.merges().is_some() {
                    self.merge_cluster(patch, &mut cluster);
                    changed = true;
                }
            }
            if changed {
                *resource = Resource::new(cluster.name.as_str(), &cluster);
            }
            true
        });
        for patch in patches.iter().filter(|patch| patch.operation == Operation::Add) {
            let Some(added) = patch.value::<Cluster>(self.flavor) else { continue };
            match clusters.iter().any(|other| *other.name == *added.name) {
                true => {
                    let message = format!("there is a cluster {:?} already", added.name);
                    self.tell(patch, &message);
                }
                false => clusters.push(Resource::new(added.name.as_str(), &added)),
            }
        }
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// A transport socket of the same kind is merged inside, and then nothing else; one of another
    /// kind takes the place of what is there.
    fn merge_cluster(&mut self, patch: &Compiled, cluster: &mut Cluster) {
        let (Some(lists), Some(value)) = (patch.merges(), patch.patch(self.flavor)) else { return };
        let wanted = value.to::<Cluster>().and_then(|wanted| wanted.transport_socket);
        let Some(wanted) = wanted else { return value.merge_into(cluster, lists) };
        if !cluster.transport_socket_matches.is_empty() {
            let sockets = cluster.transport_socket_matches.iter_mut();
            let same = sockets
                .filter_map(|one| one.transport_socket.as_mut())
                .find(|socket| socket.name == wanted.name);
            return match same {
                Some(there) => self.socket(patch, there, &wanted),
                None => {
                    let name = &wanted.name;
                    self.tell(patch, &format!("no socket {name:?} is among the cluster's matches"));
                }
            };
        }
        match &mut cluster.transport_socket {
            Some(there) if there.name == wanted.name => self.socket(patch, there, &wanted),
            there => *there = Some(wanted),
        }
    }
}
