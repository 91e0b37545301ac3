//! Envoy's format strings: text with `%OPERATORS%`, in header edits and access logs alike.
//!
//! A format is parsed once, when its configuration is lowered; an operator that we do not know is
//! refused by name. Facts come in a [`FormatContext`]. Must not know where a line goes.

mod attributes;
mod facts;
mod json;
mod operator;
#[cfg(test)]
mod tests;
mod time;

use weft_http::{HeaderList, RequestHead};

pub use attributes::World;
pub use facts::{Ended, FormatContext, PeerFacts};
pub use json::{Json, JsonFormat};
use operator::Operator;
pub(crate) use operator::Wants;

/// A parsed format string.
#[derive(Debug, Clone)]
pub struct Format {
    parts: Vec<Part>,
    /// What stands for a value that is not known.
    missing: &'static str,
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

/// What a format reads of one request.
#[derive(Clone, Copy)]
pub struct Subject<'s> {
    /// What `%REQ(X)%` reads.
    pub request: Option<&'s RequestHead>,
    /// What `%RESP(X)%` reads.
    pub response: Option<&'s HeaderList>,
    pub context: &'s FormatContext<'s>,
}

impl Format {
    /// A value without operators.
    pub fn literal(value: &[u8]) -> Format {
        Format { parts: vec![Part::Text(value.into())], missing: "" }
    }

    /// A header's value: what is not known is nothing.
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn parse(text: &str) -> Result<Format, FormatError> {
        Format::parse_with(text, "")
    }

    /// A log line: what is not known is `-`, or nothing if `omit_empty`.
    ///
    /// # Errors
    /// See [`FormatError`].
    pub fn parse_line(text: &str, omit_empty: bool) -> Result<Format, FormatError> {
        Format::parse_with(text, if omit_empty { "" } else { "-" })
    }

    fn parse_with(text: &str, missing: &'static str) -> Result<Format, FormatError> {
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
        Ok(Format { parts, missing })
    }

    /// The text for a request; `response` is what `%RESP(X)%` reads.
    pub fn render(
        &self,
        request: Option<&RequestHead>,
        response: Option<&HeaderList>,
        context: &FormatContext<'_>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        self.render_into(&mut out, Subject { request, response, context });
        out
    }

    /// The same, at the end of `out`.
    pub fn render_into(&self, out: &mut Vec<u8>, subject: Subject<'_>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Operator { operator, length_max } => {
                    if !render_operator(operator, *length_max, out, subject) {
                        out.extend_from_slice(self.missing.as_bytes());
                    }
                }
            }
        }
    }

    /// What has to be kept of messages until the line is written.
    pub(crate) fn wants(&self, wants: &mut Wants) {
        for part in &self.parts {
            if let Part::Operator { operator, .. } = part {
                operator.wants(wants);
            }
        }
    }
}

/// False: nothing is known, and nothing was written.
fn render_operator(
    operator: &Operator,
    length_max: Option<usize>,
    out: &mut Vec<u8>,
    subject: Subject<'_>,
) -> bool {
    let start = out.len();
    let known = operator.render(out, subject);
    if let Some(max) = length_max {
        out.truncate(start.saturating_add(max));
    }
    known
}

/// Where the closing `%` is; a `%` inside the parentheses belongs to the argument.
fn operator_end(text: &str) -> Option<usize> {
    let close = text.find('%')?;
    let open = match text.find('(') {
        Some(open) if open < close => open,
        _ => return Some(close),
    };
    // Expressions have parentheses of their own.
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text[at..].find('%').map(|after| at + after);
        }
    }
    None
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
    Ok(Part::Operator { operator: Operator::parse(name, argument)?, length_max })
}
