//! Predicates on request parts: strings, regular expressions, headers, query parameters, fractions.
//!
//! Compiled once when the configuration is lowered; evaluation does not allocate.

mod request;

use regex::bytes::Regex;

pub use request::{CookieMatch, HeaderMatch, HeaderPredicate, QueryMatch, QueryPredicate};
pub(crate) use request::{cookie_value, header_value, query_value};

/// Upper bound on a compiled regular expression, in bytes. Envoy bounds RE2's program instead; this
/// admits any expression that a person writes and no bomb of nested counts.
pub const REGEX_BYTES_MAX: usize = 1 << 20;

/// A regular expression that must match the whole subject.
#[derive(Debug, Clone)]
pub struct FullRegex {
    regex: Regex,
}

impl FullRegex {
    /// RE2 syntax is a subset of what this accepts, but for a few rare escapes (`\C`).
    pub fn new(pattern: &str) -> Result<FullRegex, String> {
        Ok(FullRegex { regex: compile(&format!("^(?:{pattern})$"))? })
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.regex.is_match(subject)
    }
}

/// A pattern with its replacement (`RegexMatchAndSubstitute`); replaces every match.
#[derive(Debug, Clone)]
pub struct Substitution {
    regex: Regex,
    /// In the regex crate's syntax: `${1}` for RE2's `\1`.
    replacement: String,
}

impl Substitution {
    pub fn new(pattern: &str, re2_replacement: &str) -> Result<Substitution, String> {
        let regex = compile(pattern)?;
        let replacement = translate_replacement(re2_replacement, regex.captures_len())?;
        Ok(Substitution { regex, replacement })
    }

    pub fn replace(&self, subject: &[u8]) -> Vec<u8> {
        self.regex.replace_all(subject, self.replacement.as_bytes()).into_owned()
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    // RE2 in Envoy works on bytes in Latin-1 or UTF-8 alike; Unicode off would reject `.` on UTF-8
    // text in a bytes regex less often, but classes such as `\w` are ASCII in RE2.
    regex::bytes::RegexBuilder::new(pattern)
        .unicode(!pattern.is_ascii())
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|error| format!("bad regular expression {pattern:?}: {error}"))
}

/// RE2 writes `\1`, the regex crate `${1}`; a literal `$` must be doubled.
fn translate_replacement(text: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    if group >= groups {
                        return Err(format!(
                            "substitution {text:?} names group {group}, there are {}",
                            groups - 1
                        ));
                    }
                    out.push_str(&format!("${{{group}}}"));
                }
                _ => return Err(format!("substitution {text:?} has a bad escape")),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

/// `StringMatcher`.
#[derive(Debug, Clone)]
pub struct StringMatch {
    pub pattern: StringPattern,
    /// Not for regular expressions.
    pub ignore_case: bool,
}

#[derive(Debug, Clone)]
pub enum StringPattern {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(FullRegex),
}

impl StringMatch {
    /// Exact, with case.
    pub fn exact(text: &str) -> StringMatch {
        StringMatch { pattern: StringPattern::Exact(text.as_bytes().into()), ignore_case: false }
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        let fold = self.ignore_case;
        match &self.pattern {
            StringPattern::Exact(text) => eq(subject, text, fold),
            StringPattern::Prefix(text) => {
                subject.get(..text.len()).is_some_and(|head| eq(head, text, fold))
            }
            StringPattern::Suffix(text) => match subject.len().checked_sub(text.len()) {
                Some(at) => eq(&subject[at..], text, fold),
                None => false,
            },
            StringPattern::Contains(text) => {
                text.is_empty() || subject.windows(text.len()).any(|window| eq(window, text, fold))
            }
            StringPattern::Regex(regex) => regex.is_match(subject),
        }
    }
}

/// Compares ASCII, with or without case.
pub(crate) fn eq(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// `FractionalPercent`, as a part of `denominator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    pub const ALWAYS: Fraction = Fraction { numerator: 100, denominator: 100 };
    pub const NEVER: Fraction = Fraction { numerator: 0, denominator: 100 };

    /// Whether this draw falls within the fraction.
    pub fn hit(&self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(pattern: StringPattern, ignore_case: bool) -> StringMatch {
        StringMatch { pattern, ignore_case }
    }

    #[test]
    fn strings_match_by_kind_and_case() {
        let text = |t: &str| -> Box<[u8]> { t.as_bytes().into() };
        let cases: [(StringMatch, &str, bool); 14] = [
            (StringMatch::exact("abc"), "abc", true),
            (StringMatch::exact("abc"), "ABC", false),
            (string(StringPattern::Exact(text("abc")), true), "ABC", true),
            (string(StringPattern::Prefix(text("ab")), false), "abc", true),
            (string(StringPattern::Prefix(text("abcd")), false), "abc", false),
            (string(StringPattern::Prefix(text("AB")), true), "abc", true),
            (string(StringPattern::Suffix(text("bc")), false), "abc", true),
            (string(StringPattern::Suffix(text("abcd")), false), "abc", false),
            (string(StringPattern::Contains(text("b")), false), "abc", true),
            (string(StringPattern::Contains(text("")), false), "", true),
            (string(StringPattern::Contains(text("abcd")), false), "abc", false),
            (string(StringPattern::Regex(FullRegex::new("a.c").unwrap()), false), "abc", true),
            (string(StringPattern::Regex(FullRegex::new("a|b").unwrap()), false), "ab", false),
            (string(StringPattern::Regex(FullRegex::new("b").unwrap()), false), "abc", false),
        ];
        for (matcher, subject, expect) in cases {
            assert_eq!(matcher.is_match(subject.as_bytes()), expect, "{matcher:?} on {subject}");
        }
    }

    #[test]
    fn a_regex_bomb_is_refused() {
        assert!(FullRegex::new("((a{100}){100}){100}").is_err());
        assert!(FullRegex::new("(").is_err());
    }

    #[test]
    fn substitution_speaks_re2() {
        let check = |pattern: &str, with: &str, subject: &str| {
            let replaced = Substitution::new(pattern, with).unwrap().replace(subject.as_bytes());
            String::from_utf8(replaced).unwrap()
        };
        assert_eq!(
            check("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api"),
            "/v1/api/instance/foo"
        );
        assert_eq!(check("one", "two", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/two/zzz");
        assert_eq!(check("a", "$1", "a"), "$1");
        assert!(Substitution::new("a", r"\1").is_err());
        assert!(Substitution::new("a", r"\q").is_err());
    }

    #[test]
    fn fractions() {
        let one_percent = Fraction { numerator: 1, denominator: 100 };
        assert!(one_percent.hit(0) && one_percent.hit(100) && !one_percent.hit(1));
        assert!(Fraction::ALWAYS.hit(u64::MAX) && !Fraction::NEVER.hit(0));
    }
}
