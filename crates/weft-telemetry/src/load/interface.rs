//! One interface for paths that differ in an id: `/users/42` and `/users/43` are `/users/{id}`.
//!
//! A worker sees too little to learn what varies, so it only takes out what looks like an id by
//! itself; who collects the reports of many learns the rest.

/// Longest template. Bytes.
const BYTES_MAX: usize = 128;
/// Segments kept; what follows is `...`.
const SEGMENTS_MAX: usize = 8;
/// A segment this long is no word.
const WORD_BYTES_MAX: usize = 40;

/// Appends the template of a path: segments that look like ids become `{id}`, and what is too deep
/// or too long is cut.
pub fn template(path: &[u8], out: &mut Vec<u8>) {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        out.push(b'/');
        if index >= SEGMENTS_MAX || out.len() + segment.len().min(WORD_BYTES_MAX) > BYTES_MAX {
            out.extend_from_slice(b"...");
            return;
        }
        match is_id(segment) {
            true => out.extend_from_slice(b"{id}"),
            false => out.extend(segment.iter().map(|byte| printable(*byte))),
        }
    }
}

/// Appends a path that names its interface by itself, cut to length.
pub(super) fn plain(path: &[u8], out: &mut Vec<u8>) {
    out.extend(path.iter().take(2 * BYTES_MAX).map(|byte| printable(*byte)));
}

fn printable(byte: u8) -> u8 {
    if byte.is_ascii_graphic() { byte } else { b'?' }
}

/// Numbers, hexadecimal digests and UUIDs, dates, tokens: what is mostly digits, or long and mixed.
fn is_id(segment: &[u8]) -> bool {
    if segment.len() > WORD_BYTES_MAX {
        return true;
    }
    let digits = segment.iter().filter(|byte| byte.is_ascii_digit()).count();
    match digits {
        0 => false,
        // `v1`, `oauth2`, `1.0` are words.
        _ if segment.len() <= 3 => digits == segment.len(),
        _ if digits * 2 >= segment.len() => true,
        _ => {
            let hexadecimal = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
            segment.len() >= 8 && segment.iter().all(hexadecimal)
                || segment.len() >= 20 && digits >= 3
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: &str) {
        let mut out = Vec::new();
        template(path.as_bytes(), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expect, "of {path}");
        assert!(out.len() <= BYTES_MAX + 4);
    }

    #[test]
    fn ids_are_taken_out() {
        check("/", "/");
        check("", "/");
        check("/users/42", "/users/{id}");
        check("/users/42/orders/", "/users/{id}/orders/");
        check("/api/v1/oauth2", "/api/v1/oauth2");
        check("/a/550e8400-e29b-41d4-a716-446655440000/b", "/a/{id}/b");
        check("/objects/deadbeef01", "/objects/{id}");
        check("/report/2024-01-31", "/report/{id}");
        check("/t/eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.Et9H", "/t/{id}");
        check("/users/alice", "/users/alice");
        check("/1/2/3/4/5/6/7/8/9", "/{id}/{id}/{id}/{id}/{id}/{id}/{id}/{id}/...");
        check("/a\u{7f}b", "/a?b");
        check(&"/word".repeat(100), "/word/word/word/word/word/word/word/word/...");
        check(&format!("/{}", "w".repeat(39)).repeat(9), &{
            let word = format!("/{}", "w".repeat(39));
            format!("{word}{word}{word}/...")
        });
    }
}
