//! What a CRD's structural schema says of a document, as a small table language: types, required
//! fields, lengths, patterns, enumerations, list keys.

use crate::validate::{Findings, entry};
use crate::yaml::{Node, Value};

/// What a node must look like.
pub(super) enum Shape {
    Object(&'static [Field]),
    /// An object of this shape with further fields.
    More(&'static Shape, &'static [Field]),
    List(List),
    Text(Text),
    /// A whole number from and to.
    Int(i64, i64),
    /// One of these numbers.
    OneOf(&'static [i64]),
    Bool,
    /// Any keys; how many, and the values' shape.
    Map(usize, &'static Shape),
}

pub(super) struct Field {
    name: &'static str,
    shape: &'static Shape,
    required: bool,
}

pub(super) const fn must(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, required: true }
}

pub(super) const fn may(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, required: false }
}

pub(super) struct List {
    pub(super) items: &'static Shape,
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) unique: Unique,
}

/// Which items of a list may not repeat.
pub(super) enum Unique {
    No,
    /// No value twice.
    Items,
    /// No two items with the same value of this field.
    Key(&'static str),
}

pub(super) const fn list(min: usize, max: usize, items: &'static Shape) -> Shape {
    Shape::List(List { items, min, max, unique: Unique::No })
}

pub(super) const fn set(max: usize, items: &'static Shape) -> Shape {
    Shape::List(List { items, min: 0, max, unique: Unique::Items })
}

pub(super) const fn keyed(
    min: usize,
    max: usize,
    key: &'static str,
    items: &'static Shape,
) -> Shape {
    Shape::List(List { items, min, max, unique: Unique::Key(key) })
}

/// Length in characters and form of a string.
pub(super) struct Text {
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) form: Form,
}

pub(super) enum Form {
    Any,
    Enum(&'static [&'static str]),
    /// What it is called, and whether a text is one.
    Is(&'static str, fn(&str) -> bool),
}

pub(super) const fn text(min: usize, max: usize) -> Shape {
    Shape::Text(Text { min, max, form: Form::Any })
}

pub(super) const fn word(values: &'static [&'static str]) -> Shape {
    Shape::Text(Text { min: 0, max: usize::MAX, form: Form::Enum(values) })
}

pub(super) const fn form(
    min: usize,
    max: usize,
    what: &'static str,
    is: fn(&str) -> bool,
) -> Shape {
    Shape::Text(Text { min, max, form: Form::Is(what, is) })
}

/// Reports where `node` is not of the shape. Unknown fields are somebody else's matter.
pub(super) fn check(shape: &Shape, node: &Node, path: &str, findings: &mut Findings<'_>) {
    match (shape, &node.value) {
        // What is null is absent; required fields are looked for by their object.
        (_, Value::Null) => {}
        (Shape::Object(fields), Value::Map(_)) => check_fields(fields, node, path, findings),
        (Shape::More(base, fields), Value::Map(_)) => {
            check(base, node, path, findings);
            check_fields(fields, node, path, findings);
        }
        (Shape::List(rules), Value::Seq(items)) => check_list(rules, items, path, findings),
        (Shape::Map(max, values), Value::Map(entries)) => {
            if entries.len() > *max {
                let message = format!("{} entries, more than {max}", entries.len());
                findings.error(path, message);
            }
            for (key, value) in entries {
                check(values, value, &entry(path, key), findings);
            }
        }
        (Shape::Text(rules), Value::String(text)) => check_text(rules, text, path, findings),
        (Shape::Int(min, max), value) => match integer(value) {
            Some(number) if (*min..=*max).contains(&number) => {}
            Some(number) => {
                findings.error(path, format!("{number} is out of range {min} to {max}"));
            }
            None => wrong("an integer", node, path, findings),
        },
        (Shape::OneOf(allowed), value) => match integer(value) {
            Some(number) if allowed.contains(&number) => {}
            Some(number) => {
                findings.error(path, format!("{number} is not one of {allowed:?}"));
            }
            None => wrong("an integer", node, path, findings),
        },
        (Shape::Bool, Value::Bool(_)) => {}
        (Shape::Object(_) | Shape::More(..) | Shape::Map(..), _) => {
            wrong("a map", node, path, findings)
        }
        (Shape::List(_), _) => wrong("a list", node, path, findings),
        (Shape::Text(_), _) => wrong("a string", node, path, findings),
        (Shape::Bool, _) => wrong("true or false", node, path, findings),
    }
}

fn check_fields(fields: &[Field], node: &Node, path: &str, findings: &mut Findings<'_>) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        match node.get(field.name) {
            Some(child) if child.value != Value::Null => {
                check(field.shape, child, &path, findings);
            }
            _ if field.required => findings.error(path, "a required field is missing"),
            _ => {}
        }
    }
}

fn wrong(expected: &str, node: &Node, path: &str, findings: &mut Findings<'_>) {
    findings.error(path, format!("expected {expected}, found {}", node.describe()));
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::UInt(number) => i64::try_from(*number).ok(),
        _ => None,
    }
}

fn check_list(rules: &List, items: &[Node], path: &str, findings: &mut Findings<'_>) {
    if items.len() < rules.min || items.len() > rules.max {
        let message = format!("{} items, expected {} to {}", items.len(), rules.min, rules.max);
        findings.error(path, message);
    }
    for (index, item) in items.iter().enumerate() {
        let at = format!("{path}[{index}]");
        check(rules.items, item, &at, findings);
        let twice = match rules.unique {
            Unique::No => false,
            Unique::Items => items[..index].iter().any(|other| other.value == item.value),
            Unique::Key(key) => {
                let of = |node: &Node| node.get(key).map(|node| node.value.clone());
                let own = of(item);
                own.is_some() && items[..index].iter().any(|other| of(other) == own)
            }
        };
        if twice {
            findings.error(at, "is there twice");
        }
    }
}

fn check_text(rules: &Text, text: &str, path: &str, findings: &mut Findings<'_>) {
    let length = text.chars().count();
    if length < rules.min || length > rules.max {
        let message = format!("{length} characters, expected {} to {}", rules.min, rules.max);
        findings.error(path, message);
        return;
    }
    match &rules.form {
        Form::Any => {}
        Form::Enum(values) => {
            if !values.contains(&text) {
                let message = format!("expected one of {}, found {text:?}", values.join(", "));
                findings.error(path, message);
            }
        }
        Form::Is(what, is) => {
            if !is(text) {
                findings.error(path, format!("{text:?} is not {what}"));
            }
        }
    }
}
