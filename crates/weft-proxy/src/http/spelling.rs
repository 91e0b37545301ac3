//! Spelling of names across HTTP/2 hops between two proxies of ours (`weft_http::rules`, `spelling`).
//!
//! Owns who has agreed: both ends of a connection of verified mTLS whose ALPN is
//! [`SPELLING_ALPN`](crate::tls::SPELLING_ALPN). A list from anybody else is taken off unread, and
//! none is sent to anybody else.

use weft_http::{BodyLength, HeaderList, Known, rules};

/// Which sides of a request carry spellings.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spelling {
    pub(crate) down: bool,
    pub(crate) up: bool,
    /// The workload wants names in lower case (`--lowercase-header-names`).
    pub(crate) lower: bool,
}

/// Takes the list off what came from a side, and spells the lines by it if that side `carries`, or
/// all of them in lower case.
pub(crate) fn received(
    headers: &mut HeaderList,
    (carries, lower): (bool, bool),
    authority: Option<&[u8]>,
    length: BodyLength,
) {
    if let (Some(list), true) = (rules::take_spelling(headers), carries && !lower) {
        rules::respell(headers, &list, authority, length);
    }
    if lower {
        headers.lowercase_names();
    }
}

/// Adds the list for a side that `carries` it. Names are still as they were written.
pub(crate) fn sending(headers: &mut HeaderList, carries: bool) {
    if carries && let Some(list) = rules::note_spelling(headers) {
        headers.append_known(Known::XWeftSpelling, list);
    }
}
