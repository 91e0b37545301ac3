//! Who writes: one of several control planes holds a Lease and renews it.
//!
//! Clocks of others are not believed: a Lease is expired when its record has not changed for its
//! duration by our own clock. `leaseTransitions` numbers the terms; a holder that could not renew
//! stops before anybody else may start.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ApiError, Client};

/// Istio's and Kubernetes' own duration of a Lease.
const DURATION: Duration = Duration::from_secs(15);

/// The right to write, until a moment of our own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// `leaseTransitions`: grows with every new holder.
    pub number: i64,
    until: Instant,
}

impl Term {
    /// Whether it still holds now.
    pub fn holds(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Which Lease, and who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub namespace: String,
    pub lease: String,
    /// How long the Lease holds without being renewed.
    pub duration: Duration,
    /// Unlike all others': the Pod's name.
    pub identity: String,
}

impl Candidate {
    /// A holder that could not renew for this long steps down: well before another one steps in.
    fn renewed_max(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// How often the Lease is looked at.
    fn look(&self) -> Duration {
        self.duration / 8
    }

    /// As the Lease says it, in whole seconds.
    fn seconds(&self) -> u64 {
        self.duration.as_secs().max(1)
    }
}

/// Takes part in the election until `shutdown`, then gives the Lease back.
pub fn elect(
    client: Client,
    candidate: Candidate,
    shutdown: CancellationToken,
) -> watch::Receiver<Option<Term>> {
    let (sender, term) = watch::channel(None);
    let mut election = Election { client, candidate, seen: None, term: None };
    tokio::spawn(async move {
        loop {
            match election.step().await {
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, "the leader's lease"),
            }
            election.announce(&sender);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(election.candidate.look()) => {}
            }
        }
        if election.term.take().is_some() {
            sender.send_replace(None);
            if let Err(error) = election.release().await {
                tracing::debug!(%error, "the leader's lease was not given back; it will expire");
            }
        }
    });
    term
}

struct Election {
    client: Client,
    candidate: Candidate,
    /// The record as it was when it last differed, and when that was.
    seen: Option<(Value, Instant)>,
    term: Option<Term>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    /// It is ours, or may be: in this term.
    Take(i64),
}

impl Election {
    async fn step(&mut self) -> Result<(), ApiError> {
        let lease = match self.client.get(&self.path()).await {
            Ok(lease) => lease,
            Err(error) if error.status() == Some(404) => return self.create().await,
            Err(error) => return Err(error),
        };
        match decide(&lease["spec"], &self.candidate.identity, &mut self.seen, Instant::now()) {
            Step::Wait => {
                self.term = None;
                Ok(())
            }
            Step::Take(number) => {
                let mut lease = lease;
                let same = lease["spec"]["holderIdentity"] == self.candidate.identity.as_str();
                let acquired = lease["spec"].get("acquireTime").filter(|_| same).cloned();
                lease["spec"] = self.record(number, acquired);
                // The resourceVersion that was read is the precondition.
                let asked = Instant::now();
                match self.client.replace(&self.path(), &lease).await {
                    Ok(_) => self.won(number, asked),
                    Err(error) if error.status() == Some(409) => self.term = None,
                    Err(error) => return Err(error),
                }
                Ok(())
            }
        }
    }

    async fn create(&mut self) -> Result<(), ApiError> {
        let Candidate { namespace, lease, .. } = &self.candidate;
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": lease, "namespace": namespace },
            "spec": self.record(1, None),
        });
        let asked = Instant::now();
        match self.client.create(&leases(namespace), &body).await {
            Ok(_) => self.won(1, asked),
            Err(error) if error.status() == Some(409) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn release(&mut self) -> Result<(), ApiError> {
        let mut lease = self.client.get(&self.path()).await?;
        if lease["spec"]["holderIdentity"] == self.candidate.identity.as_str() {
            lease["spec"]["holderIdentity"] = "".into();
            self.client.replace(&self.path(), &lease).await?;
        }
        Ok(())
    }

    fn won(&mut self, number: i64, asked: Instant) {
        if self.term.is_none_or(|term| term.number != number) {
            tracing::info!(term = number, "this control plane writes to the cluster from now on");
        }
        self.term = Some(Term { number, until: asked + self.candidate.renewed_max() });
    }

    /// What cannot be renewed ends by itself.
    fn announce(&mut self, sender: &watch::Sender<Option<Term>>) {
        self.term = self.term.filter(Term::holds);
        sender.send_if_modified(|before| {
            let differs = *before != self.term;
            *before = self.term;
            differs
        });
    }

    fn record(&self, number: i64, acquired: Option<Value>) -> Value {
        let now = micro_time(SystemTime::now());
        json!({
            "holderIdentity": self.candidate.identity,
            "leaseDurationSeconds": self.candidate.seconds(),
            "acquireTime": acquired.unwrap_or_else(|| now.clone().into()),
            "renewTime": now,
            "leaseTransitions": number,
        })
    }

    fn path(&self) -> String {
        format!("{}/{}", leases(&self.candidate.namespace), self.candidate.lease)
    }
}

fn leases(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

fn decide(spec: &Value, me: &str, seen: &mut Option<(Value, Instant)>, now: Instant) -> Step {
    let number = spec["leaseTransitions"].as_i64().unwrap_or(0);
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    if holder == me {
        return Step::Take(number);
    }
    if holder.is_empty() {
        return Step::Take(number + 1);
    }
    let seconds = spec["leaseDurationSeconds"].as_u64().unwrap_or(DURATION.as_secs());
    match seen {
        Some((record, since)) if record == spec => {
            if now.duration_since(*since) > Duration::from_secs(seconds) {
                return Step::Take(number + 1);
            }
        }
        _ => *seen = Some((spec.clone(), now)),
    }
    Step::Wait
}

/// `2026-11-21T20:08:37.000000Z`: Kubernetes' MicroTime.
fn micro_time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let text = super::time::second(since.as_secs());
    format!("{}.{:06}Z", text.trim_end_matches('Z'), since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_its_holder_says_nothing_for_its_duration() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let spec = |holder: &str, renewed: &str| {
            json!({"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15,
                   "leaseTransitions": 4})
        };
        let mut seen = None;
        let mut look =
            |holder, renewed, seconds| decide(&spec(holder, renewed), "me", &mut seen, at(seconds));
        assert_eq!(look("other", "a", 0), Step::Wait);
        assert_eq!(look("other", "b", 10), Step::Wait, "renewed");
        assert_eq!(look("other", "b", 25), Step::Wait, "15 s are not over");
        assert_eq!(look("other", "b", 26), Step::Take(5));
        assert_eq!(look("me", "c", 27), Step::Take(4), "ours");
        assert_eq!(look("", "c", 28), Step::Take(5), "given back");
    }

    #[test]
    fn times_are_written_as_kubernetes_does() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_291_717_000_042);
        assert_eq!(micro_time(time), "2026-11-21T20:08:37.000042Z");
    }
}
