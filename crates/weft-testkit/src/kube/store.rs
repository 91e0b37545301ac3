//! What stands behind a Kubernetes API: objects, one counter of versions, and the history that
//! watches and paged lists are served from. Pure; time is an argument.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

use super::kinds::Kind;
use super::select::Selectors;

/// Changes that are remembered; older ones are compacted away.
const HISTORY_MAX: usize = 10_000;

/// Why a request is refused: the API's `Status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Refusal { code, reason, message: message.into() }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

type Answer = Result<Value, Refusal>;

/// Index of a kind in [`Store::kinds`], namespace (empty for cluster kinds), name.
type Key = (usize, String, String);

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) kind: usize,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// The `/status` subresource.
    pub(super) status: bool,
}

pub(super) struct Change {
    version: u64,
    key: Key,
    before: Option<Value>,
    after: Option<Value>,
}

/// How a PATCH is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchStyle {
    /// RFC 7396.
    Merge,
    /// Server-side apply, without field ownership: a merge that creates what is missing.
    Apply,
}

pub(super) struct Store {
    pub(super) kinds: Vec<Kind>,
    objects: BTreeMap<Key, Value>,
    history: VecDeque<Change>,
    /// Of the last change.
    pub(super) version: u64,
    /// Nothing up to here can be read back.
    compacted: u64,
    names: u64,
}

impl Store {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        Store {
            kinds,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            version: 1000,
            compacted: 999,
            names: 0,
        }
    }

    /// Forgets the history: every older version is answered 410 Gone.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    pub(super) fn get(&self, target: &Target) -> Answer {
        match self.objects.get(&target.key()) {
            Some(object) => Ok(self.shown(target, object)),
            None => Err(self.missing(target)),
        }
    }

    pub(super) fn create(&mut self, target: &Target, mut body: Value, now: &str) -> Answer {
        let mut target = target.clone();
        let meta = metadata(&mut body)?;
        if meta.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::new(400, "BadRequest", why));
        }
        target.name = match (text(meta, "name"), text(meta, "generateName")) {
            (name, _) if !name.is_empty() => name,
            (_, prefix) if !prefix.is_empty() => {
                self.names += 1;
                format!("{prefix}{:05}", self.names)
            }
            _ => return Err(Refusal::new(422, "Invalid", "name or generateName is required")),
        };
        let namespace = text(meta, "namespace");
        if !namespace.is_empty() && namespace != target.namespace {
            let why = "the namespace of the object does not match the namespace of the request";
            return Err(Refusal::new(400, "BadRequest", why));
        }
        if self.objects.contains_key(&target.key()) {
            let why = format!("{} {:?} already exists", self.kind(&target).plural, target.name);
            return Err(Refusal::new(409, "AlreadyExists", why));
        }
        meta.insert("name".into(), target.name.clone().into());
        if self.kind(&target).namespaced {
            meta.insert("namespace".into(), target.namespace.clone().into());
        }
        meta.insert("uid".into(), format!("uid-{}", self.version + 1).into());
        meta.entry("creationTimestamp").or_insert_with(|| now.into());
        meta.insert("generation".into(), 1.into());
        Ok(self.put(&target, Some(body)))
    }

    /// PUT: whole object, or its status alone.
    pub(super) fn replace(&mut self, target: &Target, body: Value) -> Answer {
        let Some(before) = self.objects.get(&target.key()).cloned() else {
            return Err(self.missing(target));
        };
        self.update(target, &before, body)
    }

    pub(super) fn patch(
        &mut self,
        target: &Target,
        style: PatchStyle,
        patch: Value,
        now: &str,
    ) -> Answer {
        let Some(before) = self.objects.get(&target.key()).cloned() else {
            return match style {
                PatchStyle::Apply if !target.status => self.create(target, patch, now),
                _ => Err(self.missing(target)),
            };
        };
        let mut after = before.clone();
        // A version in a patch is a precondition; without one there is none.
        let wanted = patch.pointer("/metadata/resourceVersion").cloned();
        merge(&mut after, patch);
        metadata(&mut after)?.insert("resourceVersion".into(), wanted.unwrap_or_default());
        self.update(target, &before, after)
    }

    pub(super) fn delete(&mut self, target: &Target) -> Answer {
        if !self.objects.contains_key(&target.key()) {
            return Err(self.missing(target));
        }
        Ok(self.put(target, None))
    }

    fn update(&mut self, target: &Target, before: &Value, mut body: Value) -> Answer {
        let current = &before["metadata"];
        let meta = metadata(&mut body)?;
        let wanted = text(meta, "resourceVersion");
        if !wanted.is_empty() && Some(wanted.as_str()) != current["resourceVersion"].as_str() {
            let why = "the object has been modified; please apply your changes to the latest \
                       version and try again";
            return Err(Refusal::new(409, "Conflict", why));
        }
        if text(meta, "name") != target.name {
            return Err(Refusal::new(400, "BadRequest", "the name of the object is not the URL's"));
        }
        for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
            meta.insert(field.into(), current[field].clone());
        }
        let body = match (target.status, self.kind(target).status) {
            (true, _) => {
                let mut whole = before.clone();
                set(&mut whole, "status", body.get("status").cloned());
                whole
            }
            (false, true) => {
                set(&mut body, "status", before.get("status").cloned());
                body
            }
            (false, false) => body,
        };
        let mut body = body;
        for field in ["apiVersion", "kind"] {
            set(&mut body, field, before.get(field).cloned());
        }
        // Nothing changed: no new version, no event.
        if body == *before {
            return Ok(self.shown(target, before));
        }
        if !target.status && beside_metadata(&body) != beside_metadata(before) {
            let generation = current["generation"].as_i64().unwrap_or(0) + 1;
            metadata(&mut body)?.insert("generation".into(), generation.into());
        }
        Ok(self.put(target, Some(body)))
    }

    fn put(&mut self, target: &Target, after: Option<Value>) -> Value {
        self.version += 1;
        let key = target.key();
        let before = self.objects.remove(&key);
        let mut object = after.clone().or_else(|| before.clone()).unwrap_or_default();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object["kind"] = self.kind(target).kind.clone().into();
        let after = after.map(|_| object.clone());
        if let Some(after) = &after {
            self.objects.insert(key.clone(), after.clone());
        }
        // What is deleted is shown in the version of its deletion.
        let before = match &after {
            Some(_) => before,
            None => Some(object.clone()),
        };
        self.history.push_back(Change { version: self.version, key, before, after });
        if self.history.len() > HISTORY_MAX {
            self.compacted = self.history.pop_front().map_or(self.compacted, |c| c.version);
        }
        self.shown(target, &object)
    }

    /// A page of a list. The continue token names the version of the first page, and later pages
    /// show the objects of that version.
    pub(super) fn list(
        &self,
        target: &Target,
        selectors: &Selectors,
        limit: usize,
        token: Option<&str>,
    ) -> Answer {
        let (version, after) = match token {
            None => (self.version, None),
            Some(token) => {
                let wrong = || Refusal::new(400, "BadRequest", "continue key is not valid");
                let mut parts = token.splitn(3, ':');
                let mut next = || parts.next().ok_or_else(wrong);
                let version: u64 = next()?.parse().map_err(|_| wrong())?;
                (version, Some((next()?.to_owned(), next()?.to_owned())))
            }
        };
        if token.is_some() && version <= self.compacted && version < self.version {
            return Err(expired("The provided continue parameter is too old"));
        }
        let objects = self.objects_at(target, version);
        let rest: Vec<_> = objects
            .iter()
            .filter(|((_, namespace, name), _)| {
                after.as_ref().is_none_or(|(ns, n)| (namespace, name) > (ns, n))
            })
            .filter(|(_, object)| selectors.matches(object))
            .collect();
        let page = &rest[..limit.min(rest.len())];
        let mut meta = json!({ "resourceVersion": version.to_string() });
        if page.len() < rest.len()
            && let Some(((_, namespace, name), _)) = page.last()
        {
            meta["continue"] = format!("{version}:{namespace}:{name}").into();
            if selectors.is_empty() {
                meta["remainingItemCount"] = (rest.len() - page.len()).into();
            }
        }
        // Items of a list carry neither apiVersion nor kind.
        let items: Vec<Value> = page
            .iter()
            .map(|(_, object)| {
                let mut item = (*object).clone();
                set(&mut item, "apiVersion", None);
                set(&mut item, "kind", None);
                item
            })
            .collect();
        let kind = self.kind(target);
        Ok(json!({
            "kind": format!("{}List", kind.kind), "apiVersion": api_version(kind, &target.version),
            "metadata": meta, "items": items,
        }))
    }

    /// The kind's objects as they were at a version, by undoing what came later.
    fn objects_at(&self, target: &Target, version: u64) -> BTreeMap<Key, Value> {
        let in_place = |key: &Key| {
            key.0 == target.kind && (target.namespace.is_empty() || key.1 == target.namespace)
        };
        let now = self.objects.iter().filter(|(key, _)| in_place(key));
        let mut objects: BTreeMap<Key, Value> =
            now.map(|(key, object)| (key.clone(), object.clone())).collect();
        let later = self.history.iter().rev().take_while(|change| change.version > version);
        for change in later.filter(|change| in_place(&change.key)) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// Events after a version, oldest first: type and object.
    pub(super) fn since(
        &self,
        target: &Target,
        selectors: &Selectors,
        version: u64,
    ) -> Result<Vec<(&'static str, Value)>, Refusal> {
        if version < self.compacted {
            return Err(expired(&format!("too old resource version: {version}")));
        }
        if version > self.version {
            return Err(Refusal::new(504, "Timeout", "Too large resource version"));
        }
        let later = self.history.iter().filter(|change| {
            change.version > version
                && change.key.0 == target.kind
                && (target.namespace.is_empty() || change.key.1 == target.namespace)
        });
        let matches =
            |object: &Option<Value>| object.as_ref().is_some_and(|one| selectors.matches(one));
        let mut events = Vec::new();
        for change in later {
            // What leaves the selection is deleted for this watch, in its newest form.
            let (event, object) = match (matches(&change.before), matches(&change.after)) {
                (false, true) => ("ADDED", &change.after),
                (true, true) => ("MODIFIED", &change.after),
                (true, false) if change.after.is_some() => ("DELETED", &change.after),
                (true, false) => ("DELETED", &change.before),
                (false, false) => continue,
            };
            let object = object.as_ref().map(|object| self.shown(target, object));
            events.push((event, object.unwrap_or_default()));
        }
        Ok(events)
    }

    /// Everything there is, as a watch from version 0 begins.
    pub(super) fn all(&self, target: &Target, selectors: &Selectors) -> Vec<Value> {
        let objects = self.objects_at(target, self.version);
        let selected = objects.values().filter(|object| selectors.matches(object));
        selected.map(|object| self.shown(target, object)).collect()
    }

    pub(super) fn bookmark(&self, target: &Target, initial_end: bool) -> Value {
        let kind = self.kind(target);
        let mut meta = json!({ "resourceVersion": self.version.to_string() });
        if initial_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        json!({
            "kind": kind.kind, "apiVersion": api_version(kind, &target.version), "metadata": meta,
        })
    }

    fn kind(&self, target: &Target) -> &Kind {
        &self.kinds[target.kind]
    }

    /// In the version that was asked for.
    fn shown(&self, target: &Target, object: &Value) -> Value {
        let mut shown = object.clone();
        shown["apiVersion"] = api_version(self.kind(target), &target.version).into();
        shown
    }

    fn missing(&self, target: &Target) -> Refusal {
        let why = format!("{} {:?} not found", self.kind(target).plural, target.name);
        Refusal::new(404, "NotFound", why)
    }
}

impl Target {
    fn key(&self) -> Key {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

fn expired(message: &str) -> Refusal {
    Refusal::new(410, "Expired", message)
}

pub(super) fn api_version(kind: &Kind, version: &str) -> String {
    match kind.group.as_str() {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    let wrong = || Refusal::new(400, "BadRequest", "the body is no object with metadata");
    let object = object.as_object_mut().ok_or_else(wrong)?;
    let meta = object.entry("metadata").or_insert_with(|| json!({}));
    meta.as_object_mut().ok_or_else(wrong)
}

fn text(map: &Map<String, Value>, field: &str) -> String {
    map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(field.to_owned(), value),
        None => map.shift_remove(field),
    };
}

/// What `metadata.generation` counts changes of.
fn beside_metadata(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    let counted = |name: &str| !matches!(name, "metadata" | "status" | "apiVersion" | "kind");
    fields.filter(|(name, _)| counted(name)).collect()
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        match value {
            Value::Null => set(target, &name, None),
            value => merge(&mut target[name.as_str()], value),
        }
    }
}
