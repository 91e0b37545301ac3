//! What counts as smuggled.

use super::{
    Case,
    backend::{MARK, Seen},
};

/// What one proxy did with a case.
pub struct Heard {
    pub proxy: &'static str,
    pub requests: Vec<Seen>,
    pub outcome: Outcome,
}

/// What the client got back.
pub struct Outcome {
    pub answer: Vec<u8>,
    /// The proxy closed; else it waits for more.
    pub closed: bool,
}

impl Heard {
    /// Requests an application would have executed.
    fn whole(&self) -> usize {
        self.requests.iter().take_while(|seen| seen.whole).count()
    }

    /// The proxy answered an error of its own.
    fn refused(&self) -> bool {
        let text = String::from_utf8_lossy(&self.outcome.answer);
        text.match_indices("HTTP/1.").any(|(at, _)| {
            let head = &text[at..];
            let head = &head[..head.find("\r\n\r\n").unwrap_or(head.len())];
            let status = head.split(' ').nth(1).unwrap_or_default();
            (status.starts_with('4') || status.starts_with('5')) && !head.contains(MARK)
        }) || (self.outcome.answer.is_empty() && self.outcome.closed && self.whole() == 0)
    }
}

/// Everything that is wrong with what Weft, the first, did beside the others.
pub fn wrongs(case: &Case, heard: &[Heard]) -> Vec<String> {
    let (weft, others) = heard.split_first().expect("Weft is the first");
    let mut wrongs = Vec::new();
    for seen in &weft.requests {
        if let Some(why) = seen.doubtful {
            wrongs.push(format!("the application got {why}"));
        }
    }
    let whole = weft.whole();
    for index in 0..whole {
        let refusers: Vec<_> =
            others.iter().filter(|other| other.whole() <= index && other.refused()).collect();
        if refusers.len() >= 2 && !repeats_length(&case.bytes) {
            let names: Vec<_> = refusers.iter().map(|other| other.proxy).collect();
            wrongs.push(format!("request {} is refused by {}", index + 1, names.join(", ")));
            break;
        }
    }
    for other in others {
        let theirs = other.whole();
        if theirs >= 1 && theirs < whole && !other.refused() {
            wrongs.push(format!("{} sees {theirs} of our {whole} requests", other.proxy));
        }
        for index in 0..whole.min(theirs) {
            if weft.requests[index].body != other.requests[index].body {
                wrongs.push(format!("{} sees another body in request {}", other.proxy, index + 1));
                break;
            }
        }
    }
    wrongs
}

/// Accepted on purpose (`docs/http1.md`): `Content-Length` twice with the same number. RFC 9110 §8.6
/// allows it, one line is sent on, and clients that do it exist.
fn repeats_length(case: &[u8]) -> bool {
    let text = String::from_utf8_lossy(case).to_ascii_lowercase();
    text.split("\r\n\r\n").any(|head| {
        let mut values = head.lines().filter_map(|line| line.strip_prefix("content-length:"));
        match (values.next(), values.next()) {
            (Some(first), Some(second)) => first.trim() == second.trim(),
            _ => false,
        }
    })
}

/// A case with all that is known of it.
pub fn report(case: &Case, heard: &[Heard], wrongs: &[String]) -> String {
    let mut text =
        format!("- {}: {}\n  {}\n", case.name, wrongs.join("; "), case.bytes.escape_ascii());
    for one in heard {
        let seen: Vec<_> = one
            .requests
            .iter()
            .map(|seen| {
                let end = if seen.whole { "" } else { " (cut)" };
                let why = seen.doubtful.unwrap_or_default();
                format!("{} {:?}{end}{why}", seen.line, String::from_utf8_lossy(&seen.body))
            })
            .collect();
        let answer = String::from_utf8_lossy(&one.outcome.answer);
        let statuses: Vec<_> = answer
            .match_indices("HTTP/1.")
            .map(|(at, _)| answer[at..].split([' ', '\r']).nth(1).unwrap_or_default())
            .collect();
        let end = if one.outcome.closed { "closed" } else { "waits" };
        text += &format!("    {:8}{:?} {end}; {}\n", one.proxy, statuses, seen.join(" | "));
    }
    text
}
