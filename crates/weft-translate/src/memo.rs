//! What one translation can keep of another.
//!
//! A *part* is the piece of the result that one service decides. It is kept with every answer the
//! world gave while it was made ([`Read`]). Where the world still gives the same answers, the very
//! same objects, the part is the same, as translation is a pure function. What a part may ask
//! beyond that is in the [`Base`]: parts of another base are not used.
//!
//! Must not know what Envoy's messages say.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::spec::{DestinationRule, VirtualService};
use weft_model::{Base, Diagnostic, MeshService, Resource, Snapshot};

use crate::endpoint;
use crate::findings::Findings;
use crate::scope::Scope;
use crate::view::ProxyView;

/// A question that translation asked about the world, and the answer.
#[derive(Clone)]
pub(crate) enum Read {
    /// [`Scope::service`]
    Service(Arc<str>, Option<Arc<MeshService>>),
    /// [`Scope::rule`]
    Rule(Arc<str>, Option<Arc<Resource<DestinationRule>>>),
    /// [`Scope::virtual_service`]
    VirtualService { namespace: Arc<str>, name: Arc<str>, found: Option<Rules> },
    /// [`Scope::client_certificate`]
    ClientCertificate(Option<(String, String)>),
}

type Rules = Arc<Resource<VirtualService>>;

impl Read {
    fn is_same_question(&self, other: &Read) -> bool {
        match (self, other) {
            (Read::Service(a, _), Read::Service(b, _)) => a == b,
            (Read::Rule(a, _), Read::Rule(b, _)) => a == b,
            (
                Read::VirtualService { namespace: a, name: b, .. },
                Read::VirtualService { namespace: c, name: d, .. },
            ) => (a, b) == (c, d),
            (Read::ClientCertificate(_), Read::ClientCertificate(_)) => true,
            _ => false,
        }
    }

    fn still_holds(&self, scope: &Scope<'_>) -> bool {
        match self {
            Read::Service(host, found) => is_same(found, scope.service(host)),
            Read::Rule(host, found) => is_same(found, scope.rule(host)),
            Read::VirtualService { namespace, name, found } => {
                is_same(found, scope.virtual_service(namespace, name))
            }
            Read::ClientCertificate(found) => *found == scope.client_certificate(),
        }
    }
}

fn is_same<T>(before: &Option<Arc<T>>, now: Option<&Arc<T>>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (None, None) => true,
        _ => false,
    }
}

/// The answers so far, each question once.
pub(crate) fn note(reads: &mut Vec<Read>, read: Read) {
    if !reads.iter().any(|known| known.is_same_question(&read)) {
        reads.push(read);
    }
}

/// A piece of a result with all it depends on.
pub(crate) struct Part<T> {
    /// The object it is about, which it may read freely.
    about: Arc<MeshService>,
    reads: Box<[Read]>,
    pub(crate) made: T,
    findings: Box<[Diagnostic]>,
}

impl<T> Part<T> {
    fn still_holds(&self, scope: &Scope<'_>, about: &Arc<MeshService>) -> bool {
        Arc::ptr_eq(&self.about, about) && self.reads.iter().all(|read| read.still_holds(scope))
    }
}

/// Parts by the host of their service.
pub(crate) struct Parts<T>(BTreeMap<Arc<str>, Arc<Part<T>>>);

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Parts(BTreeMap::new())
    }
}

impl<T> Parts<T> {
    /// The part about a service: out of the first of `before` that has one which still holds, else
    /// made anew.
    pub(crate) fn part(
        &mut self,
        scope: &Scope<'_>,
        about: &Arc<MeshService>,
        before: &[&Parts<T>],
        findings: &mut Findings,
        make: impl FnOnce(&mut Findings) -> T,
    ) -> &T {
        let kept = before.iter().find_map(|parts| {
            parts.0.get(&about.host).filter(|part| part.still_holds(scope, about))
        });
        let part = match kept {
            Some(part) => Arc::clone(part),
            None => {
                let mut own = Findings::default();
                let (made, reads) = scope.recorded(|| make(&mut own));
                let (about, findings) = (Arc::clone(about), own.into_list().into());
                Arc::new(Part { about, reads, made, findings })
            }
        };
        findings.extend(&part.findings);
        let slot = self.0.entry(Arc::clone(&about.host)).insert_entry(part);
        &slot.into_mut().made
    }
}

/// The endpoints of one cluster with all they depend on.
pub struct Assignment {
    base: Arc<Base>,
    reads: Box<[Read]>,
    made: Option<weft_xds::Resource>,
}

impl Assignment {
    /// `None`: the proxy has no such cluster.
    pub fn resource(&self) -> Option<&weft_xds::Resource> {
        self.made.as_ref()
    }
}

/// The endpoints of clusters as one place in the mesh sees them.
pub struct Endpoints<'a> {
    scope: Scope<'a>,
    base: Arc<Base>,
}

impl<'a> Endpoints<'a> {
    /// `view` is a [`ProxyView::shared`].
    pub fn new(snapshot: &'a Snapshot, view: &'a ProxyView) -> Self {
        Endpoints { scope: Scope::new(snapshot, view), base: Arc::new(snapshot.base()) }
    }

    /// The endpoints of a cluster: the first of `before` that still holds, else made anew.
    /// `before` are of the same place, or of one that differs in its namespace only.
    pub fn of(&self, cluster: &str, before: &[&Arc<Assignment>]) -> Arc<Assignment> {
        let holds = |kept: &&&Arc<Assignment>| {
            let same_base = Arc::ptr_eq(&kept.base, &self.base) || kept.base.is_same(&self.base);
            same_base && kept.reads.iter().all(|read| read.still_holds(&self.scope))
        };
        if let Some(kept) = before.iter().find(holds) {
            return Arc::clone(kept);
        }
        let (made, reads) = self.scope.recorded(|| endpoint::of_cluster(&self.scope, cluster));
        Arc::new(Assignment { base: Arc::clone(&self.base), reads, made })
    }
}

/// The parts of one translation, for the next one of the same place in the mesh, or for those of
/// places that differ in their namespace only.
#[derive(Default)]
pub struct Memo {
    base: Option<Base>,
    pub(crate) clusters: Parts<Box<[weft_xds::Resource]>>,
}

impl Memo {
    pub(crate) fn of(base: Base) -> Self {
        Memo { base: Some(base), ..Memo::default() }
    }

    pub(crate) fn is_of(&self, base: &Base) -> bool {
        self.base.as_ref().is_some_and(|own| own.is_same(base))
    }
}
