//! The static table (RFC 7541, Appendix A), as lines, and finding a name in it.

use std::sync::LazyLock;

use super::class::{Class, NameClass};
use super::table::Entry;

/// Entries 1 to 61.
pub(super) const COUNT: usize = 61;

static FIELDS: [(&str, &str); COUNT] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

struct Statics {
    /// All lines, one after the other.
    lines: Vec<u8>,
    entries: [Place; COUNT],
}

#[derive(Clone, Copy)]
struct Place {
    start: u16,
    len: u8,
    name_len: u8,
    class: Class,
}

static STATICS: LazyLock<Statics> = LazyLock::new(|| {
    let mut lines = Vec::new();
    let entries = FIELDS.map(|(name, value)| {
        let start = lines.len() as u16;
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
        Place {
            start,
            len: (lines.len() - usize::from(start)) as u8,
            name_len: name.len() as u8,
            class: NameClass::of(name.as_bytes()).with_value(value.as_bytes()),
        }
    });
    Statics { lines, entries }
});

/// Entry `index`, 1 to 61.
#[inline]
pub(super) fn get(index: usize) -> Option<Entry<'static>> {
    let statics = &*STATICS;
    let place = statics.entries.get(index.wrapping_sub(1))?;
    let start = usize::from(place.start);
    Some(Entry {
        line: &statics.lines[start..start + usize::from(place.len)],
        name_len: usize::from(place.name_len),
        class: place.class,
    })
}

/// The first entry with this lower-case name; 0 when there is none.
#[inline]
pub(super) const fn find_name(name: &[u8]) -> usize {
    let [first, .., last] = name else { return 0 };
    let slot = SLOTS[hash(name.len(), *first, name[name.len() / 2], *last)] as usize;
    if slot == 0 {
        return 0;
    }
    let found = FIELDS[slot - 1].0.as_bytes();
    if found.len() != name.len() {
        return 0;
    }
    // By hand, because it runs at compile time, too.
    let mut at = 0;
    while at < name.len() {
        if found[at] != name[at] {
            return 0;
        }
        at += 1;
    }
    slot
}

/// The entry with the name of entry `name_index` and this value; 0 when there is none.
#[inline]
pub(super) fn find_value(name_index: usize, value: &[u8]) -> usize {
    match (name_index, value) {
        (2, b"GET") => 2,
        (2, b"POST") => 3,
        (4, b"/") => 4,
        (4, b"/index.html") => 5,
        (6, b"http") => 6,
        (6, b"https") => 7,
        (8, b"200") => 8,
        (8, b"204") => 9,
        (8, b"206") => 10,
        (8, b"304") => 11,
        (8, b"400") => 12,
        (8, b"404") => 13,
        (8, b"500") => 14,
        (16, b"gzip, deflate") => 16,
        (1 | 15 | 17.., b"") => name_index,
        _ => 0,
    }
}

/// Perfect over the names: building `SLOTS` fails to compile on a collision.
const fn hash(len: usize, first: u8, middle: u8, last: u8) -> usize {
    (len.wrapping_mul(187)
        ^ (first as usize).wrapping_mul(191)
        ^ (middle as usize).wrapping_mul(225)
        ^ (last as usize).wrapping_mul(45))
        % 256
}

/// 1-based entries by hash of the name.
const SLOTS: [u8; 256] = {
    let mut slots = [0; 256];
    let mut index = 0;
    while index < COUNT {
        let name = FIELDS[index].0.as_bytes();
        let slot = hash(name.len(), name[0], name[name.len() / 2], name[name.len() - 1]);
        if slots[slot] == 0 {
            slots[slot] = index as u8 + 1;
        } else {
            let other = FIELDS[slots[slot] as usize - 1].0.as_bytes();
            assert!(other.len() == name.len(), "two names share a slot: change the multipliers");
        }
        index += 1;
    }
    slots
};

#[cfg(test)]
mod tests {
    use super::{COUNT, FIELDS, find_name, find_value, get};

    #[test]
    fn every_entry_is_found_by_its_name_and_value() {
        for index in 1..=COUNT {
            let entry = get(index).unwrap();
            let (name, value) = FIELDS[index - 1];
            assert_eq!((entry.name(), entry.value()), (name.as_bytes(), value.as_bytes()));
            let named = find_name(entry.name());
            assert_eq!(FIELDS[named - 1].0, name);
            assert!(named == 1 || FIELDS[named - 2].0 != name, "the first of its name");
            assert_eq!(find_value(named, entry.value()), index);
        }
        assert_eq!(find_name(b"x-request-id"), 0);
        assert_eq!(find_name(b"a"), 0);
        assert!(get(0).is_none() && get(62).is_none());
    }
}
