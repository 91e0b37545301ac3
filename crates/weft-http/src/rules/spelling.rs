//! How a head was spelt, carried across a hop that lower-cases names.
//!
//! HTTP/2 has only lower-case names. Between two proxies of ours that have agreed on it, a private
//! field lists the names as the sender of HTTP/1 wrote them, in order; the far side writes its
//! HTTP/1 lines so. The list can respell and reorder lines that are there, values of one name in
//! their order, and say where `Host` and `Transfer-Encoding` stood: it can neither add a field nor
//! change a value. Whoever has not agreed with its peer must take the field off instead.

use bytes::Bytes;

use crate::headers::{HeaderList, Known, is_token_byte};
use crate::message::BodyLength;

/// Longest list sent or believed, in bytes; a head with longer names arrives in lower case.
pub const SPELLING_BYTES_MAX: usize = 4 * 1024;

/// The list for these lines; `None` when lower case loses nothing, or it would be too long. Ask
/// before the names are lower-cased and after hop-by-hop fields are gone.
pub fn note_spelling(headers: &HeaderList) -> Option<Vec<u8>> {
    if !headers.has_capitals() {
        return None;
    }
    let mut list = Vec::with_capacity(256);
    for header in headers {
        if list.len() + header.name.len() >= SPELLING_BYTES_MAX {
            return None;
        }
        if !list.is_empty() {
            list.push(b',');
        }
        list.extend_from_slice(header.name);
    }
    Some(list)
}

/// Takes the list out of a received head or trailer section. Several lines are nobody's list: all
/// go, none is believed.
pub fn take_spelling(headers: &mut HeaderList) -> Option<Bytes> {
    // Nearly every message answers here.
    headers.get_known(Known::XWeftSpelling)?;
    let list = headers.get_bytes(Known::XWeftSpelling.name());
    match headers.remove(Known::XWeftSpelling.name()) {
        1 => list.filter(|list| list.len() <= SPELLING_BYTES_MAX),
        _ => None,
    }
}

/// Spells and orders the lines as `list` says; lines it does not name follow as they are.
/// `authority` and `length` give `Host` and `Transfer-Encoding` their value where the list has them
/// and the head, coming from HTTP/2, has not.
pub fn respell(
    headers: &mut HeaderList,
    list: &[u8],
    authority: Option<&[u8]>,
    length: BodyLength,
) {
    let names = list.split(|&byte| byte == b',').filter(|name| is_name(name));
    let coded = matches!(length, BodyLength::Streamed | BodyLength::Chunked);
    headers.rearrange(names, |known| match known {
        Known::Host => authority,
        Known::TransferEncoding if coded => Some(b"chunked"),
        _ => None,
    });
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte))
}
