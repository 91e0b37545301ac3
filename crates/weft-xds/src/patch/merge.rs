//! One message into another.

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, Value};

use crate::json;
use crate::pb::google::protobuf::Any;

/// What happens to a list that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    Append,
    Replace,
}

/// Two configurations of different types cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {patch} cannot be merged into a {target}")]
pub struct Mismatch {
    pub target: String,
    pub patch: String,
}

/// Messages that are one value: merging their fields would mix two.
fn is_one_value(name: &str) -> bool {
    name.starts_with("google.protobuf.")
        && (name.ends_with("Value") || matches!(&name[16..], "Duration" | "Timestamp" | "Any"))
}

pub(super) fn into(target: &mut DynamicMessage, patch: &DynamicMessage, lists: Lists) {
    for (field, value) in patch.fields() {
        if field.is_list() {
            let Value::List(more) = value else { continue };
            match target.get_field_mut(&field) {
                Value::List(items) if lists == Lists::Append => items.extend(more.iter().cloned()),
                there => *there = value.clone(),
            }
        } else if field.is_map() {
            let Value::Map(more) = value else { continue };
            if let Value::Map(entries) = target.get_field_mut(&field) {
                entries.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
        } else {
            let merges = match field.kind() {
                Kind::Message(kind) => target.has_field(&field) && !is_one_value(kind.full_name()),
                _ => false,
            };
            match (merges, value) {
                (true, Value::Message(inner)) => {
                    if let Value::Message(there) = target.get_field_mut(&field) {
                        into(there, inner, lists);
                    }
                }
                // Also ends what else of a `oneof` was set.
                _ => target.set_field(&field, value.clone()),
            }
        }
    }
}

/// Merges the configuration of an extension into another of the same type.
///
/// # Errors
/// They are of different types.
pub fn any(target: &mut Any, patch: &Any, lists: Lists) -> Result<(), Mismatch> {
    let name = |any: &Any| any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
    let (target_name, patch_name) = (name(target), name(patch));
    if target_name != patch_name {
        return Err(Mismatch { target: target_name, patch: patch_name });
    }
    let Some(descriptor) = json::extensions().get_message_by_name(&target_name) else {
        return Ok(());
    };
    let read = |value: &[u8]| DynamicMessage::decode(descriptor.clone(), value);
    let (Ok(mut whole), Ok(more)) = (read(&target.value), read(&patch.value)) else {
        return Ok(());
    };
    into(&mut whole, &more, lists);
    let name = whole.descriptor().full_name().to_owned();
    let bytes = crate::canonical::canonical_in(json::extensions(), &name, whole.encode_to_vec());
    target.value = bytes.to_vec();
    Ok(())
}
