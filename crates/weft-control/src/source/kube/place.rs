//! Which cluster objects come from, and what that makes of their names and labels: those of other
//! clusters than the mesh's own are `NAME@CLUSTER`, and every Pod says where it is.

use std::sync::{Arc, OnceLock};

use weft_model::{DEFAULT_CLUSTER, Diagnostic, Labels, Object, in_cluster};

pub(super) const NETWORK: &str = "topology.istio.io/network";
const CLUSTER: &str = "topology.istio.io/cluster";

/// One cluster of the mesh.
pub(super) struct Place {
    pub(super) cluster: Arc<str>,
    /// It is another one than that of the mesh's own configuration.
    pub(super) remote: bool,
    /// Of Pods that do not say it; known before the first of them is read.
    pub(super) network: OnceLock<String>,
}

impl Place {
    pub(super) fn new(cluster: Arc<str>, remote: bool) -> Self {
        Place { cluster, remote, network: OnceLock::new() }
    }

    /// Puts the place into what was read of one object.
    pub(super) fn mark(&self, objects: &mut [Object], findings: &mut [Diagnostic]) {
        let elsewhere = |name: &Arc<str>| -> Arc<str> {
            match self.remote {
                true => Arc::from(in_cluster(name, &self.cluster)),
                false => name.clone(),
            }
        };
        for object in objects {
            match object {
                Object::Service(one) => one.meta.name = elsewhere(&one.meta.name),
                Object::EndpointSlice(one) => one.meta.name = elsewhere(&one.meta.name),
                Object::Node(one) => one.meta.name = elsewhere(&one.meta.name),
                Object::Pod(one) => {
                    one.meta.name = elsewhere(&one.meta.name);
                    let node = Arc::from(one.spec.spec.node_name.as_str());
                    if self.remote && !one.spec.spec.node_name.is_empty() {
                        one.spec.spec.node_name = elsewhere(&node).to_string();
                    }
                    self.label(&mut one.meta.labels);
                }
                _ => {}
            }
        }
        for resource in findings.iter_mut().filter_map(|found| found.resource.as_mut()) {
            resource.name = elsewhere(&resource.name);
        }
    }

    fn label(&self, labels: &mut Arc<Labels>) {
        if self.remote || *self.cluster != *DEFAULT_CLUSTER {
            Arc::make_mut(labels).insert(CLUSTER.to_owned(), self.cluster.to_string());
        }
        if let Some(network) = self.network.get().filter(|network| !network.is_empty()) {
            let labels = Arc::make_mut(labels);
            labels.entry(NETWORK.to_owned()).or_insert_with(|| network.clone());
        }
    }
}
