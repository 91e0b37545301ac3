//! Who a Pod is, by the service account token that its node's kubelet projected into it.
//!
//! The API server decides (TokenReview): signature, time, audience, and that the Pod the token is
//! bound to still exists. Answers are remembered for a moment, since a proxy shows its token more than
//! once as it starts. What is plainly no such token does not reach the API server.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ApiError, Client, Rate};

/// Longest token; projected ones have about 1.5 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How long an answer is believed.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const ANSWERS_MAX: usize = 10_000;
/// Reviews have their own share of requests: a crowd of strangers must not stop the watches.
const RATE: Rate = Rate { per_second: 100.0, burst: 200 };

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const POD: &str = "authentication.kubernetes.io/pod-name";
const NODE: &str = "authentication.kubernetes.io/node-name";

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    pub namespace: String,
    pub service_account: String,
    /// The Pod the token is bound to; one for a machine outside the cluster is bound to none.
    pub pod: Option<String>,
    /// Its node; API servers before 1.30 do not say.
    pub node: Option<String>,
}

/// Why a token proves nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReviewError {
    #[error("the service account token is refused: {0}")]
    Refused(String),
    #[error("the service account token cannot be checked now: {0}")]
    Unavailable(#[from] ApiError),
}

/// Asks the API server.
pub struct Reviewer {
    client: Client,
    audience: String,
    answers: Mutex<HashMap<[u8; 32], (Instant, Reviewed)>>,
}

/// The API servers of all clusters of the mesh: each knows its own Pods. Cheap to clone.
#[derive(Clone)]
pub struct Reviewers {
    own: Arc<Reviewer>,
    others: Arc<Mutex<BTreeMap<Arc<str>, Arc<Reviewer>>>>,
}

impl Reviewers {
    /// The mesh's own cluster alone.
    pub fn new(own: Reviewer) -> Self {
        Reviewers { own: Arc::new(own), others: Arc::default() }
    }

    /// Of the cluster a caller names, and which that is when it is not the mesh's own. Who names
    /// none, or one that is not known, is asked about in the mesh's own: a token is shown to no
    /// cluster but the one it says it is from.
    pub(crate) fn of(&self, cluster: Option<&str>) -> (Arc<Reviewer>, Option<Arc<str>>) {
        let others = lock(&self.others);
        match cluster.and_then(|cluster| others.get_key_value(cluster)) {
            Some((cluster, reviewer)) => (reviewer.clone(), Some(cluster.clone())),
            None => (self.own.clone(), None),
        }
    }

    pub(crate) fn add(&self, cluster: &Arc<str>, client: &Client) {
        let reviewer = Reviewer::new(client, self.own.audience.clone());
        lock(&self.others).insert(cluster.clone(), Arc::new(reviewer));
    }

    pub(crate) fn remove(&self, cluster: &str) {
        lock(&self.others).remove(cluster);
    }
}

impl Reviewer {
    /// Tokens must be meant for `audience`.
    pub fn new(client: &Client, audience: String) -> Self {
        Reviewer { client: client.limited(RATE), audience, answers: Mutex::default() }
    }

    /// Who holds this token.
    ///
    /// # Errors
    /// [`ReviewError`]; an API server that is away is no refusal.
    pub async fn review(&self, token: &str) -> Result<Reviewed, ReviewError> {
        self.plausible(token, SystemTime::now())?;
        let name = fingerprint(token);
        if let Some(known) = self.remembered(&name, Instant::now()) {
            return Ok(known);
        }
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [self.audience] },
        });
        let answer = self.client.create(PATH, &body).await?;
        let reviewed = read(&answer["status"], &self.audience).map_err(ReviewError::Refused)?;
        let mut answers = lock(&self.answers);
        if answers.len() >= ANSWERS_MAX {
            let now = Instant::now();
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() < ANSWERS_MAX {
            answers.insert(name, (Instant::now() + REMEMBERED, reviewed.clone()));
        }
        Ok(reviewed)
    }

    fn remembered(&self, name: &[u8; 32], now: Instant) -> Option<Reviewed> {
        let answers = lock(&self.answers);
        answers.get(name).filter(|(until, _)| now < *until).map(|(_, known)| known.clone())
    }

    /// Looks at what the token says of itself: enough to spare the API server a question, and no
    /// proof of anything.
    ///
    /// # Errors
    /// [`ReviewError::Refused`].
    pub fn plausible(&self, token: &str, now: SystemTime) -> Result<(), ReviewError> {
        let refuse = |why: &str| Err(ReviewError::Refused(why.to_owned()));
        if token.len() > TOKEN_BYTES_MAX {
            return refuse("it is too long");
        }
        let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims: Option<Value> = claims.and_then(|text| serde_json::from_slice(&text).ok());
        let Some(claims) = claims.filter(|_| token.split('.').count() == 3) else {
            return refuse("it is no JSON Web Token");
        };
        let meant = match &claims["aud"] {
            Value::String(one) => *one == self.audience,
            Value::Array(all) => all.iter().any(|one| *one == *self.audience),
            _ => false,
        };
        if !meant {
            let audience = &self.audience;
            return refuse(&format!(
                "it is not meant for audience {audience}: project one that is"
            ));
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        match claims["exp"].as_u64() {
            Some(end) if end > now => Ok(()),
            _ => refuse("it has expired"),
        }
    }
}

fn read(status: &Value, audience: &str) -> Result<Reviewed, String> {
    if status["authenticated"] != true {
        let why = status["error"].as_str().unwrap_or("the API server does not know it");
        return Err(why.to_owned());
    }
    // A server that knows no audiences returns none, and then any token would do.
    let audiences = status["audiences"].as_array().into_iter().flatten();
    if !audiences.into_iter().any(|one| one == audience) {
        return Err(format!("it is not meant for audience {audience}"));
    }
    let user = &status["user"];
    let name = user["username"].as_str().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return Err(format!("{name} is no service account"));
    };
    let extra = |name: &str| user["extra"][name][0].as_str().map(ToOwned::to_owned);
    Ok(Reviewed {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: extra(POD),
        node: extra(NODE),
    })
}

/// Tokens themselves are not kept.
fn fingerprint(token: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Nothing under this lock can leave data half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_name_audience_and_account() {
        let status = |change: fn(&mut Value)| {
            let mut status = json!({
                "authenticated": true, "audiences": ["istio-ca"],
                "user": {
                    "username": "system:serviceaccount:shop:web",
                    "extra": { (POD): ["web-1"], (NODE): ["n1"] },
                },
            });
            change(&mut status);
            read(&status, "istio-ca")
        };
        let whole = status(|_| {}).expect("it proves a Pod");
        assert_eq!((whole.namespace.as_str(), whole.service_account.as_str()), ("shop", "web"));
        assert_eq!((whole.pod.as_deref(), whole.node.as_deref()), (Some("web-1"), Some("n1")));
        let unbound = status(|s| s["user"]["extra"] = json!({})).expect("it proves an account");
        assert_eq!(unbound.pod, None);
        for broken in [
            (|s| s["authenticated"] = false.into()) as fn(&mut Value),
            |s| s["audiences"] = json!([]),
            |s| s["audiences"] = json!(["api"]),
            |s| s["user"]["username"] = "system:node:n1".into(),
        ] {
            assert!(status(broken).is_err());
        }
    }
}
