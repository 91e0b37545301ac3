//! JSON lines: a tree whose leaves are formats. Numbers stay numbers where a leaf is one operator
//! that has one; what is not known is `null`. Properties are in the order of their names.

use super::{Format, FormatError, Part, Subject, Wants, render_operator};

/// A JSON object to be filled in per request.
#[derive(Debug, Clone)]
pub struct JsonFormat {
    root: Node,
    /// Leave out what is not known.
    omit_empty: bool,
}

/// What a JSON format is made of.
#[derive(Debug, Clone)]
pub enum Json {
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
    /// A format string.
    Text(String),
    Number(f64),
    Bool(bool),
    Null,
}

#[derive(Debug, Clone)]
enum Node {
    /// Keys are written with their quotes and colon.
    Object(Vec<(Box<[u8]>, Node)>),
    List(Vec<Node>),
    Format(Format),
    Literal(Box<[u8]>),
}

impl JsonFormat {
    /// # Errors
    /// A leaf is not a format.
    pub fn parse(json: Json, omit_empty: bool) -> Result<JsonFormat, FormatError> {
        Ok(JsonFormat { root: node(json, omit_empty)?, omit_empty })
    }

    /// The object and a line's end.
    pub fn render_into(&self, out: &mut Vec<u8>, subject: Subject<'_>) {
        self.render(&self.root, out, subject);
        out.push(b'\n');
    }

    pub(crate) fn wants(&self, wants: &mut Wants) {
        of_node(&self.root, wants);
    }

    /// False: not known.
    fn render(&self, node: &Node, out: &mut Vec<u8>, subject: Subject<'_>) -> bool {
        match node {
            Node::Literal(text) => out.extend_from_slice(text),
            Node::Object(fields) => {
                out.push(b'{');
                let mut first = true;
                for (key, field) in fields {
                    let start = out.len();
                    if !first {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    match self.render(field, out, subject) || !self.omit_empty {
                        true => first = false,
                        false => out.truncate(start),
                    }
                }
                out.push(b'}');
            }
            Node::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    self.render(item, out, subject);
                }
                out.push(b']');
            }
            Node::Format(format) => return leaf(format, out, subject),
        }
        true
    }
}

fn leaf(format: &Format, out: &mut Vec<u8>, subject: Subject<'_>) -> bool {
    let mut text = Vec::new();
    if let [Part::Operator { operator, length_max }] = format.parts.as_slice() {
        if !render_operator(operator, *length_max, &mut text, subject) {
            out.extend_from_slice(b"null");
            return false;
        }
        if operator.is_number() && length_max.is_none() {
            out.extend_from_slice(&text);
            return true;
        }
    } else {
        format.render_into(&mut text, subject);
    }
    quote(&text, out);
    true
}

/// A JSON string; bytes that are not UTF-8 become the replacement character.
fn quote(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for char in String::from_utf8_lossy(text).chars() {
        match char {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            char if u32::from(char) < 0x20 => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(char)).as_bytes());
            }
            char => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

fn node(json: Json, omit_empty: bool) -> Result<Node, FormatError> {
    Ok(match json {
        Json::Object(mut fields) => {
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            let mut nodes = Vec::new();
            for (name, field) in fields {
                let mut key = Vec::new();
                quote(name.as_bytes(), &mut key);
                key.push(b':');
                nodes.push((key.into(), node(field, omit_empty)?));
            }
            Node::Object(nodes)
        }
        Json::List(items) => {
            let nodes = items.into_iter().map(|item| node(item, omit_empty));
            Node::List(nodes.collect::<Result<_, _>>()?)
        }
        Json::Text(text) => Node::Format(Format::parse_line(&text, omit_empty)?),
        Json::Number(number) => Node::Literal(number.to_string().into_bytes().into()),
        Json::Bool(value) => Node::Literal(value.to_string().into_bytes().into()),
        Json::Null => Node::Literal(b"null".as_slice().into()),
    })
}

fn of_node(node: &Node, wants: &mut Wants) {
    match node {
        Node::Object(fields) => fields.iter().for_each(|(_, field)| of_node(field, wants)),
        Node::List(items) => items.iter().for_each(|item| of_node(item, wants)),
        Node::Format(format) => format.wants(wants),
        Node::Literal(_) => {}
    }
}
