//! Spans as OpenTelemetry's messages, and the frames of its reports.

use prost::Message;

use super::zipkin::Span;
use super::{Side, TraceId};

/// `opentelemetry.proto.trace.v1.Span`
#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    /// 2: server, 3: client.
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    /// 2: an error.
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

impl Span<'_> {
    /// Appends the span as a message.
    pub fn write_otlp(&self, out: &mut Vec<u8>) {
        let TraceId { high, low, is_128: _ } = self.ids.trace;
        let parent = self.ids.parent.map(|id| id.to_be_bytes().to_vec());
        let is_error = self.tags.contains(&("error", "true"));
        let peer = self.remote.map(|address| pair("net.peer.address", &address.to_string()));
        let message = SpanMessage {
            trace_id: [high.to_be_bytes(), low.to_be_bytes()].concat(),
            span_id: self.ids.span.to_be_bytes().to_vec(),
            parent_span_id: parent.unwrap_or_default(),
            name: self.name.to_owned(),
            kind: match self.side {
                Side::Server => 2,
                Side::Client => 3,
            },
            start_time_unix_nano: self.start_us * 1000,
            end_time_unix_nano: (self.start_us + self.duration_us) * 1000,
            attributes: self.tags.iter().map(|(key, value)| pair(key, value)).chain(peer).collect(),
            status: is_error.then_some(Status { code: 2 }),
        };
        out.extend_from_slice(&message.encode_to_vec());
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { text: value.to_owned() }) }
}

/// A report, of spans or of log records: `items` are theirs, each as [`field`] 2.
pub fn report(resource: &[(&str, &str)], items: &[u8]) -> Vec<u8> {
    let attributes = resource.iter().map(|(key, value)| pair(key, value)).collect();
    let resource = Resource { attributes }.encode_to_vec();
    let mut of_resource = Vec::with_capacity(items.len() + resource.len() + 16);
    field(1, &resource, &mut of_resource);
    field(2, items, &mut of_resource);
    let mut request = Vec::with_capacity(of_resource.len() + 8);
    field(1, &of_resource, &mut request);
    request
}

/// Appends a field of bytes or a message.
pub fn field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    use prost::encoding::{WireType, encode_key, encode_varint};
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
