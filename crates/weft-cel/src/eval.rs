//! The walk over the tree. `&&` and `||` are CEL's: an error on one side does not matter where the
//! other decides.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::{Attributes, Binary, Convert, Literal, NoValue, Node, TextTest, Value};

type Found<'v> = Result<Value<'v>, NoValue>;

pub(crate) fn value<'v>(node: &'v Node, world: &'v dyn Attributes) -> Found<'v> {
    Ok(match node {
        Node::Literal(literal) => match literal {
            Literal::Null => Value::Null,
            Literal::Bool(value) => Value::Bool(*value),
            Literal::Int(value) => Value::Int(*value),
            Literal::Double(value) => Value::Double(*value),
            Literal::Text(text) => Value::Text(Cow::Borrowed(text)),
        },
        Node::List(items) => {
            Value::List(items.iter().map(|item| value(item, world)).collect::<Result<_, _>>()?)
        }
        Node::Attribute(path) => attribute(path, world).ok_or(NoValue)?,
        Node::Has(path) => Value::Bool(attribute(path, world).is_some()),
        Node::Not(one) => Value::Bool(!truth(one, world)?),
        Node::Negate(one) => match value(one, world)? {
            Value::Int(value) => Value::Int(value.checked_neg().ok_or(NoValue)?),
            Value::Double(value) => Value::Double(-value),
            _ => return Err(NoValue),
        },
        Node::And(a, b) => Value::Bool(decided(a, b, world, false)?),
        Node::Or(a, b) => Value::Bool(decided(a, b, world, true)?),
        Node::Binary(binary, a, b) => self::binary(*binary, value(a, world)?, value(b, world)?)?,
        Node::Choose(parts) => {
            let (condition, yes, no) = &**parts;
            value(if truth(condition, world)? { yes } else { no }, world)?
        }
        Node::Text(test, subject, argument) => {
            let (Value::Text(subject), Value::Text(argument)) =
                (value(subject, world)?, value(argument, world)?)
            else {
                return Err(NoValue);
            };
            Value::Bool(match test {
                TextTest::Contains => subject.contains(&*argument),
                TextTest::StartsWith => subject.starts_with(&*argument),
                TextTest::EndsWith => subject.ends_with(&*argument),
            })
        }
        Node::Matches(subject, regex) => match value(subject, world)? {
            Value::Text(text) => Value::Bool(regex.is_match(&text)),
            _ => return Err(NoValue),
        },
        Node::Convert(convert, one) => self::convert(*convert, value(one, world)?)?,
    })
}

/// Paths of more parts than this do not exist.
const PARTS_MAX: usize = 8;

fn attribute<'v>(path: &'v [Box<str>], world: &'v dyn Attributes) -> Option<Value<'v>> {
    let mut parts = [""; PARTS_MAX];
    let parts = parts.get_mut(..path.len())?;
    for (place, part) in parts.iter_mut().zip(path) {
        *place = part;
    }
    world.get(parts)
}

fn truth(node: &Node, world: &dyn Attributes) -> Result<bool, NoValue> {
    match value(node, world)? {
        Value::Bool(value) => Ok(value),
        _ => Err(NoValue),
    }
}

/// `deciding`: what either side says for both.
fn decided(a: &Node, b: &Node, world: &dyn Attributes, deciding: bool) -> Result<bool, NoValue> {
    let first = truth(a, world);
    if first == Ok(deciding) {
        return Ok(deciding);
    }
    match truth(b, world) {
        Ok(second) if second == deciding => Ok(deciding),
        second => first.and(second),
    }
}

fn binary<'v>(binary: Binary, a: Value<'v>, b: Value<'v>) -> Found<'v> {
    let by_order = |wanted: fn(Ordering) -> bool| match order(&a, &b) {
        Some(order) => Ok(Value::Bool(wanted(order))),
        None => Err(NoValue),
    };
    match binary {
        Binary::Equal => Ok(Value::Bool(equal(&a, &b))),
        Binary::NotEqual => Ok(Value::Bool(!equal(&a, &b))),
        Binary::Less => by_order(Ordering::is_lt),
        Binary::LessOrEqual => by_order(Ordering::is_le),
        Binary::Greater => by_order(Ordering::is_gt),
        Binary::GreaterOrEqual => by_order(Ordering::is_ge),
        Binary::In => match b {
            Value::List(items) => Ok(Value::Bool(items.iter().any(|item| equal(item, &a)))),
            _ => Err(NoValue),
        },
        Binary::Add => match (a, b) {
            (Value::Text(a), Value::Text(b)) => Ok(Value::Text(a + b)),
            (a, b) => calculate(binary, &a, &b),
        },
        Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Remainder => {
            calculate(binary, &a, &b)
        }
    }
}

fn calculate<'v>(binary: Binary, a: &Value<'_>, b: &Value<'_>) -> Found<'v> {
    if let (Value::Int(a), Value::Int(b)) = (a, b) {
        let result = match binary {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::Divide => a.checked_div(*b),
            Binary::Remainder => a.checked_rem(*b),
            _ => None,
        };
        return result.map(Value::Int).ok_or(NoValue);
    }
    let (Some(a), Some(b)) = (double(a), double(b)) else { return Err(NoValue) };
    Ok(Value::Double(match binary {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        _ => return Err(NoValue),
    }))
}

fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Int(_), Value::Double(_)) | (Value::Double(_), Value::Int(_)) => {
            double(a) == double(b)
        }
        (a, b) => a == b,
    }
}

fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (a, b) => double(a)?.partial_cmp(&double(b)?),
    }
}

fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(value) => Some(*value as f64),
        Value::Double(value) => Some(*value),
        _ => None,
    }
}

fn convert<'v>(convert: Convert, value: Value<'v>) -> Found<'v> {
    let found = match (convert, value) {
        (Convert::Size, Value::Text(text)) => Some(Value::Int(text.chars().count() as i64)),
        (Convert::Size, Value::List(items)) => Some(Value::Int(items.len() as i64)),
        (Convert::Text, Value::Text(text)) => Some(Value::Text(text)),
        (Convert::Text, value @ (Value::Int(_) | Value::Double(_) | Value::Bool(_))) => {
            Some(Value::Text(value.to_text().into()))
        }
        (Convert::Int, Value::Int(value)) => Some(Value::Int(value)),
        // Saturates, as `as` does.
        (Convert::Int, Value::Double(value)) => Some(Value::Int(value as i64)),
        (Convert::Int, Value::Text(text)) => text.parse().ok().map(Value::Int),
        (Convert::Double, Value::Text(text)) => text.parse().ok().map(Value::Double),
        (Convert::Double, value) => double(&value).map(Value::Double),
        (Convert::LowerCase, Value::Text(text)) => {
            Some(Value::Text(text.to_ascii_lowercase().into()))
        }
        (Convert::UpperCase, Value::Text(text)) => {
            Some(Value::Text(text.to_ascii_uppercase().into()))
        }
        _ => None,
    };
    found.ok_or(NoValue)
}
