//! Files to changes: who owns a key when two files define it, and the last good version of a
//! resource that became invalid. Pure; the writer's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{Change, ChangeKind, Diagnostic, Object, ResourceKey, Severity};

use super::FileChange;

/// Weft's code for one key defined twice.
const DUPLICATE: &str = "WEFT0003";

#[derive(Default)]
pub(super) struct Fold {
    files: BTreeMap<Arc<str>, File>,
    /// Which file's definition of a key is in force.
    owners: BTreeMap<ResourceKey, Arc<str>>,
    /// Keys that some file defines beside their owner.
    contested: BTreeSet<ResourceKey>,
}

#[derive(Default)]
struct File {
    /// Valid ones, and last good versions of those that are not.
    objects: BTreeMap<ResourceKey, Object>,
    /// As parsed, plus what was kept.
    diagnostics: Vec<Diagnostic>,
    /// Keys of `objects` that are an older version than the file says.
    kept: BTreeSet<ResourceKey>,
}

impl Fold {
    /// What changed files change in the world, in order; one key may come more than once.
    pub(super) fn files(&mut self, files: Vec<FileChange>) -> Vec<Change> {
        let mut changes = Vec::new();
        for FileChange { file, content } in files {
            changes.extend(match content {
                Some((objects, diagnostics)) => self.file(&file, objects, diagnostics),
                None => self.file_gone(&file),
            });
        }
        changes
    }

    /// All findings of now, by file; the second definition of a key is an error.
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> =
            self.files.values().flat_map(|file| file.diagnostics.iter().cloned()).collect();
        for key in &self.contested {
            let Some(owner) = self.owners.get(key) else { continue };
            for (_, file) in self.files.iter().filter(|(name, _)| *name != owner) {
                all.extend(file.objects.get(key).map(|object| duplicate(key, object, owner)));
            }
        }
        all
    }

    fn file(
        &mut self,
        name: &Arc<str>,
        objects: Vec<Object>,
        mut diagnostics: Vec<Diagnostic>,
    ) -> Vec<Change> {
        let before = self.files.remove(name).unwrap_or_default();
        let mut now = File::default();
        for object in objects {
            let Some(key) = object.key() else { continue };
            if let Some(first) = now.objects.get(&key) {
                diagnostics.push(duplicate(&key, &object, &first.meta().origin.file));
                continue;
            }
            now.objects.insert(key, object);
        }
        for (key, object) in &before.objects {
            if now.objects.contains_key(key) || !is_broken(key, &diagnostics) {
                continue;
            }
            now.kept.insert(key.clone());
            now.objects.insert(key.clone(), object.clone());
        }
        mark_kept(&mut diagnostics, &now.kept);
        now.diagnostics = diagnostics;

        let mut changes = Vec::new();
        let gone: Vec<ResourceKey> =
            before.objects.keys().filter(|key| !now.objects.contains_key(key)).cloned().collect();
        // Same content in the same place says nothing; in another place it moves diagnostics.
        let differs = |(key, object): &(&ResourceKey, &Object)| {
            let old = before.objects.get(*key).map(Object::meta);
            let new = object.meta();
            old.is_none_or(|old| (old.generation, &old.origin) != (new.generation, &new.origin))
        };
        let upserts: Vec<(ResourceKey, Object)> = now
            .objects
            .iter()
            .filter(differs)
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        self.files.insert(name.clone(), now);
        for key in gone {
            changes.extend(self.release(name, key));
        }
        for (key, object) in upserts {
            let owner = self.owners.entry(key.clone()).or_insert_with(|| name.clone());
            if owner == name {
                changes.push(Change { key, kind: ChangeKind::Upsert(object) });
            } else {
                self.contested.insert(key);
            }
        }
        changes
    }

    fn file_gone(&mut self, name: &Arc<str>) -> Vec<Change> {
        let Some(file) = self.files.remove(name) else { return Vec::new() };
        file.objects.into_keys().filter_map(|key| self.release(name, key)).collect()
    }

    /// The file no longer defines the key: another file that does takes over, or it is deleted.
    fn release(&mut self, name: &Arc<str>, key: ResourceKey) -> Option<Change> {
        let defining = self.files.values().filter(|file| file.objects.contains_key(&key));
        if defining.count() < 2 {
            self.contested.remove(&key);
        }
        if self.owners.get(&key) != Some(name) {
            return None;
        }
        let heir = self
            .files
            .iter()
            .find(|(other, file)| *other != name && file.objects.contains_key(&key));
        let kind = match heir {
            Some((other, file)) => {
                self.owners.insert(key.clone(), other.clone());
                ChangeKind::Upsert(file.objects[&key].clone())
            }
            None => {
                self.owners.remove(&key);
                ChangeKind::Delete
            }
        };
        Some(Change { key, kind })
    }
}

/// Does an error concern this key, or a document of which nobody can say which key it was?
fn is_broken(key: &ResourceKey, diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().filter(|found| found.severity == Severity::Error).any(|found| {
        match &found.resource {
            Some(other) => other == key && found.code != DUPLICATE,
            None => true,
        }
    })
}

/// Says on the errors that the last good version stays.
fn mark_kept(diagnostics: &mut [Diagnostic], kept: &BTreeSet<ResourceKey>) {
    if kept.is_empty() {
        return;
    }
    for found in diagnostics.iter_mut().filter(|found| found.severity == Severity::Error) {
        let note = match &found.resource {
            Some(key) if kept.contains(key) => "The last valid version stays in force.".to_string(),
            Some(_) => continue,
            None => {
                let names: Vec<String> = kept.iter().map(ToString::to_string).collect();
                format!("Kept in force from before: {}.", names.join(", "))
            }
        };
        if !found.help.is_empty() {
            found.help.push(' ');
        }
        found.help.push_str(&note);
    }
}

fn duplicate(key: &ResourceKey, object: &Object, first: &str) -> Diagnostic {
    let message = format!("{key} is already defined in {first}");
    let origin = &object.meta().origin;
    Diagnostic::new(Severity::Error, DUPLICATE, origin, "metadata.name", message)
        .with_resource(key.clone())
        .with_help("Remove one of the two; the first stays in force.")
}
