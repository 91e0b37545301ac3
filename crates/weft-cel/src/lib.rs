//! CEL as telemetry uses it: which requests to log, what a label says.
//!
//! Both planes need the same language: the control plane tells a user that an expression is wrong,
//! the proxy evaluates it. An expression is compiled once, within limits, to a tree that is walked
//! per request without allocation where operands allow it. There are no loops (CEL's macros `all`,
//! `exists`, `map` and `filter` are refused), so the work is bounded by the expression's size.
//! Must not know requests: attributes come from the caller by path.

mod eval;
mod lex;
mod parse;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use regex::Regex;

/// Longest expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4096;
/// Deepest nesting of an expression.
const DEPTH_MAX: usize = 64;
/// Bound on a compiled regular expression, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 18;

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Program {
    root: Node,
}

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {reason}")]
pub struct CelError {
    /// Position in the expression, in bytes from 0.
    pub at: usize,
    /// What is wrong there.
    pub reason: String,
}

/// What an expression or a part of it comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    List(Vec<Value<'v>>),
}

/// The world an expression is evaluated in.
pub trait Attributes {
    /// The attribute of this path, such as `["response", "code"]` or `["request", "headers",
    /// "x-user"]`. None: there is none, which makes the expression an error as in Envoy.
    fn get(&self, path: &[&str]) -> Option<Value<'_>>;
}

/// Evaluation met a missing attribute, or values that do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoValue;

impl Program {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is not of the language, or passes a limit.
    pub fn compile(text: &str) -> Result<Program, CelError> {
        Ok(Program { root: parse::parse(text)? })
    }

    /// The value in this world.
    ///
    /// # Errors
    /// An attribute is missing or of the wrong type.
    pub fn evaluate<'v>(&'v self, world: &'v dyn Attributes) -> Result<Value<'v>, NoValue> {
        eval::value(&self.root, world)
    }

    /// Whether the expression holds; one that cannot be evaluated does not.
    pub fn holds(&self, world: &dyn Attributes) -> bool {
        matches!(self.evaluate(world), Ok(Value::Bool(true)))
    }

    /// The attributes that the expression reads, by path.
    pub fn attributes(&self) -> Vec<Vec<&str>> {
        let mut found = Vec::new();
        self.root.attributes(&mut found);
        found
    }
}

impl Value<'_> {
    /// As text, the way a metric's label shows it.
    pub fn to_text(&self) -> String {
        match self {
            Value::Null => String::new(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Double(value) => value.to_string(),
            Value::Text(text) => text.to_string(),
            Value::List(items) => items.iter().map(Value::to_text).collect::<Vec<_>>().join(","),
        }
    }
}

#[derive(Debug, Clone)]
enum Node {
    Literal(Literal),
    List(Vec<Node>),
    /// A chain of names, as far as they are known when compiling.
    Attribute(Vec<Box<str>>),
    Has(Vec<Box<str>>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
    Choose(Box<(Node, Node, Node)>),
    Text(TextTest, Box<Node>, Box<Node>),
    Matches(Box<Node>, Regex),
    Convert(Convert, Box<Node>),
}

#[derive(Debug, Clone)]
enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Convert {
    Size,
    Text,
    Int,
    Double,
    LowerCase,
    UpperCase,
}

impl Node {
    fn attributes<'n>(&'n self, found: &mut Vec<Vec<&'n str>>) {
        match self {
            Node::Literal(_) => {}
            Node::Attribute(path) | Node::Has(path) => {
                found.push(path.iter().map(|part| &**part).collect());
            }
            Node::List(items) => items.iter().for_each(|item| item.attributes(found)),
            Node::Not(one) | Node::Negate(one) | Node::Convert(_, one) | Node::Matches(one, _) => {
                one.attributes(found);
            }
            Node::And(a, b) | Node::Or(a, b) | Node::Binary(_, a, b) | Node::Text(_, a, b) => {
                a.attributes(found);
                b.attributes(found);
            }
            Node::Choose(parts) => {
                let (condition, yes, no) = &**parts;
                [condition, yes, no].into_iter().for_each(|part| part.attributes(found));
            }
        }
    }
}
