//! What a caller can show to prove who it is: a join token, or in a cluster the service account
//! token of its Pod.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::Status;
use weft_model::Snapshot;

use super::{Identity, JoinKey, TokenError};
use crate::kube::{ReviewError, Reviewed, Reviewers};

/// Who a caller is, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub identity: Identity,
    /// The Pod its cluster vouches for; a join token knows none.
    pub pod: Option<Arc<str>>,
    /// The node that Pod runs on, where its cluster says it.
    pub node: Option<Arc<str>>,
    /// The cluster that vouches for it, when that is not the mesh's own.
    pub cluster: Option<Arc<str>>,
    /// A cluster vouches for it, but for no Pod: good only for workloads that register themselves.
    pub unbound: bool,
}

/// Checks credentials. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    join_key: JoinKey,
    reviewers: Option<Reviewers>,
}

impl From<JoinKey> for Verifier {
    fn from(join_key: JoinKey) -> Self {
        Verifier { join_key, reviewers: None }
    }
}

impl Verifier {
    /// Takes service account tokens too.
    #[must_use]
    pub fn with_clusters(mut self, reviewers: Reviewers) -> Self {
        self.reviewers = Some(reviewers);
        self
    }

    /// Who shows this token, of the cluster it says.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what to do about it; `UNAVAILABLE` when the cluster cannot be asked.
    pub async fn verify(
        &self,
        token: &str,
        cluster: Option<&str>,
        now: SystemTime,
    ) -> Result<Proven, Status> {
        match (self.join_key.verify(token, now), &self.reviewers) {
            (Ok(identity), _) => {
                Ok(Proven { identity, pod: None, node: None, cluster: None, unbound: false })
            }
            // Not one of ours: perhaps a cluster's.
            (Err(TokenError::Malformed | TokenError::Foreign), Some(reviewers)) => {
                let (reviewer, cluster) = reviewers.of(cluster);
                let reviewed = reviewer.review(token).await.map_err(|error| refused(&error))?;
                proven(reviewed, cluster)
            }
            (Err(error), _) => Err(Status::unauthenticated(error.to_string())),
        }
    }

    /// Whether it is worth verifying; asks nobody.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn plausible(&self, token: &str, now: SystemTime) -> Result<(), Status> {
        match (self.join_key.verify(token, now), &self.reviewers) {
            (Ok(_), _) => Ok(()),
            (Err(TokenError::Malformed | TokenError::Foreign), Some(reviewers)) => {
                reviewers.of(None).0.plausible(token, now).map_err(|error| refused(&error))
            }
            (Err(error), _) => Err(Status::unauthenticated(error.to_string())),
        }
    }
}

fn proven(reviewed: Reviewed, cluster: Option<Arc<str>>) -> Result<Proven, Status> {
    let Reviewed { namespace, service_account, pod, node } = reviewed;
    let identity = Identity::new(&namespace, &service_account)
        .map_err(|error| Status::unauthenticated(error.to_string()))?;
    let unbound = pod.is_none();
    let (pod, node) = (pod.map(Arc::from), node.map(Arc::from));
    Ok(Proven { identity, pod, node, cluster, unbound })
}

impl Proven {
    /// Why this is not enough, if it is not: who is bound to no Pod must be of a WorkloadGroup.
    pub(crate) fn is_admissible(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let (namespace, account) = (self.identity.namespace(), self.identity.service_account());
        match self.unbound && !snapshot.has_group_account(namespace, account) {
            false => Ok(()),
            true => Err(Status::unauthenticated(format!(
                "the service account token is bound to no Pod, and no WorkloadGroup of {namespace} \
                 has the account {account}: use a projected token"
            ))),
        }
    }
}

fn refused(error: &ReviewError) -> Status {
    match error {
        ReviewError::Refused(_) => Status::unauthenticated(error.to_string()),
        ReviewError::Unavailable(_) => Status::unavailable(error.to_string()),
    }
}
