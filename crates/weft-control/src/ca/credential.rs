//! What a caller can show to prove who it is: a join token, or in a cluster the service account
//! token of its Pod.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::Status;

use super::{Identity, JoinKey, TokenError};
use crate::kube::{ReviewError, Reviewed, Reviewer};

/// Who a caller is, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub identity: Identity,
    /// The Pod its cluster vouches for; a join token knows none.
    pub pod: Option<Arc<str>>,
    /// The node that Pod runs on, where its cluster says it.
    pub node: Option<Arc<str>>,
}

/// Checks credentials. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    join_key: JoinKey,
    reviewer: Option<Arc<Reviewer>>,
}

impl From<JoinKey> for Verifier {
    fn from(join_key: JoinKey) -> Self {
        Verifier { join_key, reviewer: None }
    }
}

impl Verifier {
    /// Takes service account tokens too.
    #[must_use]
    pub fn with_cluster(mut self, reviewer: Reviewer) -> Self {
        self.reviewer = Some(Arc::new(reviewer));
        self
    }

    /// Who shows this token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what to do about it; `UNAVAILABLE` when the cluster cannot be asked.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Proven, Status> {
        match (self.join_key.verify(token, now), &self.reviewer) {
            (Ok(identity), _) => Ok(Proven { identity, pod: None, node: None }),
            // Not one of ours: perhaps a cluster's.
            (Err(TokenError::Malformed | TokenError::Foreign), Some(reviewer)) => {
                proven(reviewer.review(token).await.map_err(|error| refused(&error))?)
            }
            (Err(error), _) => Err(Status::unauthenticated(error.to_string())),
        }
    }

    /// Whether it is worth verifying; asks nobody.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn plausible(&self, token: &str, now: SystemTime) -> Result<(), Status> {
        match (self.join_key.verify(token, now), &self.reviewer) {
            (Ok(_), _) => Ok(()),
            (Err(TokenError::Malformed | TokenError::Foreign), Some(reviewer)) => {
                reviewer.plausible(token, now).map_err(|error| refused(&error))
            }
            (Err(error), _) => Err(Status::unauthenticated(error.to_string())),
        }
    }
}

fn proven(reviewed: Reviewed) -> Result<Proven, Status> {
    let Reviewed { namespace, service_account, pod, node } = reviewed;
    let identity = Identity::new(&namespace, &service_account)
        .map_err(|error| Status::unauthenticated(error.to_string()))?;
    Ok(Proven { identity, pod: Some(pod.into()), node: node.map(Arc::from) })
}

fn refused(error: &ReviewError) -> Status {
    match error {
        ReviewError::Refused(_) => Status::unauthenticated(error.to_string()),
        ReviewError::Unavailable(_) => Status::unavailable(error.to_string()),
    }
}
