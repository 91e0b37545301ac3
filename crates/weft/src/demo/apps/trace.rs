//! Trace headers an application hands on, so that the mesh can join its calls into one trace.

use http::HeaderMap;

/// Headers to copy from the request being served to every request made for it.
pub(super) const HEADERS: [&str; 10] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "traceparent",
    "tracestate",
];

/// The trace headers of `from`. Those that are absent or empty are left out: an empty trace
/// header is worse than none, since a strict receiver takes it for a broken trace.
pub(super) fn context(from: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in HEADERS {
        if let Some(value) = from.get(name)
            && !value.is_empty()
        {
            kept.insert(name, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_headers_are_not_copied() {
        let mut from = HeaderMap::new();
        from.insert("x-b3-traceid", "463ac35c9f6413ad".parse().unwrap());
        from.insert("x-b3-flags", "".parse().unwrap());
        from.insert("cookie", "secret".parse().unwrap());
        let kept = context(&from);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept["x-b3-traceid"], "463ac35c9f6413ad");
    }
}
