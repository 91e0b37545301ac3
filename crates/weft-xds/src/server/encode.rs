//! A response as one gRPC message, in chunks that are made when they can be sent.
//!
//! A first configuration is megabytes, and a thousand proxies may wait for theirs at once: nothing
//! of it is kept encoded, and the bodies of large resources are sent as the bytes that all share.
//! Must not know streams.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::{encode_length_delimiter, length_delimiter_len};

use crate::session::{Mode, Push, Resource, Set};
use crate::wire;

/// A chunk that has so many bytes is full. Larger than what the HTTP/2 library keeps of a connection
/// (16 KiB): an allocator that sorts by size would find the one between the others for ever.
const CHUNK: usize = 28 * 1024;
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

/// What of a response is still to be sent.
struct Resources {
    mode: Mode,
    url: &'static str,
    set: Set,
    next: usize,
}

impl Chunks {
    /// `None` when gRPC has no word for a message of this length (4 GiB).
    pub(super) fn new(push: Push) -> Option<Chunks> {
        let Push { mode, ty, version, nonce, resources: set, removed } = push;
        let type_url = ty.url().to_owned();
        let rest = match mode {
            Mode::Sotw => wire::DiscoveryResponse {
                version_info: version,
                type_url,
                nonce,
                ..wire::DiscoveryResponse::default()
            }
            .encode_to_vec(),
            Mode::Delta => wire::DeltaDiscoveryResponse {
                system_version_info: version,
                type_url,
                removed_resources: removed.iter().map(|name| name.to_string()).collect(),
                nonce,
                ..wire::DeltaDiscoveryResponse::default()
            }
            .encode_to_vec(),
        };
        let resources = Resources { mode, url: ty.url(), set, next: 0 };
        let length = rest.len() + resources.len();
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
    /// Of all of them. Bytes.
    fn len(&self) -> usize {
        let one = |resource: &Resource| match self.mode {
            Mode::Sotw => field_len(self.any_len(&resource.body)),
            Mode::Delta => field_len(self.named_len(resource)),
        };
        self.set.iter().map(one).sum()
    }

    /// Writes what comes before the next resource's body, which is the last of its message, and
    /// gives the body.
    fn frame_next(&mut self, into: &mut BytesMut) -> Option<Bytes> {
        let resource = self.set.at(self.next)?;
        match self.mode {
            // DiscoveryResponse.resources
            Mode::Sotw => self.frame_any(2, &resource.body, into),
            Mode::Delta => {
                // DeltaDiscoveryResponse.resources; in it version, name, resource.
                put_head(2, self.named_len(resource), into);
                put_text(1, &resource.version, into);
                put_text(3, &resource.name, into);
                self.frame_any(2, &resource.body, into);
            }
        }
        let body = resource.body.clone();
        self.next += 1;
        Some(body)
    }

    fn frame_any(&self, tag: u8, body: &Bytes, into: &mut BytesMut) {
        put_head(tag, self.any_len(body), into);
        put_text(1, self.url, into);
        if !body.is_empty() {
            put_head(2, body.len(), into);
        }
    }

    fn named_len(&self, resource: &Resource) -> usize {
        text_len(&resource.version)
            + text_len(&resource.name)
            + field_len(self.any_len(&resource.body))
    }

    fn any_len(&self, body: &Bytes) -> usize {
        text_len(self.url) + if body.is_empty() { 0 } else { field_len(body.len()) }
    }
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
    use crate::session::Response;
    use crate::type_url::ResourceType;

    /// Bodies of all sizes around the limits, with and without names.
    fn push(mode: Mode, sizes: &[usize]) -> Push {
        let resource = |(index, size): (usize, &usize)| Resource {
            version: if index % 3 == 0 { "".into() } else { format!("{index:016x}").into() },
            body: vec![index as u8; *size].into(),
            name: "n".repeat(index * 40).into(),
        };
        Push {
            mode,
            ty: ResourceType::Cluster,
            version: "v".into(),
            nonce: "7".into(),
            resources: sizes.iter().enumerate().map(resource).collect(),
            removed: vec!["gone".into(), "too".into()],
        }
    }

    fn message(push: Push) -> (Vec<Bytes>, Response) {
        let mode = push.mode;
        let chunks = Chunks::new(push).unwrap();
        let left = chunks.left;
        let chunks: Vec<Bytes> = chunks.collect();
        let message = chunks.concat();
        assert_eq!(message.len(), left);
        assert_eq!(message[0], 0);
        let length = u32::from_be_bytes(message[1..HEAD].try_into().unwrap());
        assert_eq!(length as usize, message.len() - HEAD);
        let message = &message[HEAD..];
        let response = match mode {
            Mode::Sotw => Response::Sotw(wire::DiscoveryResponse::decode(message).unwrap()),
            Mode::Delta => Response::Delta(wire::DeltaDiscoveryResponse::decode(message).unwrap()),
        };
        (chunks, response)
    }

    #[test]
    fn the_chunks_are_the_message() {
        let sizes = [0, 1, 2047, 2048, 2049, 0, 12_000, 300_000, 5, 127, 128, 16_383, 16_384];
        for mode in [Mode::Delta, Mode::Sotw] {
            for count in 0..=sizes.len() {
                let push = push(mode, &sizes[..count]);
                let (_, response) = message(push.clone());
                assert_eq!(response, Response::from(push), "{count} resources");
            }
        }
    }

    #[test]
    fn large_bodies_are_shared_and_small_ones_gathered() {
        let one = push(Mode::Delta, &[100_000]);
        let body = one.resources.at(0).unwrap().body.clone();
        let (chunks, _) = message(one);
        assert!(chunks.iter().any(|chunk| chunk.as_ptr() == body.as_ptr()));
        let (chunks, _) = message(push(Mode::Delta, &[100; 50]));
        assert!(chunks.len() < 15, "{} chunks", chunks.len());
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_CAPACITY));
    }

    #[test]
    fn many_removals_are_sent_too() {
        let push = Push {
            removed: (0..5000).map(|number| format!("cluster-{number}").into()).collect(),
            ..push(Mode::Delta, &[10, 5000])
        };
        let (_, response) = message(push.clone());
        assert_eq!(response, Response::from(push));
    }
}
