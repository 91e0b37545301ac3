//! Spans as Zipkin's v2 JSON.

use std::net::{IpAddr, SocketAddr};

use super::{Ids, Side};

/// One finished span.
#[derive(Debug, Clone)]
pub struct Span<'s> {
    pub ids: Ids,
    pub side: Side,
    /// The server's half of the client's span (`shared_span_context`).
    pub shared: bool,
    pub debug: bool,
    pub name: &'s str,
    /// Since 1970, in microseconds.
    pub start_us: u64,
    pub duration_us: u64,
    /// Name of the service that this proxy stands beside.
    pub service: &'s str,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub tags: &'s [(&'s str, &'s str)],
}

impl Span<'_> {
    /// Appends the span as a JSON object.
    pub fn write(&self, out: &mut Vec<u8>) {
        let Ids { trace, span, parent } = self.ids;
        out.extend_from_slice(b"{\"traceId\":\"");
        if trace.is_128 {
            out.extend_from_slice(format!("{:016x}", trace.high).as_bytes());
        }
        out.extend_from_slice(format!("{:016x}\",\"id\":\"{span:016x}\"", trace.low).as_bytes());
        if let Some(parent) = parent {
            out.extend_from_slice(format!(",\"parentId\":\"{parent:016x}\"").as_bytes());
        }
        out.extend_from_slice(match self.side {
            Side::Client => b",\"kind\":\"CLIENT\",\"name\":",
            Side::Server => b",\"kind\":\"SERVER\",\"name\":",
        });
        quote(self.name, out);
        // Zipkin knows no span of no time.
        let duration = self.duration_us.max(1);
        let times = format!(",\"timestamp\":{},\"duration\":{duration}", self.start_us);
        out.extend_from_slice(times.as_bytes());
        out.extend_from_slice(b",\"localEndpoint\":");
        endpoint(Some(self.service), self.local, out);
        if self.remote.is_some() {
            out.extend_from_slice(b",\"remoteEndpoint\":");
            endpoint(None, self.remote, out);
        }
        if self.shared {
            out.extend_from_slice(b",\"shared\":true");
        }
        if self.debug {
            out.extend_from_slice(b",\"debug\":true");
        }
        out.extend_from_slice(b",\"tags\":{");
        for (index, (name, value)) in self.tags.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            quote(name, out);
            out.push(b':');
            quote(value, out);
        }
        out.extend_from_slice(b"}}");
    }
}

fn endpoint(service: Option<&str>, address: Option<SocketAddr>, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut separator = "";
    if let Some(service) = service {
        out.extend_from_slice(b"\"serviceName\":");
        quote(service, out);
        separator = ",";
    }
    if let Some(address) = address {
        let family = match address.ip().to_canonical() {
            IpAddr::V4(ip) => format!("\"ipv4\":\"{ip}\""),
            IpAddr::V6(ip) => format!("\"ipv6\":\"{ip}\""),
        };
        let text = format!("{separator}{family},\"port\":{}", address.port());
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'}');
}

fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for char in text.chars() {
        match char {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            char if u32::from(char) < 0x20 => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(char)).as_bytes());
            }
            char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::TraceId;

    #[test]
    fn a_span_is_zipkins_json() {
        let ids = Ids {
            trace: TraceId { high: 1, low: 0xabc, is_128: true },
            span: 0xdef,
            parent: Some(0xabc),
        };
        let span = Span {
            ids,
            side: Side::Server,
            shared: true,
            debug: false,
            name: "a\"b",
            start_us: 5,
            duration_us: 0,
            service: "reviews.shop",
            local: Some("10.0.0.1:9080".parse().unwrap()),
            remote: Some("[::1]:5".parse().unwrap()),
            tags: &[("http.method", "GET"), ("x", "1\n")],
        };
        let mut out = Vec::new();
        span.write(&mut out);
        let expect = r#"{"traceId":"00000000000000010000000000000abc","id":"0000000000000def","parentId":"0000000000000abc","kind":"SERVER","name":"a\"b","timestamp":5,"duration":1,"localEndpoint":{"serviceName":"reviews.shop","ipv4":"10.0.0.1","port":9080},"remoteEndpoint":{"ipv6":"::1","port":5},"shared":true,"tags":{"http.method":"GET","x":"1\u000a"}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    }
}
