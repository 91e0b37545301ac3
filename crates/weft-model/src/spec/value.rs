//! Scalar forms of protojson and Kubernetes: durations, percentages, string matches,
//! and integers-or-names.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Istio's `StringMatch`. An empty match (`{}`) means "present".
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "StringMatchFields")]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    /// RE2 syntax, must match the whole value.
    Regex(String),
    /// No condition but presence.
    Present,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StringMatchFields {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl TryFrom<StringMatchFields> for StringMatch {
    type Error = &'static str;

    fn try_from(fields: StringMatchFields) -> Result<Self, Self::Error> {
        match (fields.exact, fields.prefix, fields.regex) {
            (None, None, None) => Ok(StringMatch::Present),
            (Some(value), None, None) => Ok(StringMatch::Exact(value)),
            (None, Some(value), None) => Ok(StringMatch::Prefix(value)),
            (None, None, Some(value)) => Ok(StringMatch::Regex(value)),
            _ => Err("expected only one of exact, prefix, regex"),
        }
    }
}

/// `{value: 0.5}`: half a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Percent {
    /// 0 to 100.
    pub value: f64,
}

/// Kubernetes' IntOrString.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = IntOrString;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer or a string")
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(v))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<IntOrString, E> {
                i64::try_from(v).map(IntOrString::Int).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(v.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// For `#[serde(deserialize_with)]` on `Option<Duration>`: `5s`, `1.5s`, `100ms`, `1h30m`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    match Option::<String>::deserialize(d)? {
        None => Ok(None),
        Some(text) => parse_duration(&text).map(Some).map_err(de::Error::custom),
    }
}

/// A protojson duration (`1.5s`) or Go's form (`1h2m3s4ms`), not negative.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let fail = |why: &str| Err(format!("expected a duration such as \"5s\", {why}: {text:?}"));
    if text.starts_with('-') {
        return fail("found a negative one");
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let Ok(number) = rest[..digits].parse::<f64>() else { return fail("found") };
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                "" => return fail("found one without a unit"),
                _ => return fail("found an unknown unit in"),
            };
        rest = &rest[unit..];
    }
    // Google's Duration goes to about 10,000 years; so do we.
    if text.is_empty() || !(0.0..=315_576_000_000.0).contains(&total) {
        return fail("found");
    }
    // Rounded to the nanosecond, so that 1.5s and 100ms are exact.
    let seconds = total.trunc();
    let nanos = ((total - seconds) * 1e9).round() as u64;
    Ok(Duration::from_secs(seconds as u64) + Duration::from_nanos(nanos))
}
