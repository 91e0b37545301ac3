//! The operators, by Envoy's names.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use weft_cel::Program;
use weft_http::Version;

use super::Subject;
use super::attributes::World;
use super::facts::{Ended, FormatContext};
use super::time::TimeFormat;
use crate::matcher::header_value;

#[derive(Debug, Clone)]
pub(super) enum Operator {
    Request {
        name: Box<str>,
        or: Option<Box<str>>,
        without_query: bool,
    },
    Response {
        name: Box<str>,
        or: Option<Box<str>>,
    },
    Trailer {
        name: Box<str>,
        or: Option<Box<str>>,
    },
    Address {
        of: Address,
        show: Show,
    },
    Environment(Box<str>),
    StartTime(TimeFormat),
    Fact(Fact),
    Number(Number),
    GrpcStatus(GrpcStatus),
    /// A field of the workload at the other end; None: all of them.
    Peer {
        upstream: bool,
        field: Option<Box<str>>,
    },
    Cel(Box<Program>),
    /// Known to Envoy, but nothing here has a value: dynamic metadata, filter state of others.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    /// The endpoint that was chosen.
    UpstreamHost,
    /// The other end of a connection that was made.
    UpstreamRemote,
    UpstreamLocal,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Show {
    Whole,
    WithoutPort,
    PortOnly,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Fact {
    Protocol,
    UpstreamProtocol,
    UpstreamCluster,
    RouteName,
    ServerName,
    PeerUriSan,
    LocalUriSan,
    UpstreamPeerUriSan,
    ResponseFlags,
    ResponseFlagsLong,
    Hostname,
    CodeDetails,
    TerminationDetails,
    UpstreamFailure,
    UpstreamHostName,
    TraceId,
    StreamId,
    Why,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    ResponseCode,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    Attempts,
    /// Between two points in time, with the unit's nanoseconds.
    Between(Point, Point, u64),
}

/// Points in time of `%COMMON_DURATION%`, as far as they are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    Start,
    RequestEnd,
    ResponseStart,
    End,
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcStatus {
    Camel,
    Snake,
    Number,
}

/// What has to be kept of messages until the end of a request. Names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    pub response: Vec<Box<str>>,
    pub trailers: Vec<Box<str>>,
    /// The provenance.
    pub why: bool,
}

/// Of a response: how long the upstream took, which we do not send on but logs ask for.
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

impl Operator {
    pub(super) fn parse(name: &str, argument: &str) -> Result<Operator, String> {
        if let Some(address) = address(name) {
            return Ok(address);
        }
        let fact = |fact| Ok(Operator::Fact(fact));
        let number = |number| Ok(Operator::Number(number));
        match name {
            "REQ" | "REQ_WITHOUT_QUERY" => {
                let without_query = name == "REQ_WITHOUT_QUERY";
                let (name, or) = header_names(argument)?;
                Ok(Operator::Request { name, or, without_query })
            }
            "PATH" => path(argument),
            "RESP" => {
                let (name, or) = header_names(argument)?;
                Ok(Operator::Response { name, or })
            }
            "TRAILER" => {
                let (name, or) = header_names(argument)?;
                Ok(Operator::Trailer { name, or })
            }
            "ENVIRONMENT" if !argument.is_empty() => Ok(Operator::Environment(argument.into())),
            "START_TIME" => Ok(Operator::StartTime(TimeFormat::parse(argument)?)),
            "GRPC_STATUS" => Ok(Operator::GrpcStatus(match argument {
                "" | "CAMEL_STRING" => GrpcStatus::Camel,
                "SNAKE_STRING" => GrpcStatus::Snake,
                "NUMBER" => GrpcStatus::Number,
                other => return Err(format!("GRPC_STATUS has no format {other:?}")),
            })),
            "GRPC_STATUS_NUMBER" => Ok(Operator::GrpcStatus(GrpcStatus::Number)),
            "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => Ok(filter_state(argument)),
            "DYNAMIC_METADATA" | "METADATA" | "CLUSTER_METADATA" | "UPSTREAM_METADATA"
                if !argument.is_empty() =>
            {
                Ok(Operator::Nothing)
            }
            "CEL" | "TYPED_CEL" => match Program::compile(argument) {
                Ok(program) => Ok(Operator::Cel(Box::new(program))),
                Err(error) => Err(format!("CEL expression {argument:?} {error}")),
            },
            "RESPONSE_CODE" => number(Number::ResponseCode),
            "BYTES_RECEIVED" => number(Number::BytesReceived),
            "BYTES_SENT" => number(Number::BytesSent),
            "DURATION" => number(Number::Duration),
            "REQUEST_DURATION" => number(Number::RequestDuration),
            "RESPONSE_DURATION" => number(Number::ResponseDuration),
            "RESPONSE_TX_DURATION" => number(Number::ResponseTxDuration),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => number(Number::Attempts),
            "COMMON_DURATION" => between(argument),
            "PROTOCOL" => fact(Fact::Protocol),
            "UPSTREAM_PROTOCOL" => fact(Fact::UpstreamProtocol),
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => fact(Fact::UpstreamCluster),
            "UPSTREAM_HOST_NAME" => fact(Fact::UpstreamHostName),
            "ROUTE_NAME" => fact(Fact::RouteName),
            "REQUESTED_SERVER_NAME" => fact(Fact::ServerName),
            "DOWNSTREAM_PEER_URI_SAN" => fact(Fact::PeerUriSan),
            "DOWNSTREAM_LOCAL_URI_SAN" | "UPSTREAM_LOCAL_URI_SAN" => fact(Fact::LocalUriSan),
            "UPSTREAM_PEER_URI_SAN" => fact(Fact::UpstreamPeerUriSan),
            "RESPONSE_FLAGS" => fact(Fact::ResponseFlags),
            "RESPONSE_FLAGS_LONG" => fact(Fact::ResponseFlagsLong),
            "RESPONSE_CODE_DETAILS" => fact(Fact::CodeDetails),
            "CONNECTION_TERMINATION_DETAILS" => fact(Fact::TerminationDetails),
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => fact(Fact::UpstreamFailure),
            "HOSTNAME" => fact(Fact::Hostname),
            "TRACE_ID" => fact(Fact::TraceId),
            "STREAM_ID" => fact(Fact::StreamId),
            "WEFT_WHY" => fact(Fact::Why),
            name => Err(format!("operator {name:?} is not supported")),
        }
    }

    /// False: nothing is known, and nothing was written.
    pub(super) fn render(&self, out: &mut Vec<u8>, subject: Subject<'_>) -> bool {
        let Subject { request, response, context } = subject;
        let mut put = |text: Option<&[u8]>| match text {
            Some(text) => {
                out.extend_from_slice(text);
                true
            }
            None => false,
        };
        match self {
            Operator::Request { name, or, without_query } => {
                let Some(head) = request else { return false };
                let or = || or.as_deref().and_then(|or| header_value(head, or));
                let Some(value) = header_value(head, name).or_else(or) else { return false };
                let end = match without_query {
                    true => value.iter().position(|&byte| byte == b'?').unwrap_or(value.len()),
                    false => value.len(),
                };
                put(Some(&value[..end]))
            }
            Operator::Response { name, or } => {
                let found = response.and_then(|headers| {
                    let or = || or.as_deref().and_then(|or| headers.get(or));
                    headers.get(&**name).or_else(or)
                });
                match (found, service_time(name, context)) {
                    (None, Some(millis)) => put(Some(millis.to_string().as_bytes())),
                    (found, _) => put(found),
                }
            }
            Operator::Trailer { name, or } => {
                let trailers = context.ended.and_then(|ended| ended.trailers);
                put(trailers.and_then(|trailers| {
                    let or = || or.as_deref().and_then(|or| trailers.get(or));
                    trailers.get(&**name).or_else(or)
                }))
            }
            Operator::Address { of, show } => put(of
                .read(context)
                .map(|address| show.print(address))
                .as_ref()
                .map(String::as_bytes)),
            Operator::Environment(name) => {
                let value = context.environment.and_then(|read| read(name));
                put(value.as_ref().map(String::as_bytes))
            }
            Operator::StartTime(format) => {
                let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
                let since = context.start_time.and_then(since);
                put(since.map(|since| format.print(since)).as_ref().map(String::as_bytes))
            }
            Operator::Fact(fact) => match fact.read(subject) {
                Some(text) if !text.is_empty() => put(Some(text.as_bytes())),
                Some(_) | None => false,
            },
            Operator::Number(number) => match number.read(context) {
                Some(number) => put(Some(number.to_string().as_bytes())),
                None => false,
            },
            Operator::GrpcStatus(format) => {
                match context.ended.and_then(|ended| ended.grpc_status) {
                    Some(status) => put(Some(format.print(status).as_bytes())),
                    None => false,
                }
            }
            Operator::Peer { upstream, field } => {
                put(peer(context, *upstream, field.as_deref()).as_ref().map(String::as_bytes))
            }
            Operator::Cel(program) => {
                let world = World(subject);
                match program.evaluate(&world) {
                    Ok(weft_cel::Value::Null) | Err(_) => false,
                    Ok(value) => put(Some(value.to_text().as_bytes())),
                }
            }
            Operator::Nothing => false,
        }
    }

    /// Whether JSON shows the value as a number.
    pub(super) fn is_number(&self) -> bool {
        matches!(
            self,
            Operator::Number(_)
                | Operator::GrpcStatus(GrpcStatus::Number)
                | Operator::Address { show: Show::PortOnly, .. }
        )
    }

    pub(super) fn wants(&self, wants: &mut Wants) {
        match self {
            Operator::Response { name, or } => {
                for name in std::iter::once(name).chain(or) {
                    add(&mut wants.response, name);
                }
            }
            Operator::Trailer { name, or } => {
                for name in std::iter::once(name).chain(or) {
                    add(&mut wants.trailers, name);
                }
            }
            Operator::Cel(program) => wants.of_program(program),
            Operator::Fact(Fact::Why) => wants.why = true,
            _ => {}
        }
    }
}

impl Wants {
    /// What an expression reads.
    pub(crate) fn of_program(&mut self, program: &Program) {
        for path in program.attributes() {
            match path.as_slice() {
                ["response", "headers", name] => add(&mut self.response, name),
                ["response", "trailers", name] => add(&mut self.trailers, name),
                _ => {}
            }
        }
    }
}

fn add(names: &mut Vec<Box<str>>, name: &str) {
    if !names.iter().any(|known| **known == *name) {
        names.push(name.into());
    }
}

fn address(name: &str) -> Option<Operator> {
    use Address::{
        DownstreamDirectRemote, DownstreamLocal, DownstreamRemote, UpstreamHost, UpstreamLocal,
        UpstreamRemote,
    };
    let (rest, show) = if let Some(rest) = name.strip_suffix("_ADDRESS_WITHOUT_PORT") {
        (rest, Show::WithoutPort)
    } else if let Some(rest) = name.strip_suffix("_ADDRESS") {
        (rest, Show::Whole)
    } else if let Some(rest) = name.strip_suffix("_PORT") {
        (rest, Show::PortOnly)
    } else {
        (name, Show::Whole)
    };
    let of = match rest {
        "DOWNSTREAM_REMOTE" => DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE" => DownstreamDirectRemote,
        "DOWNSTREAM_LOCAL" | "DOWNSTREAM_DIRECT_LOCAL" => DownstreamLocal,
        "UPSTREAM_REMOTE" => UpstreamRemote,
        "UPSTREAM_HOST" if name == "UPSTREAM_HOST" => UpstreamHost,
        "UPSTREAM_LOCAL" => UpstreamLocal,
        _ => return None,
    };
    // `UPSTREAM_REMOTE` alone is no operator.
    (name == "UPSTREAM_HOST" || rest != name).then_some(Operator::Address { of, show })
}

/// `WQ` or `NQ`, and whose path: `%PATH(NQ:ORIG)%`.
fn path(argument: &str) -> Result<Operator, String> {
    let (query, source) = argument.split_once(':').unwrap_or((argument, ""));
    let without_query = match query {
        "" | "WQ" => false,
        "NQ" => true,
        other => return Err(format!("PATH has no option {other:?}")),
    };
    let (name, or): (Box<str>, Option<Box<str>>) = match source {
        "" | "ORIG_OR_PATH" => ("x-envoy-original-path".into(), Some(":path".into())),
        "ORIG" => ("x-envoy-original-path".into(), None),
        "PATH" => (":path".into(), None),
        other => return Err(format!("PATH has no option {other:?}")),
    };
    Ok(Operator::Request { name, or, without_query })
}

/// `upstream_peer`, `downstream_peer`, with Istio's forms `:PLAIN`, `:FIELD:name`.
fn filter_state(argument: &str) -> Operator {
    let mut parts = argument.splitn(3, ':');
    let key = parts.next().unwrap_or_default();
    let upstream = match key.strip_prefix("wasm.").unwrap_or(key) {
        "upstream_peer" => true,
        "downstream_peer" => false,
        _ => return Operator::Nothing,
    };
    let field = match (parts.next(), parts.next()) {
        (Some("FIELD"), Some(field)) => Some(field.into()),
        _ => None,
    };
    Operator::Peer { upstream, field }
}

fn between(argument: &str) -> Result<Operator, String> {
    let point = |name: &str| {
        Ok(match name {
            "DS_RX_BEG" => Point::Start,
            "DS_RX_END" => Point::RequestEnd,
            "US_RX_BEG" => Point::ResponseStart,
            "DS_TX_END" => Point::End,
            "US_CX_BEG" | "US_CX_END" | "US_HS_END" | "US_TX_BEG" | "US_TX_END" | "US_RX_END"
            | "DS_TX_BEG" => Point::Unknown,
            other => return Err(format!("COMMON_DURATION has no point {other:?}")),
        })
    };
    let parts: Vec<&str> = argument.split(':').collect();
    let (start, end, unit) = match parts.as_slice() {
        [start, end] => (*start, *end, "ms"),
        [start, end, unit] => (*start, *end, *unit),
        _ => return Err("COMMON_DURATION takes START:END:PRECISION".into()),
    };
    let nanos = match unit {
        "ms" => 1_000_000,
        "us" => 1_000,
        "ns" => 1,
        other => return Err(format!("COMMON_DURATION has no precision {other:?}")),
    };
    Ok(Operator::Number(Number::Between(point(start)?, point(end)?, nanos)))
}

/// `X` or `X?Y`, lower-cased.
fn header_names(argument: &str) -> Result<(Box<str>, Option<Box<str>>), String> {
    let lower = argument.to_ascii_lowercase();
    let (name, or) = match lower.split_once('?') {
        Some((name, or)) => (name, Some(or.into())),
        None => (lower.as_str(), None),
    };
    if name.is_empty() {
        return Err("a header name is missing".into());
    }
    Ok((name.into(), or))
}

fn service_time(name: &str, context: &FormatContext<'_>) -> Option<u128> {
    let ended = context.ended.filter(|_| name == SERVICE_TIME)?;
    let from = ended.request_duration.unwrap_or_default();
    Some(ended.response_duration?.saturating_sub(from).as_millis())
}

fn peer(context: &FormatContext<'_>, upstream: bool, field: Option<&str>) -> Option<String> {
    let ended = context.ended?;
    let peer = if upstream { &ended.upstream_peer } else { &ended.downstream_peer };
    if let Some(field) = field {
        return peer.field(field).map(str::to_owned);
    }
    let fields = ["cluster", "namespace", "workload", "app", "version", "service", "revision"];
    let known: Vec<String> = fields
        .iter()
        .filter_map(|name| peer.field(name).map(|value| format!("{name}={value}")))
        .collect();
    (!known.is_empty()).then(|| known.join(","))
}

impl Fact {
    fn read(self, subject: Subject<'_>) -> Option<&str> {
        let Subject { request, context, .. } = subject;
        let ended = context.ended;
        match self {
            Fact::Protocol => {
                let came = request.map(|head| head.version);
                context.protocol.or(came).map(Version::as_str)
            }
            Fact::UpstreamProtocol => ended?.upstream_protocol.map(Version::as_str),
            Fact::UpstreamCluster => context.upstream_cluster,
            Fact::RouteName => context.route_name,
            Fact::ServerName => context.server_name,
            Fact::PeerUriSan => context.peer_uri_san,
            Fact::LocalUriSan => Some(ended?.local_uri_san),
            Fact::UpstreamPeerUriSan => Some(ended?.upstream_uri_san),
            Fact::ResponseFlags => Some(context.response_flags.unwrap_or("-")),
            Fact::ResponseFlagsLong => Some(match context.response_flags {
                None | Some("" | "-") => "-",
                Some(flags) => long_flag(flags),
            }),
            Fact::Hostname => context.hostname,
            Fact::CodeDetails => Some(ended?.code_details),
            Fact::TerminationDetails => Some(ended?.termination_details),
            Fact::UpstreamFailure => Some(ended?.upstream_failure),
            Fact::UpstreamHostName => Some(ended?.upstream_host_name),
            Fact::TraceId => Some(ended?.trace_id),
            Fact::StreamId => {
                let id = header_value(request?, "x-request-id")?;
                std::str::from_utf8(id).ok()
            }
            Fact::Why => Some(ended?.why),
        }
    }
}

/// Envoy's long name of the first flag; several at once are rare and the first says most.
fn long_flag(flags: &str) -> &'static str {
    match flags.split(',').next().unwrap_or_default() {
        "LH" => "FailedLocalHealthCheck",
        "UH" => "NoHealthyUpstream",
        "UT" => "UpstreamRequestTimeout",
        "LR" => "LocalReset",
        "UR" => "UpstreamRemoteReset",
        "UF" => "UpstreamConnectionFailure",
        "UC" => "UpstreamConnectionTermination",
        "UO" => "UpstreamOverflow",
        "NR" => "NoRouteFound",
        "DI" => "DelayInjected",
        "FI" => "FaultInjected",
        "RL" => "RateLimited",
        "UAEX" => "UnauthorizedExternalService",
        "RLSE" => "RateLimitServiceError",
        "DC" => "DownstreamConnectionTermination",
        "URX" => "UpstreamRetryLimitExceeded",
        "SI" => "StreamIdleTimeout",
        "IH" => "InvalidEnvoyRequestHeaders",
        "DPE" => "DownstreamProtocolError",
        "UMSDR" => "UpstreamMaxStreamDurationReached",
        "RFCF" => "ResponseFromCacheFilter",
        "NFCF" => "NoFilterConfigFound",
        "DT" => "DurationTimeout",
        "UPE" => "UpstreamProtocolError",
        "NC" => "NoClusterFound",
        "OM" => "OverloadManagerTerminated",
        "DF" => "DnsResolutionFailed",
        "DO" => "DropOverload",
        _ => "-",
    }
}

impl Number {
    fn read(self, context: &FormatContext<'_>) -> Option<u64> {
        let millis = |duration: Duration| duration.as_millis() as u64;
        let ended = context.ended;
        match self {
            Number::ResponseCode => Some(u64::from(context.response_code.unwrap_or(0))),
            Number::BytesReceived => ended.map(|ended| ended.received_bytes),
            Number::BytesSent => ended.map(|ended| ended.sent_bytes),
            Number::Duration => ended.map(|ended| millis(ended.duration)),
            Number::RequestDuration => ended?.request_duration.map(millis),
            Number::ResponseDuration => ended?.response_duration.map(millis),
            Number::ResponseTxDuration => {
                let ended = ended?;
                Some(millis(ended.duration.saturating_sub(ended.response_duration?)))
            }
            Number::Attempts => ended.map(|ended| u64::from(ended.attempts)),
            Number::Between(from, to, unit) => {
                let ended = ended?;
                let (from, to) = (from.read(ended)?, to.read(ended)?);
                Some((to.saturating_sub(from).as_nanos() / u128::from(unit)) as u64)
            }
        }
    }
}

impl Point {
    fn read(self, ended: &Ended<'_>) -> Option<Duration> {
        match self {
            Point::Start => Some(Duration::ZERO),
            Point::RequestEnd => ended.request_duration,
            Point::ResponseStart => ended.response_duration,
            Point::End => Some(ended.duration),
            Point::Unknown => None,
        }
    }
}

/// By number: camel case; the other spelling is made of it.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl GrpcStatus {
    fn print(self, status: u8) -> String {
        match (self, GRPC_STATUSES.get(usize::from(status))) {
            (GrpcStatus::Number, _) | (_, None) => status.to_string(),
            (GrpcStatus::Camel, Some(name)) => (*name).to_owned(),
            (GrpcStatus::Snake, Some(name)) => snake(name),
        }
    }
}

/// `NotFound` as `NOT_FOUND`.
fn snake(camel: &str) -> String {
    let mut out = String::new();
    let mut was_lower = false;
    for char in camel.chars() {
        if char.is_ascii_uppercase() && was_lower {
            out.push('_');
        }
        was_lower = char.is_ascii_lowercase();
        out.push(char.to_ascii_uppercase());
    }
    out
}

impl Address {
    fn read(self, context: &FormatContext<'_>) -> Option<SocketAddr> {
        match self {
            Address::DownstreamRemote => context.downstream_remote,
            Address::DownstreamDirectRemote => context.downstream_direct_remote,
            Address::DownstreamLocal => context.downstream_local,
            Address::UpstreamHost => context.upstream_remote,
            Address::UpstreamRemote => match context.ended {
                Some(Ended { upstream_local: None, .. }) => None,
                _ => context.upstream_remote,
            },
            Address::UpstreamLocal => context.ended.and_then(|ended| ended.upstream_local),
        }
    }
}

impl Show {
    fn print(self, address: SocketAddr) -> String {
        match (self, address.ip().to_canonical()) {
            (Show::Whole, ip) => SocketAddr::new(ip, address.port()).to_string(),
            (Show::WithoutPort, IpAddr::V4(ip)) => ip.to_string(),
            (Show::WithoutPort, IpAddr::V6(ip)) => ip.to_string(),
            (Show::PortOnly, _) => address.port().to_string(),
        }
    }
}
