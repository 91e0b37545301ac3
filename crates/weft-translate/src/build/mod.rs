//! Small constructors for Envoy's messages.
//!
//! Nothing here knows a Kubernetes or Istio kind: plain values in, protobuf out. The rest of the
//! crate decides *what* to say, this module knows only *how* Envoy spells it.

pub(crate) mod dynamic;
pub(crate) mod hcm;
pub(crate) mod tcp;
pub(crate) mod tls;

use std::net::IpAddr;
use std::time::Duration;

use prost::{Message, Name};
use weft_xds::pb::envoy::config::core::v3 as core;
use weft_xds::pb::envoy::config::listener::v3 as listener;
use weft_xds::pb::envoy::r#type::matcher::v3 as matcher;
use weft_xds::pb::google::protobuf as wkt;

/// Packs a message as `Any` with its `type.googleapis.com/` URL.
pub(crate) fn any<M: Message + Name>(message: &M) -> wkt::Any {
    wkt::Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

pub(crate) fn uint32(value: u32) -> Option<wkt::UInt32Value> {
    Some(wkt::UInt32Value { value })
}

pub(crate) fn boolean(value: bool) -> Option<wkt::BoolValue> {
    Some(wkt::BoolValue { value })
}

pub(crate) fn duration(value: Duration) -> Option<wkt::Duration> {
    // A duration beyond i64 seconds is nonsense; clamp instead of wrapping.
    Some(wkt::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: value.subsec_nanos() as i32,
    })
}

pub(crate) fn text(value: &str) -> wkt::Value {
    wkt::Value { kind: Some(wkt::value::Kind::StringValue(value.to_owned())) }
}

pub(crate) fn structure<const N: usize>(fields: [(&str, wkt::Value); N]) -> wkt::Struct {
    wkt::Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

pub(crate) fn struct_value(fields: wkt::Struct) -> wkt::Value {
    wkt::Value { kind: Some(wkt::value::Kind::StructValue(fields)) }
}

pub(crate) fn list_value(values: Vec<wkt::Value>) -> wkt::Value {
    wkt::Value { kind: Some(wkt::value::Kind::ListValue(wkt::ListValue { values })) }
}

/// `filter_metadata.istio`: which resource (`config`) decided this route, and which of its rules.
pub(crate) fn istio_config(path: &str, rule: &str) -> Option<core::Metadata> {
    let fields = structure([("config", text(path)), ("rule", text(rule))]);
    Some(core::Metadata {
        filter_metadata: [("istio".to_owned(), fields)].into_iter().collect(),
        ..Default::default()
    })
}

/// Adds a resource's generation to what [`istio_config`] made of it. Only our proxy reads it.
pub(crate) fn with_generation(metadata: &mut Option<core::Metadata>, generation: u64) {
    let of_istio = metadata.as_mut().and_then(|all| all.filter_metadata.get_mut("istio"));
    if let Some(fields) = of_istio {
        fields.fields.insert("generation".to_owned(), text(&format!("{generation:016x}")));
    }
}

/// A TCP socket address; `host` is an IP or, in DNS clusters only, a host name.
pub(crate) fn socket_address(host: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}

pub(crate) fn pipe_address(path: &str) -> core::Address {
    core::Address {
        address: Some(core::address::Address::Pipe(core::Pipe { path: path.to_owned(), mode: 0 })),
    }
}

pub(crate) fn cidr(address: IpAddr, prefix: u8) -> core::CidrRange {
    core::CidrRange { address_prefix: address.to_string(), prefix_len: uint32(u32::from(prefix)) }
}

/// Everything is fetched over the one aggregated stream.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(crate) fn filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(config))),
    }
}

pub(crate) fn listener_filter<M: Message + Name>(
    name: &str,
    config: &M,
) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

pub(crate) fn exact(value: &str) -> matcher::StringMatcher {
    string_matcher(matcher::string_matcher::MatchPattern::Exact(value.to_owned()))
}

pub(crate) fn prefix(value: &str) -> matcher::StringMatcher {
    string_matcher(matcher::string_matcher::MatchPattern::Prefix(value.to_owned()))
}

pub(crate) fn regex_string(value: &str) -> matcher::StringMatcher {
    string_matcher(matcher::string_matcher::MatchPattern::SafeRegex(regex(value)))
}

fn string_matcher(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

pub(crate) fn regex(value: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: value.to_owned(), engine_type: None }
}

pub(crate) fn file(path: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
        ..Default::default()
    }
}

pub(crate) fn inline_bytes(bytes: Vec<u8>) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(bytes)),
        ..Default::default()
    }
}

pub(crate) fn inline_string(text: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    }
}
