//! Envoy's command operators, as far as header edits use them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use weft_http::{HeaderList, RequestHead, Version};

use crate::matcher::header_value;

/// A parsed format string.
#[derive(Debug, Clone)]
pub struct Format {
    parts: Vec<Part>,
}

/// Facts about the request that operators print. What is unknown prints as nothing, but a missing
/// response code as `0` and missing flags as `-`, as in Envoy.
#[derive(Debug, Clone, Copy, Default)]
pub struct FormatContext<'a> {
    /// What the client spoke; None: what the head says, which is fitted to the endpoint's version.
    pub protocol: Option<Version>,
    /// The client, after `x-forwarded-for` and PROXY protocol.
    pub downstream_remote: Option<SocketAddr>,
    /// The TCP peer.
    pub downstream_direct_remote: Option<SocketAddr>,
    pub downstream_local: Option<SocketAddr>,
    pub upstream_remote: Option<SocketAddr>,
    pub upstream_cluster: Option<&'a str>,
    pub route_name: Option<&'a str>,
    /// Server name of the client's TLS.
    pub server_name: Option<&'a str>,
    /// URI SAN of the client's certificate.
    pub peer_uri_san: Option<&'a str>,
    pub start_time: Option<SystemTime>,
    pub response_code: Option<u16>,
    pub response_flags: Option<&'a str>,
    /// This host's name.
    pub hostname: Option<&'a str>,
    /// Reads the environment (`%ENVIRONMENT(X)%`).
    pub environment: Option<fn(&str) -> Option<String>>,
}

/// An operator that we do not know, or a `%` out of place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad format {format:?}: {reason}")]
pub struct FormatError {
    pub format: String,
    pub reason: String,
}

#[derive(Debug, Clone)]
enum Part {
    Text(Box<[u8]>),
    Operator { operator: Operator, length_max: Option<usize> },
}

#[derive(Debug, Clone)]
enum Operator {
    Request { name: Box<str>, or: Option<Box<str>>, without_query: bool },
    Response { name: Box<str>, or: Option<Box<str>> },
    Address { of: Address, show: Show },
    Environment(Box<str>),
    StartTime(TimeFormat),
    Fact(Fact),
}

#[derive(Debug, Clone, Copy)]
enum Address {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    UpstreamRemote,
}

#[derive(Debug, Clone, Copy)]
enum Show {
    Whole,
    WithoutPort,
    PortOnly,
}

#[derive(Debug, Clone, Copy)]
enum TimeFormat {
    /// `2026-01-31T23:59:59.123Z`
    Iso,
    /// Seconds since 1970, with this many digits after a point.
    Unix { digits: usize },
}

#[derive(Debug, Clone, Copy)]
enum Fact {
    Protocol,
    UpstreamCluster,
    RouteName,
    ServerName,
    PeerUriSan,
    ResponseCode,
    ResponseFlags,
    Hostname,
}

impl Format {
    /// A value without operators.
    pub fn literal(value: &[u8]) -> Format {
        Format { parts: vec![Part::Text(value.into())] }
    }

    pub fn parse(text: &str) -> Result<Format, FormatError> {
        let bad = |reason: String| FormatError { format: text.to_owned(), reason };
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal.extend_from_slice(&rest.as_bytes()[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push(b'%');
                rest = after;
                continue;
            }
            let end = operator_end(rest).ok_or_else(|| bad("`%` is not closed".into()))?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal).into()));
            }
            parts.push(parse_operator(&rest[..end]).map_err(bad)?);
            rest = &rest[end + 1..];
        }
        literal.extend_from_slice(rest.as_bytes());
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Ok(Format { parts })
    }

    /// The text for a request; `response` is what `%RESP(X)%` reads.
    pub fn render(
        &self,
        request: Option<&RequestHead>,
        response: Option<&HeaderList>,
        context: &FormatContext<'_>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Operator { operator, length_max } => {
                    let start = out.len();
                    operator.render(&mut out, request, response, context);
                    if let Some(max) = length_max {
                        out.truncate(start.saturating_add(*max));
                    }
                }
            }
        }
        out
    }
}

/// Where the closing `%` is; a `%` inside the parentheses belongs to the argument.
fn operator_end(text: &str) -> Option<usize> {
    let close = text.find('%')?;
    match text.find('(') {
        Some(open) if open < close => {
            let end = open + text[open..].find(')')?;
            text[end..].find('%').map(|at| end + at)
        }
        _ => Some(close),
    }
}

/// `NAME`, `NAME(argument)`, each with an optional `:length`.
fn parse_operator(text: &str) -> Result<Part, String> {
    let (name, argument, tail) = match text.find('(') {
        Some(open) => {
            let close = text.rfind(')').ok_or("parenthesis is not closed")?;
            let argument = text.get(open + 1..close).ok_or("misplaced parenthesis")?;
            (&text[..open], argument, &text[close + 1..])
        }
        None => match text.split_once(':') {
            Some((name, _)) => (name, "", &text[name.len()..]),
            None => (text, "", ""),
        },
    };
    let length_max = match tail.strip_prefix(':') {
        Some(digits) => Some(digits.parse().map_err(|_| format!("bad length {digits:?}"))?),
        None if tail.is_empty() => None,
        None => return Err(format!("unexpected {tail:?}")),
    };
    Ok(Part::Operator { operator: operator(name, argument)?, length_max })
}

fn operator(name: &str, argument: &str) -> Result<Operator, String> {
    use Address::{DownstreamDirectRemote, DownstreamLocal, DownstreamRemote, UpstreamRemote};
    use Show::{PortOnly, Whole, WithoutPort};
    let address = |of, show| Operator::Address { of, show };
    Ok(match name {
        "REQ" | "REQ_WITHOUT_QUERY" => {
            let without_query = name == "REQ_WITHOUT_QUERY";
            let (name, or) = header_names(argument)?;
            Operator::Request { name, or, without_query }
        }
        "RESP" => {
            let (name, or) = header_names(argument)?;
            Operator::Response { name, or }
        }
        "DOWNSTREAM_REMOTE_ADDRESS" => address(DownstreamRemote, Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(DownstreamRemote, WithoutPort),
        "DOWNSTREAM_REMOTE_PORT" => address(DownstreamRemote, PortOnly),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => address(DownstreamDirectRemote, Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            address(DownstreamDirectRemote, WithoutPort)
        }
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => address(DownstreamDirectRemote, PortOnly),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(DownstreamLocal, Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address(DownstreamLocal, WithoutPort),
        "DOWNSTREAM_LOCAL_PORT" => address(DownstreamLocal, PortOnly),
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => address(UpstreamRemote, Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(UpstreamRemote, WithoutPort),
        "UPSTREAM_REMOTE_PORT" => address(UpstreamRemote, PortOnly),
        "ENVIRONMENT" if !argument.is_empty() => Operator::Environment(argument.into()),
        "START_TIME" => Operator::StartTime(time_format(argument)?),
        "PROTOCOL" => Operator::Fact(Fact::Protocol),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::Fact(Fact::UpstreamCluster),
        "ROUTE_NAME" => Operator::Fact(Fact::RouteName),
        "REQUESTED_SERVER_NAME" => Operator::Fact(Fact::ServerName),
        "DOWNSTREAM_PEER_URI_SAN" => Operator::Fact(Fact::PeerUriSan),
        "RESPONSE_CODE" => Operator::Fact(Fact::ResponseCode),
        "RESPONSE_FLAGS" => Operator::Fact(Fact::ResponseFlags),
        "HOSTNAME" => Operator::Fact(Fact::Hostname),
        name => return Err(format!("operator {name:?} is not supported in header edits")),
    })
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

fn time_format(argument: &str) -> Result<TimeFormat, String> {
    match argument {
        "" | "%Y-%m-%dT%H:%M:%S.%3fZ" | "%Y-%m-%dT%H:%M:%E3SZ" => Ok(TimeFormat::Iso),
        "%s" => Ok(TimeFormat::Unix { digits: 0 }),
        "%s.%3f" => Ok(TimeFormat::Unix { digits: 3 }),
        "%s.%6f" => Ok(TimeFormat::Unix { digits: 6 }),
        "%s.%9f" => Ok(TimeFormat::Unix { digits: 9 }),
        other => Err(format!("time format {other:?} is not supported; use %s, %s.%3f or none")),
    }
}

impl Operator {
    fn render(
        &self,
        out: &mut Vec<u8>,
        request: Option<&RequestHead>,
        response: Option<&HeaderList>,
        context: &FormatContext<'_>,
    ) {
        match self {
            Operator::Request { name, or, without_query } => {
                let Some(head) = request else { return };
                let or = || or.as_deref().and_then(|or| header_value(head, or));
                let Some(value) = header_value(head, name).or_else(or) else { return };
                let end = match without_query {
                    true => value.iter().position(|&byte| byte == b'?').unwrap_or(value.len()),
                    false => value.len(),
                };
                out.extend_from_slice(&value[..end]);
            }
            Operator::Response { name, or } => {
                let Some(headers) = response else { return };
                let or = || or.as_deref().and_then(|or| headers.get(or));
                out.extend_from_slice(headers.get(&**name).or_else(or).unwrap_or_default());
            }
            Operator::Address { of, show } => {
                if let Some(address) = of.read(context) {
                    out.extend_from_slice(show.print(address).as_bytes());
                }
            }
            Operator::Environment(name) => {
                let value = context.environment.and_then(|read| read(name));
                out.extend_from_slice(value.unwrap_or_default().as_bytes());
            }
            Operator::StartTime(format) => {
                let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
                if let Some(since) = context.start_time.and_then(since) {
                    out.extend_from_slice(format.print(since).as_bytes());
                }
            }
            Operator::Fact(fact) => fact.render(out, request, context),
        }
    }
}

impl Fact {
    fn render(self, out: &mut Vec<u8>, request: Option<&RequestHead>, context: &FormatContext<'_>) {
        let text = match self {
            Fact::Protocol => {
                let came = request.map(|head| head.version);
                context.protocol.or(came).map(Version::as_str)
            }
            Fact::UpstreamCluster => context.upstream_cluster,
            Fact::RouteName => context.route_name,
            Fact::ServerName => context.server_name,
            Fact::PeerUriSan => context.peer_uri_san,
            Fact::ResponseFlags => Some(context.response_flags.unwrap_or("-")),
            Fact::Hostname => context.hostname,
            Fact::ResponseCode => {
                let code = context.response_code.unwrap_or(0).to_string();
                return out.extend_from_slice(code.as_bytes());
            }
        };
        out.extend_from_slice(text.unwrap_or_default().as_bytes());
    }
}

impl Address {
    fn read(self, context: &FormatContext<'_>) -> Option<SocketAddr> {
        match self {
            Address::DownstreamRemote => context.downstream_remote,
            Address::DownstreamDirectRemote => context.downstream_direct_remote,
            Address::DownstreamLocal => context.downstream_local,
            Address::UpstreamRemote => context.upstream_remote,
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

impl TimeFormat {
    fn print(self, since_1970: Duration) -> String {
        let (secs, nanos) = (since_1970.as_secs(), since_1970.subsec_nanos());
        match self {
            TimeFormat::Unix { digits: 0 } => secs.to_string(),
            TimeFormat::Unix { digits } => {
                let fraction = format!("{nanos:09}");
                format!("{secs}.{}", &fraction[..digits.min(9)])
            }
            TimeFormat::Iso => {
                let (year, month, day) = civil_date(secs / 86_400);
                let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
                let millis = nanos / 1_000_000;
                format!(
                    "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
                )
            }
        }
    }
}

/// Year, month and day of a day count since 1970-01-01, in the Gregorian calendar. Years are counted
/// from March so that the leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}
