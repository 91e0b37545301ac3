//! Forms of strings: the CRDs' patterns.

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Starts and ends with `edge`, dashes inside.
fn dashed(text: &str, edge: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| edge(*b))
        && bytes.last().is_some_and(|b| edge(*b))
        && bytes.iter().all(|b| edge(*b) || *b == b'-')
}

pub(super) fn is_namespace(text: &str) -> bool {
    dashed(text, lower)
}

pub(super) fn is_dns(text: &str) -> bool {
    text.split('.').all(is_namespace)
}

pub(super) fn is_wildcard_dns(text: &str) -> bool {
    is_dns(text.strip_prefix("*.").unwrap_or(text))
}

pub(super) fn is_group(text: &str) -> bool {
    text.is_empty() || is_dns(text)
}

pub(super) fn is_kind(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && dashed(text, |b| b.is_ascii_alphanumeric())
}

/// A domain, a slash, a path.
pub(super) fn is_controller(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    text.split_once('/')
        .is_some_and(|(domain, path)| is_dns(domain) && !path.is_empty() && path.bytes().all(legal))
}

/// `HTTP`, or a domain's own. The CRD's second alternative is not anchored at its start.
pub(super) fn is_protocol(text: &str) -> bool {
    if dashed(text, |b| b.is_ascii_alphanumeric()) {
        return true;
    }
    text.rsplit_once('/').is_some_and(|(domain, name)| {
        domain.bytes().last().is_some_and(lower)
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

/// A header's or query parameter's name.
pub(super) fn is_token(text: &str) -> bool {
    crate::validate::text::is_header_name(text)
}

pub(super) fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// A label's or annotation's key: a name of up to 63 characters, perhaps below a domain.
pub(super) fn is_key(text: &str) -> bool {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    domain.is_none_or(|domain| domain.len() < 253 && is_dns(domain))
        && (1..=63).contains(&name.len())
        && is_label_value(name)
}

/// `*`, or scheme and host, wildcards in the host, perhaps a port.
pub(super) fn is_cors_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return text == "*" };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let labels = host.strip_prefix("*.").unwrap_or(host);
    matches!(scheme, "http" | "https")
        && (host == "*" || labels.split('.').all(label))
        && port.is_none_or(|port| {
            (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
        })
}

/// Has a scheme and an authority.
pub(super) fn is_uri(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && !scheme.contains([':', '/', '?', '#']))
}

pub(super) fn is_well_known(text: &str) -> bool {
    text == "System"
        || text.split_once('/').is_some_and(|(domain, name)| {
            is_dns(domain) && (1..=63).contains(&name.len()) && is_label_value(name)
        })
}

/// One to four numbers of up to five digits, each with `h`, `m`, `s` or `ms`.
pub(super) fn is_duration(text: &str) -> bool {
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return false;
        }
        let unit = &rest[digits..];
        let after = ["ms", "h", "m", "s"].iter().find_map(|name| unit.strip_prefix(name));
        match after {
            None => return false,
            Some("") => return true,
            Some(after) => rest = after,
        }
    }
    false
}

/// The CRD's alternatives are anchored only at the very start and the very end.
pub(super) fn is_address_type(text: &str) -> bool {
    text.starts_with("Hostname")
        || text.contains("IPAddress")
        || text.contains("NamedAddress")
        || text.split_once('/').is_some_and(|(domain, path)| {
            domain.bytes().last().is_some_and(lower) && is_controller(&format!("a/{path}"))
        })
}
