//! Zipkin's v2 span, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest text kept of a span. Bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Tags and annotations kept of a span.
const TAGS_MAX: usize = 64;

/// One span as one side reported it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    /// 16 or 32 digits, lower case.
    pub(super) trace_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent_id: Option<String>,
    pub(super) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<Kind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// Microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timestamp: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) duration: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) local_endpoint: Option<Endpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) remote_endpoint: Option<Endpoint>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) annotations: Vec<Annotation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) debug: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) shared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Kind {
    Client,
    Server,
    Producer,
    Consumer,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) service_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Annotation {
    timestamp: u64,
    pub(super) value: String,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Span {
    /// As Zipkin keeps it: ids padded, names in lower case. `None`: its ids are none, or it is too
    /// large to keep.
    pub(super) fn sound(mut self) -> Option<Self> {
        self.trace_id = trace_id(&self.trace_id)?;
        self.id = padded(&self.id, 16)?;
        self.parent_id = match self.parent_id {
            // Some clients send an empty one for none.
            Some(id) if !id.is_empty() => Some(padded(&id, 16)?),
            _ => None,
        };
        if self.parent_id.as_ref() == Some(&self.id) {
            self.parent_id = None;
        }
        self.name = self.name.map(|name| name.to_lowercase());
        for endpoint in [&mut self.local_endpoint, &mut self.remote_endpoint].into_iter().flatten()
        {
            endpoint.service_name = endpoint.service_name.take().map(|name| name.to_lowercase());
        }
        self.annotations.truncate(TAGS_MAX);
        let texts = self.tags.iter().flat_map(|(key, value)| [key, value]);
        let texts = texts.chain(self.name.as_ref());
        let longest = texts.chain(self.annotations.iter().map(|one| &one.value)).map(String::len);
        let is_small = longest.max().unwrap_or(0) <= TEXT_BYTES_MAX && self.tags.len() <= TAGS_MAX;
        is_small.then_some(self)
    }

    pub(super) fn service(&self) -> Option<&str> {
        self.local_endpoint.as_ref()?.service_name.as_deref().filter(|name| !name.is_empty())
    }

    pub(super) fn remote_service(&self) -> Option<&str> {
        self.remote_endpoint.as_ref()?.service_name.as_deref().filter(|name| !name.is_empty())
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let tags = self.tags.iter().map(|(key, value)| key.len() + value.len() + 80);
        let annotations = self.annotations.iter().map(|one| one.value.len() + 32);
        size_of::<Self>() + 200 + tags.sum::<usize>() + annotations.sum::<usize>()
    }
}

/// A trace id as it is kept: 16 or 32 digits.
pub(super) fn trace_id(text: &str) -> Option<String> {
    let width = if text.len() > 16 { 32 } else { 16 };
    padded(text, width)
}

fn padded(text: &str, width: usize) -> Option<String> {
    let is_id = !text.is_empty()
        && text.len() <= width
        && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        && text.bytes().any(|byte| byte != b'0');
    is_id.then(|| format!("{:0>width$}", text.to_ascii_lowercase()))
}
