//! Discovery selectors: which namespaces the mesh looks at.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use weft_model::spec::MeshConfig;
use weft_model::{Kind, Labels, Snapshot};

use crate::world::World;

/// Namespaces of the cluster itself, where nothing is injected.
pub(crate) const SYSTEM: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Namespaces that are read; all when `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    only: Option<Arc<BTreeSet<Arc<str>>>>,
}

impl Selection {
    /// Cluster-wide resources, whose namespace is empty, are always read.
    pub(super) fn includes(&self, namespace: &str) -> bool {
        namespace.is_empty() || self.only.as_ref().is_none_or(|only| only.contains(namespace))
    }

    fn of(snapshot: &Snapshot) -> Self {
        let all = snapshot.namespaces();
        Self::choose(snapshot.mesh(), all.map(|one| (one.meta.name.clone(), &*one.meta.labels)))
    }

    /// Of a cluster's namespaces and their labels.
    pub(super) fn choose<L: Borrow<Labels>>(
        mesh: &MeshConfig,
        namespaces: impl Iterator<Item = (Arc<str>, L)>,
    ) -> Self {
        if mesh.discovery_selectors.is_empty() {
            return Selection::default();
        }
        // Without the root namespace, the selectors could never be changed again.
        let mut only = BTreeSet::from([Arc::from(mesh.root_namespace.as_str())]);
        only.extend(namespaces.filter_map(|(name, labels)| {
            let labels = labels.borrow();
            mesh.discovery_selectors.iter().any(|one| one.selects(labels)).then_some(name)
        }));
        Selection { only: Some(Arc::new(only)) }
    }
}

/// Names of the namespaces that are read and stay.
pub(crate) fn discovered(world: World) -> watch::Receiver<Arc<BTreeSet<Arc<str>>>> {
    let (sender, names) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let (mut state, mut updates) = world.subscribe();
        loop {
            let now = Arc::new(staying(&state.snapshot));
            sender.send_if_modified(|before| {
                let differs = *before != now;
                *before = now;
                differs
            });
            tokio::select! {
                () = sender.closed() => return,
                update = updates.next() => match update {
                    Some(update) => state = update.state,
                    None => return,
                },
            }
        }
    });
    names
}

fn staying(snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
    let selection = Selection::of(snapshot);
    let all = snapshot.namespaces().filter(|one| !one.meta.deleting);
    let names = all.map(|one| one.meta.name.clone());
    names.filter(|name| selection.includes(name) && !SYSTEM.contains(&&**name)).collect()
}

/// Tells the readers when the selection differs.
pub(super) fn choose(snapshot: &Snapshot, selected: &watch::Sender<Selection>) {
    let now = Selection::of(snapshot);
    selected.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}

/// Follows the mesh's configuration and the namespaces' labels.
pub(super) async fn follow(world: World, selected: watch::Sender<Selection>) {
    let (state, mut updates) = world.subscribe();
    choose(&state.snapshot, &selected);
    while let Some(update) = updates.next().await {
        let decides = |kind: Kind| matches!(kind, Kind::Namespace | Kind::MeshConfig);
        if update.touched.config.iter().any(|key| decides(key.kind)) {
            choose(&update.state.snapshot, &selected);
        }
    }
}
