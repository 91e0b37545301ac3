//! Envoy's attributes, as CEL expressions read them.

use std::time::Duration;

use weft_cel::{Attributes, Value};
use weft_http::{HeaderList, Scheme, Version};

use super::Subject;
use super::facts::PeerFacts;
use crate::matcher::header_value;

/// The world of one request that has ended.
pub struct World<'s>(pub Subject<'s>);

impl Attributes for World<'_> {
    fn get(&self, path: &[&str]) -> Option<Value<'_>> {
        match path {
            ["request", rest @ ..] => self.request(rest),
            ["response", rest @ ..] => self.response(rest),
            ["connection", rest @ ..] => self.connection(rest),
            ["source", "address"] => address(self.0.context.downstream_remote?),
            ["source", "port"] => Some(Value::Int(self.0.context.downstream_remote?.port().into())),
            ["destination", "address"] => address(self.0.context.downstream_local?),
            ["destination", "port"] => {
                Some(Value::Int(self.0.context.downstream_local?.port().into()))
            }
            ["upstream", "address"] => address(self.0.context.upstream_remote?),
            ["upstream", "port"] => Some(Value::Int(self.0.context.upstream_remote?.port().into())),
            ["upstream", rest @ ..] => {
                let ended = self.0.context.ended?;
                match rest {
                    ["local_address"] => address(ended.upstream_local?),
                    ["uri_san_peer_certificate"] => text(ended.upstream_uri_san),
                    ["transport_failure_reason"] => text(ended.upstream_failure),
                    ["request_attempt_count"] => Some(Value::Int(ended.attempts.into())),
                    _ => None,
                }
            }
            ["xds", rest @ ..] => {
                let context = self.0.context;
                match rest {
                    ["cluster_name"] => context.upstream_cluster.and_then(text),
                    ["route_name"] => context.route_name.and_then(text),
                    ["listener_direction"] => match context.ended?.direction {
                        "inbound" => Some(Value::Int(1)),
                        "outbound" => Some(Value::Int(2)),
                        _ => Some(Value::Int(0)),
                    },
                    _ => None,
                }
            }
            ["filter_state", name, field] => {
                let ended = self.0.context.ended?;
                let peer: &PeerFacts<'_> = match *name {
                    "upstream_peer" => &ended.upstream_peer,
                    "downstream_peer" => &ended.downstream_peer,
                    _ => return None,
                };
                peer.field(field).and_then(text)
            }
            ["upstream_peer", field] => {
                self.0.context.ended?.upstream_peer.field(field).and_then(text)
            }
            ["downstream_peer", field] => {
                self.0.context.ended?.downstream_peer.field(field).and_then(text)
            }
            _ => None,
        }
    }
}

impl World<'_> {
    fn request(&self, path: &[&str]) -> Option<Value<'_>> {
        let Subject { request, context, .. } = self.0;
        let head = || request;
        let header = |name: &str| head().and_then(|head| header_value(head, name));
        let found = match path {
            ["path"] => bytes(head()?.path_and_query()),
            ["url_path"] => bytes(head()?.path()),
            ["query"] => bytes(head()?.query().unwrap_or_default()),
            ["host"] => bytes(head()?.authority()),
            ["scheme"] => Value::Text(
                match head()?.scheme {
                    Scheme::Https => "https",
                    Scheme::Http => "http",
                }
                .into(),
            ),
            ["method"] => bytes(header(":method")?),
            ["headers", name] => bytes(header(name)?),
            ["referer"] => bytes(header("referer")?),
            ["useragent"] => bytes(header("user-agent")?),
            ["id"] => bytes(header("x-request-id")?),
            ["protocol"] => {
                let version = context.protocol.or(head().map(|head| head.version));
                Value::Text(version.map(Version::as_str)?.into())
            }
            ["duration"] => duration(context.ended?.duration),
            ["size" | "total_size"] => Value::Int(context.ended?.received_bytes as i64),
            _ => return None,
        };
        Some(found)
    }

    fn response(&self, path: &[&str]) -> Option<Value<'_>> {
        let Subject { response, context, .. } = self.0;
        let field = |list: Option<&'_ HeaderList>, name: &str| {
            list.and_then(|list| list.get(name))
                .map(|value| Value::Text(String::from_utf8_lossy(value).into_owned().into()))
        };
        let ended = context.ended;
        let found = match path {
            ["code"] => Value::Int(context.response_code?.into()),
            ["code_details"] => return text(ended?.code_details),
            ["flags"] => Value::Int(flag_bits(context.response_flags.unwrap_or_default())),
            ["grpc_status"] => Value::Int(ended?.grpc_status?.into()),
            ["headers", name] => return field(response, name),
            ["trailers", name] => return field(ended?.trailers, name),
            ["size" | "total_size"] => Value::Int(ended?.sent_bytes as i64),
            ["backend_latency"] => duration(ended?.response_duration?),
            _ => return None,
        };
        Some(found)
    }

    fn connection(&self, path: &[&str]) -> Option<Value<'_>> {
        let context = self.0.context;
        match path {
            ["mtls"] => Some(Value::Bool(context.ended?.mtls)),
            ["requested_server_name"] => context.server_name.and_then(text),
            ["uri_san_peer_certificate"] => context.peer_uri_san.and_then(text),
            ["uri_san_local_certificate"] => text(context.ended?.local_uri_san),
            ["termination_details"] => text(context.ended?.termination_details),
            _ => None,
        }
    }
}

fn text(text: &str) -> Option<Value<'_>> {
    (!text.is_empty()).then(|| Value::Text(text.into()))
}

fn bytes(value: &[u8]) -> Value<'_> {
    Value::Text(String::from_utf8_lossy(value))
}

fn address(address: std::net::SocketAddr) -> Option<Value<'static>> {
    let address = std::net::SocketAddr::new(address.ip().to_canonical(), address.port());
    Some(Value::Text(address.to_string().into()))
}

/// CEL's durations are compared with `duration('1s')` there; seconds are what we have.
fn duration(duration: Duration) -> Value<'static> {
    Value::Double(duration.as_secs_f64())
}

/// Envoy's bits of response flags.
fn flag_bits(flags: &str) -> i64 {
    const NAMES: [&str; 28] = [
        "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE",
        "DC", "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF",
        "DO",
    ];
    let bit = |flag: &str| NAMES.iter().position(|name| *name == flag).map_or(0, |bit| 1 << bit);
    flags.split(',').map(bit).fold(0, |all, bit| all | bit)
}
