//! Who is at the other end: what it claims, held against what it can prove.
//!
//! Without a join token a client gets configuration but no secrets; with one, its
//! claims must agree with it.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::Status;
use weft_model::{Snapshot, Workload, in_cluster};
use weft_translate::ProxyView;
use weft_xds::NodeView;
use weft_xds::pb::envoy::config::core::v3::Node;
use weft_xds::server::Peer;

use super::Trust;
use crate::ca::Proven;

/// Whether a port takes clients without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// Configuration, but no secrets: the plain-text port.
    Allowed,
    Refused,
}

/// The verified identity of a peer, `None` without a token where that is allowed.
pub(super) async fn authenticate(
    trust: &Trust,
    peer: &Peer,
    anonymous: Anonymous,
) -> Result<Option<Proven>, Status> {
    match token(peer, anonymous)? {
        None => Ok(None),
        Some(token) => {
            let cluster = peer.cluster.as_deref();
            trust.verifier.verify(token, cluster, SystemTime::now()).await.map(Some)
        }
    }
}

/// Whether a peer is worth the question who it is.
pub(super) fn plausible(trust: &Trust, peer: &Peer, anonymous: Anonymous) -> Result<(), Status> {
    match token(peer, anonymous)? {
        None => Ok(()),
        Some(token) => trust.verifier.plausible(token, SystemTime::now()),
    }
}

fn token(peer: &Peer, anonymous: Anonymous) -> Result<Option<&str>, Status> {
    match (&peer.token, anonymous) {
        (None, Anonymous::Allowed) => Ok(None),
        (None, Anonymous::Refused) => Err(Status::unauthenticated(
            "no join token: send `authorization: Bearer TOKEN`, the token made by `weft token`",
        )),
        (Some(token), _) => Ok(Some(token)),
    }
}

/// The proxy a first request describes.
pub(super) fn describe(
    node: Option<&Node>,
    proven: Option<&Proven>,
    snapshot: &Snapshot,
) -> Result<(NodeView, ProxyView), Status> {
    let Some(node) = node else {
        return Err(Status::invalid_argument("the first request of a stream has no node"));
    };
    let mut node =
        NodeView::parse(node).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if let Some(proven) = proven {
        agree(&mut node, proven, snapshot)?;
    }
    let view = ProxyView::from_node(&node);
    Ok((node, view))
}

/// What the cluster that vouches for a caller knows of the workload it says it is.
pub(crate) fn workload<'a>(
    snapshot: &'a Snapshot,
    proven: &Proven,
    name: &str,
) -> Option<&'a Arc<Workload>> {
    let namespace = proven.identity.namespace();
    match &proven.cluster {
        None => snapshot.workload_by_name(namespace, name),
        Some(cluster) => snapshot.workload_by_name(namespace, &in_cluster(name, cluster)),
    }
}

fn agree(node: &mut NodeView, proven: &Proven, snapshot: &Snapshot) -> Result<(), Status> {
    proven.is_admissible(snapshot)?;
    let Proven { identity, pod, node: _, cluster, unbound: _ } = proven;
    let refuse = |what: &str, claimed: &str| {
        Err(Status::permission_denied(format!(
            "the token is for {identity}, the node says {what} {claimed}"
        )))
    };
    if node.namespace != identity.namespace() {
        return refuse("namespace", &node.namespace);
    }
    if let Some(pod) = pod.as_deref().filter(|pod| *pod != node.name) {
        return refuse(&format!("(of Pod {pod}) it is Pod"), &node.name);
    }
    if node.service_account.is_empty() {
        node.service_account = identity.service_account().to_owned();
    }
    if node.service_account != identity.service_account() {
        return refuse("service account", &node.service_account);
    }
    // What it sees of the mesh is what its own cluster sees.
    if let Some(cluster) = cluster.as_deref().filter(|cluster| *cluster != node.cluster_id) {
        return refuse(&format!("(of cluster {cluster}) it is in cluster"), &node.cluster_id);
    }
    match workload(snapshot, proven, &node.name) {
        Some(workload) if *workload.service_account != *identity.service_account() => {
            refuse("it is workload", &node.name)
        }
        _ => Ok(()),
    }
}
