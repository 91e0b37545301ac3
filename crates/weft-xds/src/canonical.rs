//! Deterministic encoding of a message.
//!
//! prost keeps map fields in `HashMap`s, so encoding one value twice can give
//! different bytes. Resource versions are content hashes and identical proxies
//! share bytes, therefore map entries are put in order here, at any depth and
//! inside `Any`s. Everything else stays byte for byte.
//! Must not know sessions.

use bytes::Bytes;
use std::sync::{Arc, OnceLock};

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use crate::json;

/// Depth at which nested messages are copied unchanged; xDS nests far less.
const DEPTH_MAX: usize = 64;

/// Whoever writes resources writes many: their descriptors stay.
fn descriptors() -> &'static DescriptorPool {
    static DESCRIPTORS: OnceLock<Arc<DescriptorPool>> = OnceLock::new();
    DESCRIPTORS.get_or_init(json::pool)
}

/// Puts the map entries of an encoded message of type `full_name` in order.
/// Bytes that do not parse, or a type we have no descriptor for, stay as they are.
pub(crate) fn canonical(full_name: &str, encoded: Vec<u8>) -> Bytes {
    canonical_in(descriptors(), full_name, encoded)
}

/// As [`canonical`], for types of another set of descriptors.
pub(crate) fn canonical_in(pool: &DescriptorPool, full_name: &str, encoded: Vec<u8>) -> Bytes {
    let Some(descriptor) = pool.get_message_by_name(full_name) else {
        return Bytes::from(encoded);
    };
    let mut out = Vec::with_capacity(encoded.len());
    match message(&descriptor, &encoded, &mut out, DEPTH_MAX) {
        Some(()) => Bytes::from(out),
        None => Bytes::from(encoded),
    }
}

/// A run of entries of one map field, held back until it can be sorted.
struct MapRun {
    tag: u32,
    entries: Vec<Vec<u8>>,
}

fn message(
    descriptor: &MessageDescriptor,
    mut input: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Option<()> {
    if depth == 0 {
        return None;
    }
    if descriptor.full_name() == "google.protobuf.Any" {
        return any(descriptor.parent_pool(), input, out, depth);
    }
    let mut run: Option<MapRun> = None;
    while !input.is_empty() {
        let (tag, wire_type) = decode_key(&mut input).ok()?;
        if run.as_ref().is_some_and(|run| run.tag != tag) {
            flush(run.take(), out);
        }
        if wire_type != WireType::LengthDelimited {
            encode_key(tag, wire_type, out);
            copy_scalar(wire_type, &mut input, out)?;
            continue;
        }
        let body = take_delimited(&mut input)?;
        let field = descriptor.get_field(tag);
        let nested = field.as_ref().and_then(|field| match field.kind() {
            Kind::Message(nested) => Some((field.is_map(), nested)),
            _ => None,
        });
        match nested {
            None => write_delimited(tag, body, out),
            Some((is_map, nested)) => {
                let mut inner = Vec::with_capacity(body.len());
                message(&nested, body, &mut inner, depth - 1)?;
                if is_map {
                    run.get_or_insert_with(|| MapRun { tag, entries: Vec::new() })
                        .entries
                        .push(inner);
                } else {
                    write_delimited(tag, &inner, out);
                }
            }
        }
    }
    flush(run, out);
    Some(())
}

/// `Any`: field 1 is the type URL, field 2 an encoded message of that type.
fn any(pool: &DescriptorPool, mut input: &[u8], out: &mut Vec<u8>, depth: usize) -> Option<()> {
    let mut descriptor = None;
    while !input.is_empty() {
        let (tag, wire_type) = decode_key(&mut input).ok()?;
        if wire_type != WireType::LengthDelimited {
            return None;
        }
        let body = take_delimited(&mut input)?;
        match (tag, &descriptor) {
            (1, _) => {
                let url = std::str::from_utf8(body).ok()?;
                let full_name = url.rsplit('/').next().unwrap_or(url);
                descriptor = pool.get_message_by_name(full_name);
                write_delimited(tag, body, out);
            }
            (2, Some(descriptor)) => {
                let mut inner = Vec::with_capacity(body.len());
                message(descriptor, body, &mut inner, depth - 1)?;
                write_delimited(tag, &inner, out);
            }
            _ => write_delimited(tag, body, out),
        }
    }
    Some(())
}

fn flush(run: Option<MapRun>, out: &mut Vec<u8>) {
    let Some(mut run) = run else { return };
    run.entries.sort_unstable();
    for entry in &run.entries {
        write_delimited(run.tag, entry, out);
    }
}

fn take_delimited<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(decode_varint(input).ok()?).ok()?;
    if len > input.len() {
        return None;
    }
    let (body, rest) = input.split_at(len);
    *input = rest;
    Some(body)
}

fn write_delimited(tag: u32, body: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

fn copy_scalar(wire_type: WireType, input: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    let len = match wire_type {
        WireType::Varint => {
            encode_varint(decode_varint(input).ok()?, out);
            return Some(());
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        // proto3 has no groups, and delimited fields are handled by the caller.
        WireType::StartGroup | WireType::EndGroup | WireType::LengthDelimited => return None,
    };
    if len > input.len() {
        return None;
    }
    let (body, rest) = input.split_at(len);
    out.extend_from_slice(body);
    *input = rest;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::canonical;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::core::v3::Metadata;
    use crate::pb::google::protobuf::{Struct, Value, value::Kind};
    use prost::Message;
    use std::collections::HashMap;

    fn cluster(order: &[usize]) -> Cluster {
        // Each map gets its own hasher, hence its own order of iteration.
        let fields = order
            .iter()
            .map(|i| (format!("k{i}"), Value { kind: Some(Kind::NumberValue(*i as f64)) }))
            .collect::<HashMap<_, _>>();
        let filter_metadata =
            order.iter().map(|i| (format!("f{i}"), Struct { fields: fields.clone() })).collect();
        Cluster {
            name: "c".into(),
            metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
            ..Cluster::default()
        }
    }

    #[test]
    fn maps_come_out_in_one_order() {
        let forward: Vec<usize> = (0..9).collect();
        let backward: Vec<usize> = (0..9).rev().collect();
        let first = canonical("envoy.config.cluster.v3.Cluster", cluster(&forward).encode_to_vec());
        for _ in 0..8 {
            let again = cluster(&backward);
            let bytes = canonical("envoy.config.cluster.v3.Cluster", again.encode_to_vec());
            assert_eq!(first, bytes);
            assert_eq!(Cluster::decode(&bytes[..]).unwrap(), again);
        }
    }

    #[test]
    fn garbage_stays_as_it_is() {
        for garbage in [&b"\x0a\xff"[..], b"\xff\xff\xff", b"\x0b\x0c"] {
            assert_eq!(
                &canonical("envoy.config.cluster.v3.Cluster", garbage.to_vec())[..],
                garbage
            );
            assert_eq!(&canonical("no.such.Type", garbage.to_vec())[..], garbage);
        }
    }
}
