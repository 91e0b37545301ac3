//! Sets of attributes out of a report: words looked up, changes applied.

use std::net::IpAddr;
use std::sync::LazyLock;

use tonic::Status;
use weft_xds::mixer::{CompressedAttributes, ReportRequest};

use super::dictionary::WORDS;

/// Sets of one report; clients send at most 100.
const SETS_MAX: usize = 10_000;

/// Attributes that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Attribute {
    ReporterKind,
    SourceUid,
    SourceIp,
    SourceNamespace,
    SourceWorkload,
    SourceWorkloadNamespace,
    SourcePrincipal,
    SourceUser,
    DestinationUid,
    DestinationIp,
    DestinationPort,
    DestinationNamespace,
    DestinationWorkload,
    DestinationWorkloadNamespace,
    ServiceHost,
    ServiceName,
    Service,
    Method,
    Path,
    UrlPath,
    Host,
    Id,
    RequestSize,
    RequestTotalSize,
    Code,
    Duration,
    ResponseSize,
    ResponseTotalSize,
    GrpcStatus,
    Flags,
    ContextProtocol,
    ApiProtocol,
    Mtls,
    Event,
    ReceivedBytes,
    SentBytes,
    Count,
}

const NAMES: [(&str, Attribute); Attribute::Count as usize] = [
    ("context.reporter.kind", Attribute::ReporterKind),
    ("source.uid", Attribute::SourceUid),
    ("source.ip", Attribute::SourceIp),
    ("source.namespace", Attribute::SourceNamespace),
    ("source.workload.name", Attribute::SourceWorkload),
    ("source.workload.namespace", Attribute::SourceWorkloadNamespace),
    ("source.principal", Attribute::SourcePrincipal),
    ("source.user", Attribute::SourceUser),
    ("destination.uid", Attribute::DestinationUid),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::DestinationPort),
    ("destination.namespace", Attribute::DestinationNamespace),
    ("destination.workload.name", Attribute::DestinationWorkload),
    ("destination.workload.namespace", Attribute::DestinationWorkloadNamespace),
    ("destination.service.host", Attribute::ServiceHost),
    ("destination.service.name", Attribute::ServiceName),
    ("destination.service", Attribute::Service),
    ("request.method", Attribute::Method),
    ("request.path", Attribute::Path),
    ("request.url_path", Attribute::UrlPath),
    ("request.host", Attribute::Host),
    ("request.id", Attribute::Id),
    ("request.size", Attribute::RequestSize),
    ("request.total_size", Attribute::RequestTotalSize),
    ("response.code", Attribute::Code),
    ("response.duration", Attribute::Duration),
    ("response.size", Attribute::ResponseSize),
    ("response.total_size", Attribute::ResponseTotalSize),
    ("response.grpc_status", Attribute::GrpcStatus),
    ("context.proxy_error_code", Attribute::Flags),
    ("context.protocol", Attribute::ContextProtocol),
    ("api.protocol", Attribute::ApiProtocol),
    ("connection.mtls", Attribute::Mtls),
    ("connection.event", Attribute::Event),
    ("connection.received.bytes", Attribute::ReceivedBytes),
    ("connection.sent.bytes", Attribute::SentBytes),
];

/// By number of the global word; `None`: not read.
static GLOBAL: LazyLock<Vec<Option<Attribute>>> =
    LazyLock::new(|| WORDS.iter().map(|word| of(word)).collect());

fn of(word: &str) -> Option<Attribute> {
    NAMES.iter().find(|(name, _)| *name == word).map(|(_, name)| *name)
}

#[derive(Clone, Debug, PartialEq)]
enum Value<'r> {
    Text(&'r str),
    Number(i64),
    Flag(bool),
    /// Microseconds.
    Time(u64),
    Address(IpAddr),
}

/// One set: what one request or connection was.
#[derive(Clone, Debug)]
pub(super) struct Set<'r>([Option<Value<'r>>; Attribute::Count as usize]);

impl<'r> Set<'r> {
    fn empty() -> Self {
        Self([const { None }; Attribute::Count as usize])
    }

    /// Empty when it is not there, or no text.
    pub(super) fn text(&self, name: Attribute) -> &'r str {
        match &self.0[name as usize] {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// The first of them that is there.
    pub(super) fn first(&self, names: &[Attribute]) -> &'r str {
        names.iter().map(|name| self.text(*name)).find(|text| !text.is_empty()).unwrap_or_default()
    }

    pub(super) fn number(&self, name: Attribute) -> Option<u64> {
        match &self.0[name as usize] {
            Some(Value::Number(number)) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn flag(&self, name: Attribute) -> bool {
        matches!(self.0[name as usize], Some(Value::Flag(true)))
    }

    pub(super) fn time_us(&self, name: Attribute) -> u64 {
        match self.0[name as usize] {
            Some(Value::Time(us)) => us,
            _ => 0,
        }
    }

    pub(super) fn address(&self, name: Attribute) -> Option<IpAddr> {
        match self.0[name as usize] {
            Some(Value::Address(ip)) => Some(ip),
            _ => None,
        }
    }

    fn put(&mut self, name: Attribute, value: Value<'r>) {
        self.0[name as usize] = Some(value);
    }

    fn change(&mut self, by: &'r CompressedAttributes, words: &'r [String]) -> Result<(), Status> {
        let CompressedAttributes {
            words: _,
            strings,
            int64s,
            doubles: _,
            bools,
            timestamps: _,
            durations,
            bytes,
            string_maps: _,
        } = by;
        for (name, text) in strings {
            if let Some(name) = self::name(*name, words)? {
                self.put(name, Value::Text(word(*text, words)?));
            }
        }
        for (name, number) in int64s {
            if let Some(name) = self::name(*name, words)? {
                self.put(name, Value::Number(*number));
            }
        }
        for (name, flag) in bools {
            if let Some(name) = self::name(*name, words)? {
                self.put(name, Value::Flag(*flag));
            }
        }
        for (name, time) in durations {
            if let Some(name) = self::name(*name, words)? {
                let seconds = u64::try_from(time.seconds).unwrap_or(0);
                let nanos = u64::try_from(time.nanos).unwrap_or(0);
                let us = seconds.saturating_mul(1_000_000).saturating_add(nanos / 1000);
                self.put(name, Value::Time(us));
            }
        }
        for (name, bytes) in bytes {
            if let (Some(name), Some(ip)) = (self::name(*name, words)?, ip(bytes)) {
                self.put(name, Value::Address(ip));
            }
        }
        Ok(())
    }
}

/// Every set of a report, in its order.
///
/// # Errors
/// A word that no dictionary has, or too many sets.
pub(super) fn sets(report: &ReportRequest) -> Result<Vec<Set<'_>>, Status> {
    if report.global_word_count as usize > WORDS.len() {
        return Err(Status::invalid_argument(format!(
            "the client knows {} global words, here are {}",
            report.global_word_count,
            WORDS.len()
        )));
    }
    if report.attributes.len() > SETS_MAX {
        return Err(Status::invalid_argument(format!("more than {SETS_MAX} sets in one report")));
    }
    let mut sets: Vec<Set<'_>> = Vec::with_capacity(report.attributes.len());
    for attributes in &report.attributes {
        let words = match attributes.words.is_empty() {
            true => &report.default_words,
            false => &attributes.words,
        };
        let mut set = match (report.repeated_attributes_semantics, sets.last()) {
            (0, Some(before)) => before.clone(),
            _ => Set::empty(),
        };
        set.change(attributes, words)?;
        sets.push(set);
    }
    Ok(sets)
}

fn name(index: i32, words: &[String]) -> Result<Option<Attribute>, Status> {
    match usize::try_from(index) {
        Ok(global) => GLOBAL.get(global).copied().ok_or_else(|| unknown(index)),
        Err(_) => Ok(of(word(index, words)?)),
    }
}

/// From 0 up in the global dictionary, from -1 down in the message's.
fn word(index: i32, words: &[String]) -> Result<&str, Status> {
    let found = match usize::try_from(index) {
        Ok(global) => WORDS.get(global).copied(),
        Err(_) => words.get((-1 - i64::from(index)) as usize).map(String::as_str),
    };
    found.ok_or_else(|| unknown(index))
}

fn unknown(index: i32) -> Status {
    Status::invalid_argument(format!("no dictionary has word {index}"))
}

/// Four bytes, or sixteen, as Go has addresses; IPv4 in IPv6 is IPv4.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_at_its_place() {
        for (index, (word, name)) in NAMES.iter().enumerate() {
            assert_eq!(*name as usize, index, "{word}");
            assert!(WORDS.contains(word), "{word}");
        }
    }

    #[test]
    fn hostile_reports_are_refused() {
        let with = |attributes: CompressedAttributes| ReportRequest {
            attributes: vec![attributes],
            ..ReportRequest::default()
        };
        for index in [i32::MIN, i32::MAX, -1, -2, 223] {
            let strings = [(index, 0)].into();
            assert!(sets(&with(CompressedAttributes { strings, ..Default::default() })).is_err());
            let strings = [(18, index)].into();
            assert!(sets(&with(CompressedAttributes { strings, ..Default::default() })).is_err());
        }
        let many = ReportRequest { global_word_count: 1000, ..Default::default() };
        assert!(sets(&many).is_err());
        let bytes = [(0, vec![1, 2, 3])].into();
        let odd = with(CompressedAttributes { bytes, ..Default::default() });
        assert_eq!(sets(&odd).unwrap()[0].address(Attribute::SourceIp), None);
    }
}
