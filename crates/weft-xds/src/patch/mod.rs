//! Patches of xDS messages: any message of Envoy's read from a user's JSON, with the place of each
//! mistake, and merged into a typed one by reflection.
//!
//! `read` turns JSON into a message, `rules` says what Envoy itself would refuse, `merge` puts one
//! message into another. Must not know Istio's kinds, nor what any message means.

mod merge;
mod read;
mod rules;

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, Value};

use crate::canonical::canonical_in;
use crate::json;
use crate::pb::google::protobuf::Any;

pub use merge::{Lists, Mismatch, any as merge_any};

/// Something wrong with a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Field path under the one that the reader was given.
    pub path: String,
    pub reason: String,
    /// The patch cannot be used; else the field was left out.
    pub fatal: bool,
}

/// How much of a message a patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A message of its own: what Envoy requires must be there.
    Whole,
    /// Fields to be merged into a message that has the rest.
    Part,
}

/// A message that was read from JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch(DynamicMessage);

/// Reads a message of type `M`. `path` is the JSON's own place. `None` when a problem is fatal.
pub fn read<M: Name>(
    json: &serde_json::Value,
    extent: Extent,
    path: &str,
) -> (Option<Patch>, Vec<Problem>) {
    read::read(&M::full_name(), json, extent, path)
}

impl Patch {
    /// The typed message; `None` when `M` is not the patch's type.
    pub fn to<M: Message + Name + Default>(&self) -> Option<M> {
        (self.0.descriptor().full_name() == M::full_name())
            .then(|| M::decode(&self.encode()[..]).ok())
            .flatten()
    }

    /// Bytes that are the same for the same message.
    fn encode(&self) -> bytes::Bytes {
        let name = self.0.descriptor().full_name().to_owned();
        canonical_in(json::extensions(), &name, self.0.encode_to_vec())
    }

    /// Merges the patch's fields into `target`, as protobuf merges, but that durations and wrapped
    /// values are replaced.
    pub fn merge_into<M: Message + Name + Default>(&self, target: &mut M, lists: Lists) {
        let descriptor = self.0.descriptor();
        debug_assert_eq!(descriptor.full_name(), M::full_name());
        let Ok(mut whole) = DynamicMessage::decode(descriptor, &target.encode_to_vec()[..]) else {
            return;
        };
        merge::into(&mut whole, &self.0, lists);
        if let Ok(merged) = M::decode(&whole.encode_to_vec()[..]) {
            *target = merged;
        }
    }

    /// Takes out what `reader` does not act on, and says what that was: field paths below `path`.
    /// `false` when nothing sensible is left: the patch's own configuration is of a type that is
    /// not known to it.
    pub fn keep_only(
        &mut self,
        reader: &dyn Reader,
        path: &str,
        left_out: &mut Vec<LeftOut>,
    ) -> bool {
        keep_only(&mut self.0, reader, path, left_out)
    }
}

/// Who takes a configuration, and what of it.
pub trait Reader {
    /// Is the message type (of an `Any`) one it knows?
    fn knows(&self, type_name: &str) -> bool;
    /// Does the field of a message change what it does?
    fn acts_on(&self, type_name: &str, field: &str) -> bool;
}

/// What was taken out of a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub path: String,
    /// The type of an extension that is not known; else a field without effect.
    pub extension: Option<String>,
}

fn keep_only(
    message: &mut DynamicMessage,
    reader: &dyn Reader,
    path: &str,
    left_out: &mut Vec<LeftOut>,
) -> bool {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        return keep_of_any(message, reader, path, left_out);
    }
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        let at = format!("{path}.{}", field.name());
        if !reader.acts_on(descriptor.full_name(), field.name()) {
            left_out.push(LeftOut { path: at, extension: None });
            message.clear_field(&field);
            continue;
        }
        let Kind::Message(_) = field.kind() else { continue };
        match message.get_field_mut(&field) {
            Value::Message(inner) => {
                let kept = keep_only(inner, reader, &at, left_out);
                // An extension point (`typed_config`) without its configuration is nothing.
                if !kept {
                    return false;
                }
            }
            Value::List(items) => {
                let mut index = 0;
                items.retain_mut(|item| {
                    let at = format!("{at}[{index}]");
                    index += 1;
                    match item {
                        Value::Message(inner) => keep_only(inner, reader, &at, left_out),
                        _ => true,
                    }
                });
            }
            Value::Map(entries) => entries.retain(|key, item| match item {
                Value::Message(inner) => {
                    let at = match key.as_str() {
                        Some(key) => format!("{at}[{key:?}]"),
                        None => at.clone(),
                    };
                    keep_only(inner, reader, &at, left_out)
                }
                _ => true,
            }),
            _ => {}
        }
    }
    true
}

fn keep_of_any(
    message: &mut DynamicMessage,
    reader: &dyn Reader,
    path: &str,
    left_out: &mut Vec<LeftOut>,
) -> bool {
    let Ok(any) = message.transcode_to::<Any>() else { return false };
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    if !reader.knows(type_name) {
        let extension = Some(type_name.to_owned());
        left_out.push(LeftOut { path: path.to_owned(), extension });
        return false;
    }
    let Some(descriptor) = json::extensions().get_message_by_name(type_name) else { return true };
    let Ok(mut inner) = DynamicMessage::decode(descriptor, &any.value[..]) else { return false };
    let before = left_out.len();
    let kept = keep_only(&mut inner, reader, path, left_out);
    if left_out.len() > before {
        let value = Patch(inner).encode().to_vec();
        let any = Any { type_url: any.type_url, value };
        // The same descriptor wrote it.
        let mut again = DynamicMessage::new(message.descriptor());
        let _ = again.transcode_from(&any);
        *message = again;
    }
    kept
}

#[cfg(test)]
mod tests;
