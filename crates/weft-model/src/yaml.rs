//! YAML text to trees with line numbers. Owns the limits on untrusted text; knows no kinds.
//!
//! serde-saphyr stands behind this module only. A file is cut at its `---` lines before it is
//! parsed, so that a syntax error stays inside its document.

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;

/// Nesting levels in one document. Istio's kinds need about 12.
const DEPTH_MAX: usize = 64;
/// Parser events (nodes and brackets) in one document; bounds alias bombs too.
const EVENTS_MAX: usize = 500_000;
/// Events replayed by aliases in one document.
const ALIAS_EVENTS_MAX: usize = 50_000;

/// A YAML node and the line it starts on (from 1, in the file).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    String(String),
    Seq(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Why a document is no tree; `line` from 1 in the file, 0 when unknown.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) line: u32,
    pub(crate) message: String,
}

/// One document's text and the line it starts on, from 1.
#[derive(Debug, PartialEq)]
pub(crate) struct Document<'a> {
    pub(crate) line: u32,
    pub(crate) text: &'a str,
}

/// Cuts a file at `---` and `...` lines. Documents of only comments and blanks are left out.
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut line) = (0, 1, 0);
    let mut offset = 0;
    for piece in text.split_inclusive('\n') {
        line += 1;
        let here = offset;
        offset += piece.len();
        let is_marker = |marker: &str| {
            piece
                .strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if !is_marker("---") && !is_marker("...") {
            continue;
        }
        documents.push(Document { line: start_line, text: &text[start..here] });
        // What follows the marker on its line belongs to the next document.
        (start, start_line) = (here + 3, line);
    }
    documents.push(Document { line: start_line, text: &text[start..] });
    documents.retain(|document| !is_blank(document.text));
    documents
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    })
}

/// Parses one document.
pub(crate) fn parse(document: &Document<'_>) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        emit_comments: false,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_events: EVENTS_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
        },
    };
    match serde_saphyr::from_str_with_options::<Node>(document.text, options) {
        Ok(mut node) => {
            node.shift(document.line - 1);
            Ok(node)
        }
        Err(error) => {
            let line = error.location().map_or(0, |location| location.line() as u32);
            let line = if line == 0 { document.line } else { line + document.line - 1 };
            let mut message = error.without_snippet().to_string();
            message.truncate(message.find('\n').unwrap_or(message.len()));
            Err(SyntaxError { line, message })
        }
    }
}

/// A tree without lines: all of it is on the first.
impl From<serde_json::Value> for Node {
    fn from(value: serde_json::Value) -> Self {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(v) => Value::Bool(v),
            serde_json::Value::Number(v) => match (v.as_i64(), v.as_u64()) {
                (Some(v), _) => Value::Int(v),
                (None, Some(v)) => Value::UInt(v),
                (None, None) => Value::Float(v.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(v) => Value::String(v),
            serde_json::Value::Array(items) => {
                Value::Seq(items.into_iter().map(Node::from).collect())
            }
            serde_json::Value::Object(entries) => {
                Value::Map(entries.into_iter().map(|(k, v)| (k, Node::from(v))).collect())
            }
        };
        Node { line: 1, value }
    }
}

/// A file's documents as plain values, as kubectl reads them. Within the same limits.
///
/// # Errors
/// The first document that is no YAML: its line and why.
pub fn yaml_documents(text: &str) -> Result<Vec<serde_json::Value>, String> {
    let values = split(text).into_iter().map(|document| {
        parse(&document)
            .map(Node::into_json)
            .map_err(|SyntaxError { line, message }| format!("line {line}: {message}"))
    });
    values.collect()
}

/// Values as YAML documents.
pub fn to_yaml(documents: &[serde_json::Value]) -> String {
    let one = |value| serde_saphyr::to_string(value).unwrap_or_default();
    documents.iter().map(one).collect::<Vec<_>>().join("---\n")
}

impl Node {
    fn into_json(self) -> serde_json::Value {
        match self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => value.into(),
            Value::Int(value) => value.into(),
            Value::UInt(value) => value.into(),
            Value::Float(value) => value.into(),
            Value::String(value) => value.into(),
            Value::Seq(items) => items.into_iter().map(Node::into_json).collect(),
            Value::Map(entries) => {
                entries.into_iter().map(|(key, node)| (key, node.into_json())).collect()
            }
        }
    }

    fn shift(&mut self, lines: u32) {
        self.line += lines;
        match &mut self.value {
            Value::Seq(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, item)| item.shift(lines)),
            _ => {}
        }
    }

    /// The value of a map's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The node of a field path, if it is there.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        steps(path).into_iter().try_fold(self, Node::step)
    }

    fn step(&self, step: Step<'_>) -> Option<&Node> {
        match (&self.value, step) {
            (Value::Seq(items), Step::Index(index)) => items.get(index),
            (Value::Map(entries), Step::Field(name)) => {
                let found = entries.iter().find(|(key, _)| same_field(key, name));
                found.map(|(_, node)| node)
            }
            _ => None,
        }
    }

    /// The line of a field path such as `spec.http[0].match[1].headers["a.b"]`, or of the deepest
    /// part of it that exists.
    pub(crate) fn line_of(&self, path: &str) -> u32 {
        let mut node = self;
        for step in steps(path) {
            match node.step(step) {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }

    /// Feeds content (not lines) to a hasher; map order counts.
    pub(crate) fn hash_content(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        std::mem::discriminant(&self.value).hash(hasher);
        match &self.value {
            Value::Null => {}
            Value::Bool(v) => v.hash(hasher),
            Value::Int(v) => v.hash(hasher),
            Value::UInt(v) => v.hash(hasher),
            Value::Float(v) => v.to_bits().hash(hasher),
            Value::String(v) => v.hash(hasher),
            Value::Seq(items) => {
                items.len().hash(hasher);
                items.iter().for_each(|item| item.hash_content(hasher));
            }
            Value::Map(entries) => {
                entries.len().hash(hasher);
                for (key, item) in entries {
                    key.hash(hasher);
                    item.hash_content(hasher);
                }
            }
        }
    }

    /// How errors call this node: `a string "x"`, `a list`, …
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(v) => format!("the boolean {v}"),
            Value::Int(v) => format!("the number {v}"),
            Value::UInt(v) => format!("the number {v}"),
            Value::Float(v) => format!("the number {v}"),
            Value::String(v) => format!("the string {:?}", v.chars().take(60).collect::<String>()),
            Value::Seq(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }
}

enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let Some((name, after)) = quoted.split_once("\"]") else { break };
            steps.push(Step::Field(name));
            rest = after;
        } else if let Some(bracketed) = rest.strip_prefix('[') {
            let Some((index, after)) = bracketed.split_once(']') else { break };
            let Ok(index) = index.parse() else { break };
            steps.push(Step::Index(index));
            rest = after;
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            steps.push(Step::Field(&name[..end]));
            rest = &name[end..];
        }
    }
    steps
}

/// `foo_bar` in the text is the field `fooBar`.
fn same_field(key: &str, name: &str) -> bool {
    key == name || (key.contains('_') && key.replace('_', "").eq_ignore_ascii_case(name))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Node { line: spanned.referenced.line() as u32, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::UInt(v), Value::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_string()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Value, E> {
        Ok(Value::String(String::from_utf8_lossy(v).into_owned()))
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            entries.push((key, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

/// A map key; numbers and booleans become their text, as in `portLevelMtls: {8080: …}`.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(v) => Ok(Key(v)),
            Value::Bool(v) => Ok(Key(v.to_string())),
            Value::Int(v) => Ok(Key(v.to_string())),
            Value::UInt(v) => Ok(Key(v.to_string())),
            Value::Float(v) => Ok(Key(v.to_string())),
            Value::Null => Ok(Key(String::new())),
            Value::Seq(_) | Value::Map(_) => Err(de::Error::custom("a map key must be a scalar")),
        }
    }
}
