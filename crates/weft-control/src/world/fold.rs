//! Files to changes: who owns a key when two files define it, and the last good version of a
//! resource that became invalid. Pure; the writer's state.
//!
//! What is in force is in the world and not kept here once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{Change, ChangeKind, Diagnostic, Object, Origin, ResourceKey, Severity};

use super::{FileChange, ResourceChange};

/// Weft's code for one key defined twice.
const DUPLICATE: &str = "WEFT0003";

#[derive(Default)]
pub(super) struct Fold {
    files: BTreeMap<Arc<str>, File>,
    /// Which file's definition of a key is in force.
    owners: BTreeMap<ResourceKey, Arc<str>>,
    /// Keys that some file defines beside their owner.
    contested: BTreeSet<ResourceKey>,
    /// Findings on resources that are no files, by origin.
    findings: BTreeMap<Arc<str>, Vec<Diagnostic>>,
}

#[derive(Default)]
struct File {
    /// Valid ones, and last good versions of those that are not.
    entries: BTreeMap<ResourceKey, Entry>,
    /// As parsed, plus what was kept.
    diagnostics: Vec<Diagnostic>,
    /// Keys of `entries` that are an older version than the file says.
    kept: BTreeSet<ResourceKey>,
}

/// A resource that a file defines.
struct Entry {
    generation: u64,
    /// Where in the file, see [`Origin`].
    document: u32,
    line: u32,
    /// Kept where another file's definition is in force: it takes over when that one goes.
    heir: Option<Box<Object>>,
}

impl Fold {
    /// What changed files change in the world, in order; one key may come more than once.
    pub(super) fn files(&mut self, files: Vec<FileChange>) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = self.owners.len();
        for FileChange { file, content } in files {
            changes.extend(match content {
                Some((objects, diagnostics)) => self.file(&file, objects, diagnostics),
                None => self.file_gone(&file),
            });
        }
        if self.owners.len() > before * 2 {
            self.owners = packed(std::mem::take(&mut self.owners));
        }
        changes
    }

    /// What resources with keys of their own change in the world. Nothing of them is kept here but
    /// what is wrong: the last good version of a broken one is the one in the world.
    pub(super) fn resources(&mut self, resources: Vec<ResourceChange>) -> Vec<Change> {
        let mut changes = Vec::new();
        for resource in resources {
            match resource {
                ResourceChange::Read { origin, objects, mut findings } => {
                    if objects.is_empty() {
                        mark_last_good(&mut findings);
                    }
                    self.note(origin, findings);
                    changes.extend(objects.into_iter().filter_map(|object| {
                        Some(Change { key: object.key()?, kind: ChangeKind::Upsert(object) })
                    }));
                }
                ResourceChange::Gone { origin, key } => {
                    self.note(origin, Vec::new());
                    changes.extend(key.map(|key| Change { key, kind: ChangeKind::Delete }));
                }
            }
        }
        changes
    }

    fn note(&mut self, origin: Arc<str>, findings: Vec<Diagnostic>) {
        match findings.is_empty() {
            true => self.findings.remove(&origin),
            false => self.findings.insert(origin, findings),
        };
    }

    /// All findings of now, by file; the second definition of a key is an error.
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> =
            self.files.values().flat_map(|file| file.diagnostics.iter().cloned()).collect();
        all.extend(self.findings.values().flatten().cloned());
        for key in &self.contested {
            let Some(owner) = self.owners.get(key) else { continue };
            for (name, file) in self.files.iter().filter(|(name, _)| *name != owner) {
                let Some(entry) = file.entries.get(key) else { continue };
                let (document, line) = (entry.document, entry.line);
                let origin = Origin { file: name.clone(), document, line };
                all.push(duplicate(key, &origin, owner));
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
        let mut before = self.files.remove(name).unwrap_or_default();
        let mut found: BTreeMap<ResourceKey, Object> = BTreeMap::new();
        for object in objects {
            let Some(key) = object.key() else { continue };
            if let Some(first) = found.get(&key) {
                let (origin, first) = (&object.meta().origin, &first.meta().origin.file);
                diagnostics.push(duplicate(&key, origin, first));
                continue;
            }
            found.insert(key, object);
        }
        let mut now = File::default();
        let mut changes = Vec::new();
        for (key, object) in found {
            let meta = object.meta();
            let Origin { document, line, .. } = meta.origin;
            let place = (meta.generation, document, line);
            // Same content in the same place says nothing; in another place it moves diagnostics.
            let differs = before
                .entries
                .remove(&key)
                .is_none_or(|old| (old.generation, old.document, old.line) != place);
            let owner = self.owners.entry(key.clone()).or_insert_with(|| name.clone());
            let heir = if owner == name {
                if differs {
                    let kind = ChangeKind::Upsert(object);
                    changes.push(Change { key: key.clone(), kind });
                }
                None
            } else {
                self.contested.insert(key.clone());
                Some(Box::new(object))
            };
            now.entries.insert(key, Entry { generation: place.0, document, line, heir });
        }
        let mut gone = Vec::new();
        for (key, entry) in before.entries {
            match is_broken(&key, &diagnostics) {
                true => {
                    now.kept.insert(key.clone());
                    now.entries.insert(key, entry);
                }
                false => gone.push(key),
            }
        }
        mark_kept(&mut diagnostics, &now.kept);
        now.diagnostics = diagnostics;
        now.entries = packed(now.entries);
        self.files.insert(name.clone(), now);
        for key in gone {
            changes.extend(self.release(name, key));
        }
        changes
    }

    fn file_gone(&mut self, name: &Arc<str>) -> Vec<Change> {
        let Some(file) = self.files.remove(name) else { return Vec::new() };
        file.entries.into_keys().filter_map(|key| self.release(name, key)).collect()
    }

    /// The file no longer defines the key: another file that does takes over, or it is deleted.
    fn release(&mut self, name: &Arc<str>, key: ResourceKey) -> Option<Change> {
        let defining = self.files.values().filter(|file| file.entries.contains_key(&key));
        if defining.count() < 2 {
            self.contested.remove(&key);
        }
        if self.owners.get(&key) != Some(name) {
            return None;
        }
        let heir = self.files.iter_mut().find_map(|(file, entries)| {
            let object = entries.entries.get_mut(&key)?.heir.take()?;
            Some((file.clone(), object))
        });
        let kind = match heir {
            Some((file, object)) => {
                self.owners.insert(key.clone(), file);
                ChangeKind::Upsert(*object)
            }
            None => {
                self.owners.remove(&key);
                ChangeKind::Delete
            }
        };
        Some(Change { key, kind })
    }
}

/// The same map with full nodes: one that was filled in order has them half empty.
fn packed<V>(map: BTreeMap<ResourceKey, V>) -> BTreeMap<ResourceKey, V> {
    map.into_iter().collect()
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

fn mark_last_good(findings: &mut [Diagnostic]) {
    for found in findings.iter_mut().filter(|found| found.severity == Severity::Error) {
        if !found.help.is_empty() {
            found.help.push(' ');
        }
        found.help.push_str("A valid version from before stays in force.");
    }
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

fn duplicate(key: &ResourceKey, origin: &Origin, first: &str) -> Diagnostic {
    let message = format!("{key} is already defined in {first}");
    Diagnostic::new(Severity::Error, DUPLICATE, origin, "metadata.name", message)
        .with_resource(key.clone())
        .with_help("Remove one of the two; the first stays in force.")
}
