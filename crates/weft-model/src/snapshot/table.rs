//! A namespaced table of resources with structural sharing: a change copies one namespace's map
//! of pointers, never the resources.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

type ByName<T> = BTreeMap<Arc<str>, Arc<T>>;

/// namespace → name → item.
#[derive(Debug)]
pub(crate) struct Table<T> {
    namespaces: Arc<BTreeMap<Arc<str>, Arc<ByName<T>>>>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Table { namespaces: self.namespaces.clone() }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { namespaces: Arc::default() }
    }
}

impl<T> Table<T> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.namespaces.get(namespace)?.get(name)
    }

    /// The last one of a namespace whose name is before `name`.
    pub(crate) fn before(&self, namespace: &str, name: &Arc<str>) -> Option<&Arc<T>> {
        self.namespaces.get(namespace)?.range(..Arc::clone(name)).next_back().map(|(_, item)| item)
    }

    pub(crate) fn insert(
        &mut self,
        namespace: &Arc<str>,
        name: &Arc<str>,
        item: Arc<T>,
    ) -> Option<Arc<T>> {
        let namespaces = Arc::make_mut(&mut self.namespaces);
        let names = namespaces.entry(namespace.clone()).or_default();
        Arc::make_mut(names).insert(name.clone(), item)
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.get(namespace, name)?;
        let namespaces = Arc::make_mut(&mut self.namespaces);
        let names = Arc::make_mut(namespaces.get_mut(namespace)?);
        let old = names.remove(name);
        if names.is_empty() {
            namespaces.remove(namespace);
        }
        old
    }

    /// Whether both are the very same table.
    pub(crate) fn is_same(&self, other: &Table<T>) -> bool {
        Arc::ptr_eq(&self.namespaces, &other.namespaces)
    }

    /// Whether both are the very same in one namespace.
    pub(crate) fn has_same_namespace(&self, other: &Table<T>, namespace: &str) -> bool {
        match (self.namespaces.get(namespace), other.namespaces.get(namespace)) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        }
    }

    /// Of one namespace, by name.
    pub(crate) fn namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<T>> {
        self.namespaces.get(namespace).into_iter().flat_map(|names| names.values())
    }

    /// Those whose name begins with `prefix`, with their names.
    pub(crate) fn beginning<'a>(
        &'a self,
        namespace: &str,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<T>)> {
        let names = self.namespaces.get(namespace).into_iter();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let all = names.flat_map(move |names| names.range::<str, _>(from));
        all.map(|(name, item)| (&**name, item))
            .take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// By namespace, then name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.namespaces.values().flat_map(|names| names.values())
    }
}
