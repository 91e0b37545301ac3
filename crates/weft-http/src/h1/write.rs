//! Heads into the output queue. Lines go out as they came, in runs; the exceptions are `Host`,
//! which says the head's authority, and the framing lines, which say the framing decided here.

use super::OutBuf;
use super::framing::{Coding, FramingLines};
use crate::headers::{Entry, HeaderList, Known, Place};
use crate::message::{BodyLength, RequestHead, ResponseHead, Target, Version, reason_phrase};

/// Queues a request head. `framing` is how its body will be encoded; `UntilClose` cannot be said in
/// a request and is written as chunked, as is `Streamed`.
pub fn write_request(head: &RequestHead, framing: BodyLength, out: &mut OutBuf) {
    let framing = match framing {
        BodyLength::UntilClose | BodyLength::Streamed => BodyLength::Chunked,
        other => other,
    };
    let mut plan = Plan::new(&head.headers, framing, false);
    plan.host = head.authority.as_deref();
    out.stage_with(|staging| {
        staging.reserve(head.headers.room() + head.path_and_query().len() + 128);
        staging.extend_from_slice(head.method.as_bytes());
        staging.push(b' ');
        match &head.target {
            Target::Path(path) => staging.extend_from_slice(path),
            Target::Asterisk => staging.push(b'*'),
            Target::Authority => staging.extend_from_slice(head.authority()),
        }
        staging.push(b' ');
        staging.extend_from_slice(version_text(head.version));
        staging.extend_from_slice(b"\r\n");
        if let (Some(host), false) = (&head.authority, head.headers.contains_known(Known::Host)) {
            write_line(staging, b"Host", host);
        }
        plan.write(&head.headers, staging);
    });
}

/// Queues a response head. `framing` is how its body will be encoded. With `None` the framing lines
/// of a reply to `HEAD` and of a 304 stay as they are, since they speak of another message; those
/// of 1xx and 204 go (RFC 9110 §8.6, RFC 9112 §6.1). A reply that has an empty body is `Exact(0)`.
pub fn write_response(head: &ResponseHead, framing: BodyLength, out: &mut OutBuf) {
    let framing = match framing {
        BodyLength::Streamed => BodyLength::Chunked,
        other => other,
    };
    let speaks_of_another = framing == BodyLength::None && !matches!(head.status, 100..=199 | 204);
    let mut plan = Plan::new(&head.headers, framing, speaks_of_another);
    out.stage_with(|staging| {
        staging.reserve(head.headers.room() + 128);
        staging.extend_from_slice(version_text(head.version));
        staging.push(b' ');
        staging.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
        staging.push(b' ');
        match &head.reason {
            Some(reason) => staging.extend_from_slice(reason),
            None => staging.extend_from_slice(reason_phrase(head.status).as_bytes()),
        }
        staging.extend_from_slice(b"\r\n");
        plan.write(&head.headers, staging);
    });
}

/// Queues all lines as they are; for trailers.
pub(super) fn write_lines(headers: &HeaderList, staging: &mut Vec<u8>) {
    let mut run = Run::default();
    for entry in headers.entries() {
        if entry.place != Place::Removed {
            run.add(headers, entry, staging);
        }
    }
    run.flush(headers, staging);
}

fn version_text(version: Version) -> &'static [u8] {
    match version {
        Version::H10 => b"HTTP/1.0",
        Version::H11 | Version::H2 => b"HTTP/1.1",
    }
}

fn write_line(staging: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    staging.extend_from_slice(name);
    staging.extend_from_slice(b": ");
    staging.extend_from_slice(value);
    staging.extend_from_slice(b"\r\n");
}

/// Which of the exceptional lines stay.
struct Plan<'a> {
    framing: BodyLength,
    /// Framing lines describe another message: leave them.
    verbatim: bool,
    /// The received `Transfer-Encoding` says exactly what is wanted.
    coding_fits: bool,
    framed: bool,
    host: Option<&'a [u8]>,
    host_written: bool,
}

enum Fate<'a> {
    Keep,
    Drop,
    Value(&'a [u8]),
}

impl<'a> Plan<'a> {
    fn new(headers: &HeaderList, framing: BodyLength, verbatim: bool) -> Self {
        let coding_fits = framing == BodyLength::Chunked && ends_chunked(headers);
        Plan { framing, verbatim, coding_fits, framed: false, host: None, host_written: false }
    }

    fn write(&mut self, headers: &HeaderList, staging: &mut Vec<u8>) {
        let mut run = Run::default();
        for entry in headers.entries() {
            if entry.place == Place::Removed {
                continue;
            }
            match self.fate(headers, entry) {
                Fate::Keep => run.add(headers, entry, staging),
                Fate::Drop => {}
                Fate::Value(value) => {
                    run.flush(headers, staging);
                    write_line(staging, headers.name_of(entry), value);
                }
            }
        }
        run.flush(headers, staging);
        if !self.framed {
            match self.framing {
                BodyLength::Exact(length) => {
                    let mut digits = itoa::Buffer::new();
                    write_line(staging, b"Content-Length", digits.format(length).as_bytes());
                }
                BodyLength::Chunked => write_line(staging, b"Transfer-Encoding", b"chunked"),
                BodyLength::None | BodyLength::UntilClose | BodyLength::Streamed => {}
            }
        }
        staging.extend_from_slice(b"\r\n");
    }

    fn fate(&mut self, headers: &HeaderList, entry: &Entry) -> Fate<'a> {
        if entry.known == Known::Host as u8 {
            self.host_fate(headers.value_of(entry))
        } else if entry.known == Known::ContentLength as u8 {
            self.length_fate(headers.value_of(entry))
        } else if entry.known == Known::TransferEncoding as u8 {
            self.coding_fate()
        } else {
            Fate::Keep
        }
    }

    fn host_fate(&mut self, value: &[u8]) -> Fate<'a> {
        match self.host {
            None => Fate::Keep,
            Some(_) if std::mem::replace(&mut self.host_written, true) => Fate::Drop,
            Some(host) if host == value => Fate::Keep,
            Some(host) => Fate::Value(host),
        }
    }

    fn length_fate(&mut self, value: &[u8]) -> Fate<'a> {
        match self.framing {
            _ if self.verbatim => Fate::Keep,
            BodyLength::Exact(length) if !self.framed => {
                self.framed = value == itoa::Buffer::new().format(length).as_bytes();
                if self.framed { Fate::Keep } else { Fate::Drop }
            }
            _ => Fate::Drop,
        }
    }

    fn coding_fate(&mut self) -> Fate<'a> {
        if self.verbatim {
            return Fate::Keep;
        }
        self.framed |= self.coding_fits;
        if self.coding_fits { Fate::Keep } else { Fate::Drop }
    }
}

/// Whether the coding lines, read together, end in one `chunked`.
fn ends_chunked(headers: &HeaderList) -> bool {
    let mut framing = FramingLines::default();
    let coding = Known::TransferEncoding as u8;
    for entry in headers.entries() {
        if entry.known == coding
            && entry.place != Place::Removed
            && framing.transfer_encoding(headers.value_of(entry)).is_err()
        {
            return false;
        }
    }
    framing.coding == Coding::Chunked && !framing.repeated_chunked
}

/// Neighbouring lines that can be copied at once.
#[derive(Default)]
struct Run {
    place: Option<Place>,
    start: u32,
    end: u32,
}

impl Run {
    fn add(&mut self, headers: &HeaderList, entry: &Entry, staging: &mut Vec<u8>) {
        if self.place == Some(entry.place) && self.end == entry.start {
            self.end = entry.end;
            return;
        }
        self.flush(headers, staging);
        *self = Run { place: Some(entry.place), start: entry.start, end: entry.end };
    }

    fn flush(&mut self, headers: &HeaderList, staging: &mut Vec<u8>) {
        if let Some(place) = self.place.take() {
            let lines = &headers.store(place)[self.start as usize..self.end as usize];
            staging.extend_from_slice(lines);
        }
    }
}
