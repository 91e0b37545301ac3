//! One authority in the place of another, without a moment in which two workloads do not trust each
//! other: first everybody is told to trust the next one too, then it signs, and what was trusted
//! before stays so for as long as any certificate of it can live.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::root::{Link, PluggedIn, Root};
use super::{Authority, CaError};

/// An authority that is trusted and does not sign yet.
pub struct Next(Root);

/// Which roots are trusted.
pub(super) struct Trusted {
    roots: Mutex<Vec<Trust>>,
    /// PEM of all of them.
    bundle: watch::Sender<Arc<str>>,
}

struct Trust {
    root: Link,
    /// When no certificate that leads to it is left; `None` for what signs, or will.
    until: Option<SystemTime>,
}

impl Trusted {
    pub(super) fn new(root: &Root) -> Self {
        let roots: Vec<Trust> =
            root.trusted.iter().map(|root| Trust { root: root.clone(), until: None }).collect();
        let bundle = watch::Sender::new(bundle(&roots));
        Trusted { roots: Mutex::new(roots), bundle }
    }

    pub(super) fn bundle(&self) -> Arc<str> {
        self.bundle.borrow().clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// These too, until further notice. They come first: who reads one only reads the newest.
    fn add(&self, more: &[Link]) {
        let mut roots = lock(&self.roots);
        for link in more.iter().rev() {
            roots.retain(|trust| trust.root.der != link.der);
            roots.insert(0, Trust { root: link.clone(), until: None });
        }
        self.publish(&roots);
    }

    /// What is none of these ends at `until`, unless it ends before.
    fn retire_all_but(&self, kept: &[Link], until: SystemTime) {
        let mut roots = lock(&self.roots);
        for trust in roots.iter_mut() {
            let is_kept = |der: &CertificateDer<'_>| kept.iter().any(|link| link.der == *der);
            if !is_kept(&trust.root.der) {
                trust.until.get_or_insert(until);
            }
        }
        self.publish(&roots);
    }

    fn tidy(&self, now: SystemTime) -> Option<SystemTime> {
        let mut roots = lock(&self.roots);
        roots.retain(|trust| trust.until.is_none_or(|until| now < until));
        self.publish(&roots);
        roots.iter().filter_map(|trust| trust.until).min()
    }

    fn publish(&self, roots: &[Trust]) {
        let now = bundle(roots);
        self.bundle.send_if_modified(|before| {
            let differs = *before != now;
            *before = now;
            differs
        });
    }
}

fn bundle(roots: &[Trust]) -> Arc<str> {
    roots.iter().map(|trust| trust.root.pem.as_str()).collect::<String>().into()
}

/// Nothing under this lock can leave data half-written.
fn lock(roots: &Mutex<Vec<Trust>>) -> MutexGuard<'_, Vec<Trust>> {
    roots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Authority {
    /// Trusts another authority from now on, besides this one. Let the mesh hear of it before
    /// [`Self::adopt`].
    ///
    /// # Errors
    /// Parts that do not belong together or have expired; nothing is changed then.
    pub fn trust(&self, plugged: &PluggedIn, now: SystemTime) -> Result<Next, CaError> {
        let next = Root::plugged(plugged, now)?;
        self.inner.trusted.add(&next.trusted);
        Ok(Next(next))
    }

    /// It signs from now on. Roots of before that it does not name itself stay trusted for the
    /// longest life of a certificate.
    pub fn adopt(&self, Next(next): Next, now: SystemTime) {
        let until = now + self.inner.lifetimes.max.max(self.inner.lifetimes.default);
        self.inner.trusted.retire_all_but(&next.trusted, until);
        self.inner.root.store(Arc::new(next));
    }

    /// Trusts no more what is over; when that is to be asked again.
    pub fn tidy(&self, now: SystemTime) -> Option<SystemTime> {
        self.inner.trusted.tidy(now)
    }
}
