//! Small values: durations, percentages, addresses, metadata.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Result, error};
use crate::listener::Cidr;
use crate::matcher::Fraction;
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::r#type::v3 as types;
use crate::pb::google::protobuf::{self, value::Kind};

/// `type.googleapis.com/x.y.Z` → `x.y.Z`.
pub(super) fn message_name(any: &protobuf::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Longest duration that we take: far above any use, far below overflow in time arithmetic.
const DURATION_MAX_S: i64 = 10 * 365 * 86_400;

pub(super) fn duration(message: &protobuf::Duration) -> Result<Duration> {
    match (message.seconds, message.nanos) {
        (0..=DURATION_MAX_S, 0..=999_999_999) => {
            Ok(Duration::new(message.seconds as u64, message.nanos as u32))
        }
        (seconds, nanos) => error("", format!("duration {seconds} s {nanos} ns is out of range")),
    }
}

/// Absent stays absent.
pub(super) fn duration_opt(message: &Option<protobuf::Duration>) -> Result<Option<Duration>> {
    message.as_ref().map(duration).transpose()
}

/// Zero means none; absent means `default`.
pub(super) fn limit(
    message: &Option<protobuf::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    match message {
        None => Ok(default),
        Some(message) => duration(message).map(|limit| (!limit.is_zero()).then_some(limit)),
    }
}

pub(super) fn boolean(message: &Option<protobuf::BoolValue>, default: bool) -> bool {
    message.as_ref().map_or(default, |value| value.value)
}

pub(super) fn uint(message: &Option<protobuf::UInt32Value>) -> Option<u32> {
    message.as_ref().map(|value| value.value)
}

pub(super) fn fraction(message: &types::FractionalPercent) -> Result<Fraction> {
    let denominator = match message.denominator {
        0 => 100,
        1 => 10_000,
        2 => 1_000_000,
        other => return error("denominator", format!("{other} is not a denominator")),
    };
    Ok(Fraction { numerator: message.numerator, denominator })
}

/// The default value of a runtime fraction; there is no runtime to override it. Absent: always.
pub(super) fn runtime_fraction(
    message: &Option<core::RuntimeFractionalPercent>,
) -> Result<Fraction> {
    match message.as_ref().and_then(|m| m.default_value.as_ref()) {
        Some(value) => fraction(value),
        None => Ok(Fraction::ALWAYS),
    }
}

pub(super) fn percent(message: &Option<types::Percent>, default: f64) -> Result<f64> {
    match message {
        None => Ok(default),
        Some(percent) if (0.0..=100.0).contains(&percent.value) => Ok(percent.value),
        Some(percent) => error("", format!("{} is not a percentage", percent.value)),
    }
}

/// An address of an endpoint or listener.
pub(super) enum Address {
    Ip(SocketAddr),
    Name { host: Arc<str>, port: u16 },
    Pipe(Arc<str>),
}

pub(super) fn address(message: &Option<core::Address>) -> Result<Address> {
    use core::address::Address as Kind;
    match message.as_ref().and_then(|m| m.address.as_ref()) {
        Some(Kind::SocketAddress(socket)) => socket_address(socket),
        Some(Kind::Pipe(pipe)) => Ok(Address::Pipe(Arc::from(&*pipe.path))),
        Some(Kind::EnvoyInternalAddress(_)) => {
            error("envoy_internal_address", "internal listeners are not supported")
        }
        None => error("", "an address is required"),
    }
}

fn socket_address(socket: &core::SocketAddress) -> Result<Address> {
    use core::socket_address::PortSpecifier;
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => port_number(*port)?,
        Some(PortSpecifier::NamedPort(name)) => {
            return error("named_port", format!("named port {name:?} is not supported"));
        }
        None => 0,
    };
    if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
        return error("protocol", "only TCP is supported");
    }
    match socket.address.parse::<IpAddr>() {
        Ok(ip) => Ok(Address::Ip(SocketAddr::new(ip, port))),
        Err(_) if socket.address.is_empty() => error("address", "is empty"),
        Err(_) => Ok(Address::Name { host: Arc::from(&*socket.address), port }),
    }
}

pub(super) fn port_number(port: u32) -> Result<u16> {
    u16::try_from(port).or_else(|_| error("port_value", format!("{port} is not a port")))
}

/// An address that must be an IP address.
pub(super) fn ip_address(message: &Option<core::Address>) -> Result<SocketAddr> {
    match address(message)? {
        Address::Ip(address) => Ok(address),
        Address::Name { host, .. } => error("address", format!("{host:?} is not an IP address")),
        Address::Pipe(_) => error("pipe", "only IP addresses are supported here"),
    }
}

pub(super) fn cidr(message: &core::CidrRange) -> Result<Cidr> {
    let Ok(ip) = message.address_prefix.parse::<IpAddr>() else {
        return error(
            "address_prefix",
            format!("{:?} is not an IP address", message.address_prefix),
        );
    };
    let bits = uint(&message.prefix_len).unwrap_or(0);
    match u8::try_from(bits).ok().and_then(|bits| Cidr::new(ip, bits)) {
        Some(cidr) => Ok(cidr),
        None => error("prefix_len", format!("{bits} is too long for {ip}")),
    }
}

/// One namespace of filter metadata.
pub(super) fn metadata<'m>(
    metadata: &'m Option<core::Metadata>,
    namespace: &str,
) -> Option<&'m protobuf::Struct> {
    metadata.as_ref()?.filter_metadata.get(namespace)
}

pub(super) fn text_field<'m>(message: &'m protobuf::Struct, name: &str) -> Option<&'m str> {
    match message.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Scalars as text, for label comparison; other values are skipped. In name order.
pub(super) fn labels(message: &protobuf::Struct) -> Vec<(Box<str>, Box<str>)> {
    let mut labels: Vec<(Box<str>, Box<str>)> = message
        .fields
        .iter()
        .filter_map(|(name, value)| {
            let text: Box<str> = match value.kind.as_ref()? {
                Kind::StringValue(text) => text.as_str().into(),
                Kind::BoolValue(value) => value.to_string().into(),
                Kind::NumberValue(value) => value.to_string().into(),
                Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => return None,
            };
            Some((name.as_str().into(), text))
        })
        .collect();
    labels.sort();
    labels
}

/// Inline text or bytes.
pub(super) fn inline_data(source: &core::DataSource) -> Option<&[u8]> {
    use core::data_source::Specifier;
    match source.specifier.as_ref()? {
        Specifier::InlineBytes(bytes) => Some(bytes),
        Specifier::InlineString(text) => Some(text.as_bytes()),
        Specifier::Filename(_) | Specifier::EnvironmentVariable(_) => None,
    }
}
