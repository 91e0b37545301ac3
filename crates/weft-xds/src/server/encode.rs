//! A response as one gRPC message, in chunks that are made when they can be sent.
//!
//! A first configuration is megabytes, and a thousand proxies may wait for theirs at once: nothing
//! of it is kept encoded, and the bodies of large resources are sent as the bytes that all share.
//! Must not know streams.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::{encode_length_delimiter, length_delimiter_len};

use crate::session::Response;
use crate::wire;

/// A chunk that has so many bytes is full.
const CHUNK: usize = 12 * 1024;
/// Bodies from this size on are chunks of their own, not copied.
const SHARED_MIN: usize = 2 * 1024;
/// What a chunk takes: the last resource may pass [`CHUNK`] by a body and its framing.
const CHUNK_CAPACITY: usize = CHUNK + SHARED_MIN + 2 * 1024;
/// Compression flag and length, gRPC's head of a message.
const HEAD: usize = 5;

/// The chunks of a message, in order.
pub(super) struct Chunks {
    /// Everything but the resources.
    head: Bytes,
    resources: Resources,
    /// A body whose framing was in the chunk before.
    body: Option<Bytes>,
    /// Bytes to come.
    left: usize,
}

enum Resources {
    Sotw(std::vec::IntoIter<wire::Any>),
    Delta(std::vec::IntoIter<wire::Resource>),
}

impl Chunks {
    /// `None` when gRPC has no word for a message of this length (4 GiB).
    pub(super) fn new(response: Response) -> Option<Chunks> {
        let length = response.encoded_len();
        let (rest, resources) = match response {
            Response::Sotw(mut response) => {
                let resources = std::mem::take(&mut response.resources);
                (response.encode_to_vec(), Resources::Sotw(resources.into_iter()))
            }
            Response::Delta(mut response) => {
                let resources = std::mem::take(&mut response.resources);
                (response.encode_to_vec(), Resources::Delta(resources.into_iter()))
            }
        };
        let mut head = BytesMut::with_capacity(HEAD + rest.len());
        head.put_u8(0);
        head.put_u32(u32::try_from(length).ok()?);
        head.put_slice(&rest);
        Some(Chunks { head: head.freeze(), resources, body: None, left: HEAD + length })
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let chunk = match self.body.take() {
            Some(body) => body,
            None if self.left == 0 => return None,
            None if self.head.len() >= CHUNK => std::mem::take(&mut self.head),
            None => self.gather(),
        };
        self.left -= chunk.len();
        Some(chunk)
    }
}

impl Chunks {
    fn gather(&mut self) -> Bytes {
        let mut chunk = BytesMut::with_capacity(self.left.min(CHUNK_CAPACITY));
        chunk.put(std::mem::take(&mut self.head));
        while chunk.len() < CHUNK {
            let Some(body) = self.resources.frame_next(&mut chunk) else { break };
            if body.len() >= SHARED_MIN {
                self.body = Some(body);
                break;
            }
            chunk.put(body);
        }
        chunk.freeze()
    }
}

impl Resources {
    /// Writes what comes before the next resource's body, which is the last of its message, and
    /// gives the body.
    fn frame_next(&mut self, into: &mut BytesMut) -> Option<Bytes> {
        match self {
            Resources::Sotw(resources) => {
                // DiscoveryResponse.resources
                Some(frame_any(2, resources.next()?, into))
            }
            Resources::Delta(resources) => {
                let wire::Resource { version, resource, name } = resources.next()?;
                let any = resource.as_ref().map_or(0, |any| field_len(any.encoded_len()));
                // DeltaDiscoveryResponse.resources; in it version, name, resource.
                put_head(2, text_len(&version) + text_len(&name) + any, into);
                put_text(1, &version, into);
                put_text(3, &name, into);
                Some(resource.map_or_else(Bytes::new, |any| frame_any(2, any, into)))
            }
        }
    }
}

fn frame_any(tag: u8, any: wire::Any, into: &mut BytesMut) -> Bytes {
    put_head(tag, any.encoded_len(), into);
    put_text(1, &any.type_url, into);
    if !any.value.is_empty() {
        put_head(2, any.value.len(), into);
    }
    any.value
}

/// Tags are below 16, so a key is one byte.
fn put_head(tag: u8, length: usize, into: &mut BytesMut) {
    into.put_u8(tag << 3 | 2);
    // It can only fail for want of space, and this buffer grows.
    _ = encode_length_delimiter(length, into);
}

/// An empty text is not sent.
fn put_text(tag: u8, text: &str, into: &mut BytesMut) {
    if !text.is_empty() {
        put_head(tag, text.len(), into);
        into.put_slice(text.as_bytes());
    }
}

fn field_len(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { field_len(text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies of all sizes around the limits, with and without names.
    fn delta(sizes: &[usize]) -> wire::DeltaDiscoveryResponse {
        let resource = |(index, size): (usize, &usize)| wire::Resource {
            version: if index % 3 == 0 { String::new() } else { format!("{index:016x}") },
            resource: (index % 5 != 4).then(|| wire::Any {
                type_url: crate::type_url::CLUSTER.into(),
                value: vec![index as u8; *size].into(),
            }),
            name: "n".repeat(index * 40),
        };
        wire::DeltaDiscoveryResponse {
            system_version_info: "v".into(),
            resources: sizes.iter().enumerate().map(resource).collect(),
            type_url: crate::type_url::CLUSTER.into(),
            removed_resources: vec!["gone".into(), "too".into()],
            nonce: "7".into(),
            control_plane: None,
        }
    }

    fn message(response: impl Into<Response>) -> (Vec<Bytes>, Vec<u8>) {
        let chunks: Vec<Bytes> = Chunks::new(response.into()).unwrap().collect();
        let message = chunks.concat();
        assert_eq!(message[0], 0);
        let length = u32::from_be_bytes(message[1..HEAD].try_into().unwrap());
        assert_eq!(length as usize, message.len() - HEAD);
        let message = message[HEAD..].to_vec();
        (chunks, message)
    }

    #[test]
    fn the_chunks_are_the_message() {
        let sizes = [0, 1, 2047, 2048, 2049, 0, 12_000, 300_000, 5, 127, 128, 16_383, 16_384];
        for count in 0..=sizes.len() {
            let response = delta(&sizes[..count]);
            let (_, message) = message(response.clone());
            let decoded = wire::DeltaDiscoveryResponse::decode(&message[..]).unwrap();
            assert_eq!(decoded, response, "{count} resources");
        }
    }

    #[test]
    fn state_of_the_world_too() {
        let any = |size: usize| wire::Any { type_url: "t".into(), value: vec![1; size].into() };
        let response = wire::DiscoveryResponse {
            version_info: "v".into(),
            resources: [0, 3, 2048, 50_000, 9].map(any).into(),
            type_url: "t".into(),
            nonce: "1".into(),
            control_plane: None,
        };
        let (_, message) = message(response.clone());
        assert_eq!(wire::DiscoveryResponse::decode(&message[..]).unwrap(), response);
    }

    #[test]
    fn large_bodies_are_shared_and_small_ones_gathered() {
        let response = delta(&[100_000]);
        let body = response.resources[0].resource.as_ref().unwrap().value.clone();
        let (chunks, _) = message(response);
        assert!(chunks.iter().any(|chunk| chunk.as_ptr() == body.as_ptr()));
        let (chunks, _) = message(delta(&[100; 50]));
        assert!(chunks.len() < 10, "{} chunks", chunks.len());
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_CAPACITY));
    }

    #[test]
    fn many_removals_are_sent_too() {
        let response = wire::DeltaDiscoveryResponse {
            removed_resources: (0..5000).map(|number| format!("cluster-{number}")).collect(),
            ..delta(&[10, 5000])
        };
        let (_, message) = message(response.clone());
        assert_eq!(wire::DeltaDiscoveryResponse::decode(&message[..]).unwrap(), response);
    }
}
