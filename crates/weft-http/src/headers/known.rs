//! Fields that the mesh itself reads or writes, so that a list can index them while it is built.

macro_rules! known_headers {
    ($($variant:ident = $name:literal,)+) => {
        /// A field name with its own slot in every [`HeaderList`](crate::HeaderList).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known { $(#[doc = $name] $variant,)+ }

        impl Known {
            pub(crate) const ALL: &'static [Known] = &[$(Known::$variant,)+];

            /// The lower-case name.
            pub const fn name(self) -> &'static str {
                match self { $(Known::$variant => $name,)+ }
            }
        }
    };
}

known_headers! {
    Host = "host",
    Connection = "connection",
    ContentLength = "content-length",
    TransferEncoding = "transfer-encoding",
    Te = "te",
    Trailer = "trailer",
    Expect = "expect",
    Upgrade = "upgrade",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    ContentType = "content-type",
    Cookie = "cookie",
    UserAgent = "user-agent",
    Server = "server",
    Date = "date",
    Location = "location",
    XRequestId = "x-request-id",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    B3 = "b3",
    XB3TraceId = "x-b3-traceid",
    XB3SpanId = "x-b3-spanid",
    XB3ParentSpanId = "x-b3-parentspanid",
    XB3Sampled = "x-b3-sampled",
    XB3Flags = "x-b3-flags",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XForwardedClientCert = "x-forwarded-client-cert",
    GrpcStatus = "grpc-status",
    GrpcMessage = "grpc-message",
    GrpcTimeout = "grpc-timeout",
    XEnvoyPeerMetadata = "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId = "x-envoy-peer-metadata-id",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyOverloaded = "x-envoy-overloaded",
    XEnvoyRatelimited = "x-envoy-ratelimited",
    XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XWeftSpelling = "x-weft-spelling",
    XWeftWhy = "x-weft-why",
}

pub(crate) const KNOWN_COUNT: usize = Known::ALL.len();

impl Known {
    /// The slot of `name`, compared without case.
    pub fn from_name(name: &[u8]) -> Option<Known> {
        let (Some(first), Some(last)) = (name.first(), name.last()) else { return None };
        let slot = SLOTS[hash(name.len(), *first, name[name.len() / 2], *last)];
        let known = *Known::ALL.get(usize::from(slot))?;
        let wanted = known.name().as_bytes();
        // Most names come in lower case, and comparing without case is byte by byte.
        (wanted == name || wanted.eq_ignore_ascii_case(name)).then_some(known)
    }

    /// As [`from_name`](Self::from_name), for a name of nothing but token bytes.
    pub(crate) fn from_token(name: &[u8]) -> Option<Known> {
        let (Some(first), Some(last)) = (name.first(), name.last()) else { return None };
        let slot = SLOTS[hash(name.len(), *first, name[name.len() / 2], *last)];
        let known = *Known::ALL.get(usize::from(slot))?;
        is_same_token(known.name().as_bytes(), name).then_some(known)
    }
}

/// Whether a token is `wanted` but for case. A known name has only lower-case letters, digits and
/// dashes, of which setting bit 0x20 makes the same of letters of either case and, among the bytes
/// of tokens, of nothing else.
fn is_same_token(wanted: &[u8], token: &[u8]) -> bool {
    const CASE: u64 = u64::from_ne_bytes([0x20; 8]);
    if wanted.len() != token.len() {
        return false;
    }
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes) | CASE;
    match (wanted.last_chunk(), token.last_chunk()) {
        (Some(wanted_end), Some(token_end)) => {
            // The last words overlap those before them.
            let words = wanted.as_chunks().0.iter().zip(token.as_chunks().0);
            word(wanted_end) == word(token_end)
                && words.into_iter().all(|(wanted, token)| word(wanted) == word(token))
        }
        _ => wanted.iter().zip(token).all(|(wanted, token)| wanted | 0x20 == token | 0x20),
    }
}

const SLOT_COUNT: usize = 128;
const EMPTY: u8 = u8::MAX;

/// Perfect over the table: building `SLOTS` fails to compile on a collision. Setting bit 0x20
/// lower-cases letters and leaves digits and the dash alone.
const fn hash(len: usize, first: u8, middle: u8, last: u8) -> usize {
    let (first, middle, last) = (first | 0x20, middle | 0x20, last | 0x20);
    (len.wrapping_mul(3)
        ^ (first as usize).wrapping_mul(135)
        ^ (last as usize).wrapping_mul(217)
        ^ (middle as usize).wrapping_mul(131))
        % SLOT_COUNT
}

static SLOTS: [u8; SLOT_COUNT] = {
    let mut slots = [EMPTY; SLOT_COUNT];
    let mut index = 0;
    while index < KNOWN_COUNT {
        let name = Known::ALL[index].name().as_bytes();
        let slot = hash(name.len(), name[0], name[name.len() / 2], name[name.len() - 1]);
        assert!(slots[slot] == EMPTY, "two known headers share a slot: change the multipliers");
        slots[slot] = index as u8;
        index += 1;
    }
    slots
};

#[cfg(test)]
mod tests {
    use super::Known;

    #[test]
    fn every_known_name_finds_itself_in_any_case() {
        for &known in Known::ALL {
            assert_eq!(Known::from_name(known.name().as_bytes()), Some(known));
            assert_eq!(Known::from_name(known.name().to_uppercase().as_bytes()), Some(known));
            assert_eq!(Known::from_token(known.name().as_bytes()), Some(known));
            assert_eq!(Known::from_token(known.name().to_uppercase().as_bytes()), Some(known));
            let name = known.name().as_bytes();
            for at in 0..name.len() {
                for byte in (0..=u8::MAX).filter(|&byte| crate::headers::is_token_byte(byte)) {
                    let mut other = name.to_vec();
                    other[at] = byte;
                    assert_eq!(Known::from_token(&other), Known::from_name(&other), "{other:?}");
                }
            }
        }
        for other in ["", "h", "hosts", "x-request-ie", "content-lengtH2", "\u{80}ost"] {
            assert_eq!(Known::from_name(other.as_bytes()), None, "{other}");
        }
    }
}
