//! Access logs as configured: which requests are written, as what line, to where.
//!
//! Pure: makes lines. Who writes them is the proxy's business.

use std::sync::Arc;
use std::time::Duration;

use weft_cel::Program;
use weft_http::HeaderList;
use xxhash_rust::xxh64::xxh64;

use crate::collector::Collector;
use crate::format::{Format, JsonFormat, Subject, Wants, World};
use crate::log_entry::{EntryHeaders, Record};
use crate::matcher::{Fraction, HeaderMatch};

/// The logs of one HTTP connection manager, TCP proxy or listener. At least one.
#[derive(Debug)]
pub struct AccessLogs {
    logs: Vec<AccessLog>,
    /// Sinks that were asked for and that we do not have.
    unknown: Vec<Box<str>>,
    wants: Wants,
}

/// One access log.
#[derive(Debug)]
pub struct AccessLog {
    pub target: LogTarget,
    pub(crate) filter: Option<LogFilter>,
    pub(crate) line: LineFormat,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LogTarget {
    Stdout,
    Stderr,
    File(Arc<str>),
    /// Messages instead of lines.
    Service(Arc<Collector>),
}

/// What a line looks like, its end included.
#[derive(Debug)]
pub(crate) enum LineFormat {
    Text(Format),
    Json(JsonFormat),
    Record(Record),
    HttpEntry(EntryHeaders),
    TcpEntry,
}

/// Which requests are written.
#[derive(Debug)]
pub(crate) enum LogFilter {
    Status(Compare, u64),
    DurationMillis(Compare, u64),
    /// A share of requests, the same ones in every proxy that sees their id.
    Share {
        fraction: Fraction,
        independent: bool,
    },
    /// One of these flags; empty: any.
    Flags(Vec<Box<str>>),
    Grpc {
        statuses: Vec<u8>,
        exclude: bool,
    },
    Header(HeaderMatch),
    Cel(Program),
    All(Vec<LogFilter>),
    Any(Vec<LogFilter>),
    /// Every request.
    Always,
}

/// `ComparisonFilter.Op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    AtLeast,
    AtMost,
    NotEqual,
}

impl AccessLogs {
    /// None if there are none.
    pub(crate) fn new(logs: Vec<AccessLog>, unknown: Vec<Box<str>>) -> Option<Arc<AccessLogs>> {
        if logs.is_empty() && unknown.is_empty() {
            return None;
        }
        let mut wants = Wants::default();
        for log in &logs {
            match &log.line {
                LineFormat::Text(format) => format.wants(&mut wants),
                LineFormat::Json(json) => json.wants(&mut wants),
                LineFormat::Record(record) => record.wants(&mut wants),
                LineFormat::HttpEntry(headers) => headers.wants(&mut wants),
                LineFormat::TcpEntry => {}
            }
            if let Some(filter) = &log.filter {
                filter.wants(&mut wants);
            }
        }
        Some(Arc::new(AccessLogs { logs, unknown, wants }))
    }

    /// Hands the lines of a request or connection to `write`. `random` decides on shares of requests
    /// that bear no id.
    pub fn write(
        &self,
        subject: Subject<'_>,
        random: u64,
        mut write: impl FnMut(&LogTarget, &[u8]),
    ) {
        let mut line = Vec::new();
        for log in &self.logs {
            if log.filter.as_ref().is_none_or(|filter| filter.admits(subject, random)) {
                line.clear();
                match &log.line {
                    LineFormat::Text(format) => format.render_into(&mut line, subject),
                    LineFormat::Json(json) => json.render_into(&mut line, subject),
                    LineFormat::Record(record) => record.render_into(&mut line, subject),
                    LineFormat::HttpEntry(headers) => headers.http(&mut line, subject),
                    LineFormat::TcpEntry => EntryHeaders::tcp(&mut line, subject),
                }
                write(&log.target, &line);
            }
        }
    }

    /// Sinks that were asked for and that we do not have, by type.
    pub fn unknown(&self) -> &[Box<str>] {
        &self.unknown
    }

    /// Nothing is written.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// What of a response head some line will show.
    pub fn keep_response(&self, headers: &HeaderList) -> HeaderList {
        keep(&self.wants.response, headers)
    }

    /// What of a response's trailers some line will show.
    pub fn keep_trailers(&self, trailers: &HeaderList) -> HeaderList {
        keep(&self.wants.trailers, trailers)
    }

    /// Some line shows the provenance.
    pub fn wants_why(&self) -> bool {
        self.wants.why
    }
}

pub(crate) fn keep(names: &[Box<str>], headers: &HeaderList) -> HeaderList {
    let mut kept = HeaderList::new();
    for name in names {
        if let Some(value) = headers.get(&**name) {
            kept.append(&**name, value);
        }
    }
    kept
}

impl LogFilter {
    fn admits(&self, subject: Subject<'_>, random: u64) -> bool {
        let context = subject.context;
        match self {
            LogFilter::Always => true,
            LogFilter::Status(compare, wanted) => {
                compare.holds(context.response_code.unwrap_or(0).into(), *wanted)
            }
            LogFilter::DurationMillis(compare, wanted) => {
                let took = context.ended.map_or(Duration::ZERO, |ended| ended.duration);
                compare.holds(took.as_millis() as u64, *wanted)
            }
            LogFilter::Share { fraction, independent } => {
                let id = subject.request.and_then(|head| head.headers.get("x-request-id"));
                match id.filter(|_| !independent) {
                    Some(id) => fraction.hit(xxh64(id, 0)),
                    None => fraction.hit(random),
                }
            }
            LogFilter::Flags(wanted) => {
                let flags = context.response_flags.unwrap_or("-");
                flags != "-"
                    && (wanted.is_empty()
                        || flags.split(',').any(|flag| wanted.iter().any(|one| **one == *flag)))
            }
            LogFilter::Grpc { statuses, exclude } => {
                let told = context.ended.and_then(|ended| ended.grpc_status);
                let code = context.response_code.unwrap_or(0);
                let status = told.unwrap_or_else(|| weft_http::rules::grpc_status_of(code));
                statuses.contains(&status) != *exclude
            }
            LogFilter::Header(matches) => {
                subject.request.is_some_and(|head| matches.is_match(head))
            }
            LogFilter::Cel(program) => program.holds(&World(subject)),
            LogFilter::All(all) => all.iter().all(|filter| filter.admits(subject, random)),
            LogFilter::Any(any) => any.iter().any(|filter| filter.admits(subject, random)),
        }
    }

    fn wants(&self, wants: &mut Wants) {
        match self {
            LogFilter::Cel(program) => wants.of_program(program),
            LogFilter::All(filters) | LogFilter::Any(filters) => {
                filters.iter().for_each(|filter| filter.wants(wants));
            }
            _ => {}
        }
    }
}

impl Compare {
    fn holds(self, value: u64, wanted: u64) -> bool {
        match self {
            Compare::Equal => value == wanted,
            Compare::AtLeast => value >= wanted,
            Compare::AtMost => value <= wanted,
            Compare::NotEqual => value != wanted,
        }
    }
}
