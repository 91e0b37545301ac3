//! From a [`Node`] tree to typed specs, by protojson's rules: camelCase and snake_case names,
//! integers as numbers or strings, enums by name, `null` as absent. Errors carry the field path
//! and the line; fields nobody reads become [`Skipped`], not errors.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::spec::unread_fields;
use crate::yaml::{Node, Value};

/// Why a node does not fit its type.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    /// As `http[0].route[1].weight`, under the path that [`read`] was given.
    pub(crate) path: String,
    pub(crate) line: u32,
    pub(crate) message: String,
    located: bool,
}

/// A field that was passed over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Skipped {
    pub(crate) path: String,
    pub(crate) line: u32,
    /// The API defines it, Weft does not act on it.
    pub(crate) known: bool,
}

/// Reads `node` as `T`. `path` is the node's own field path, `spec` for a spec.
pub(crate) fn read<T: de::DeserializeOwned>(
    node: &Node,
    path: &str,
    skipped: &RefCell<Vec<Skipped>>,
) -> Result<T, Error> {
    read_child(node, &Path::Root(path), skipped, PhantomData::<T>)
}

impl Error {
    /// An error found outside of the deserializer.
    pub(crate) fn at(path: &str, line: u32, message: String) -> Self {
        Error { path: path.to_string(), line, message, located: true }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error { path: String::new(), line: 0, message: message.to_string(), located: false }
    }
}

enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(root) => f.write_str(root),
            Path::Field(Path::Root(""), name) => f.write_str(name),
            // Names that hold dots (labels, annotations) are bracketed to stay readable.
            Path::Field(parent, name) if name.contains(['.', '/']) => {
                write!(f, "{parent}[{name:?}]")
            }
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    skipped: &'a RefCell<Vec<Skipped>>,
}

impl<'a> De<'a> {
    fn wrong(&self, expected: &str) -> Error {
        self.error(format!("expected {expected}, found {}", self.node.describe()))
    }

    fn error(&self, message: String) -> Error {
        Error { path: self.path.to_string(), line: self.node.line, message, located: true }
    }

    /// Gives an error from a visitor the place where it happened.
    fn locate<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| if error.located { error } else { self.error(error.message) })
    }

    fn integer(&self) -> Result<i128, Error> {
        match &self.node.value {
            Value::Null => Ok(0),
            Value::Int(v) => Ok(i128::from(*v)),
            Value::UInt(v) => Ok(i128::from(*v)),
            // 2^63 bounds what a float of integral value may carry here.
            Value::Float(v) if v.fract() == 0.0 && v.abs() < 9.2e18 => Ok(*v as i128),
            Value::String(v) => v.parse().map_err(|_| self.wrong("an integer")),
            _ => Err(self.wrong("an integer")),
        }
    }

    fn string(&self) -> Result<&'a str, Error> {
        match &self.node.value {
            Value::String(v) => Ok(v),
            Value::Null => Ok(""),
            Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) => Err(self.error(
                format!("expected a string, found {}; put it in quotes", self.node.describe()),
            )),
            _ => Err(self.wrong("a string")),
        }
    }

    fn skip(&self, name: &str, node: &Node, known: bool) {
        let path = Path::Field(self.path, name).to_string();
        self.skipped.borrow_mut().push(Skipped { path, line: node.line, known });
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let value = self.integer()?;
            match <$type>::try_from(value) {
                Ok(value) => self.locate(visitor.$visit(value)),
                Err(_) => Err(self.error(format!(
                    "{value} is out of range {} to {}", <$type>::MIN, <$type>::MAX))),
            }
        }
    )*};
}

impl<'de, 'a> de::Deserializer<'de> for De<'a> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => self.locate(visitor.visit_unit()),
            Value::Bool(v) => self.locate(visitor.visit_bool(*v)),
            Value::Int(v) => self.locate(visitor.visit_i64(*v)),
            Value::UInt(v) => self.locate(visitor.visit_u64(*v)),
            Value::Float(v) => self.locate(visitor.visit_f64(*v)),
            Value::String(v) => self.locate(visitor.visit_str(v)),
            Value::Seq(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Bool(v) => self.locate(visitor.visit_bool(*v)),
            Value::Null => self.locate(visitor.visit_bool(false)),
            _ => Err(self.wrong("true or false")),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = match &self.node.value {
            Value::Null => 0.0,
            Value::Int(v) => *v as f64,
            Value::UInt(v) => *v as f64,
            Value::Float(v) => *v,
            Value::String(v) => v.parse().map_err(|_| self.wrong("a number"))?,
            _ => return Err(self.wrong("a number")),
        };
        self.locate(visitor.visit_f64(value))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.locate(visitor.visit_str(self.string()?))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => self.locate(visitor.visit_none()),
            _ => self.locate(visitor.visit_some(self)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let items: &'a [Node] = match &self.node.value {
            Value::Seq(items) => items,
            Value::Null => &[],
            _ => return Err(self.wrong("a list")),
        };
        self.locate(visitor.visit_seq(Seq { de: self, items: items.iter().enumerate() }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let entries: &'a [(String, Node)] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => return Err(self.wrong("a map")),
        };
        let map = Map { de: self, entries: entries.iter(), current: None, fields: None };
        self.locate(visitor.visit_map(map))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries: &'a [(String, Node)] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => return Err(self.wrong("a map")),
        };
        let fields = Some((fields, unread_fields(name)));
        let map = Map { de: self, entries: entries.iter(), current: None, fields };
        self.locate(visitor.visit_map(map))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let name = self.string()?;
        match variants.iter().find(|variant| **variant == name) {
            Some(variant) => self.locate(visitor.visit_enum((*variant).into_deserializer())),
            None => Err(self.error(format!(
                "expected one of {}, found {}",
                variants.join(", "),
                self.node.describe()
            ))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.locate(visitor.visit_newtype_struct(self))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.locate(visitor.visit_unit())
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Seq<'a> {
    de: De<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de, 'a> de::SeqAccess<'de> for Seq<'a> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.de.path, index);
        read_child(node, &path, self.de.skipped, seed).map(Some)
    }
}

type Fields = (&'static [&'static str], &'static [&'static str]);

struct Map<'a> {
    de: De<'a>,
    entries: std::slice::Iter<'a, (String, Node)>,
    current: Option<&'a (String, Node)>,
    /// Read and unread field names, when the map is a struct.
    fields: Option<Fields>,
}

impl<'de, 'a> de::MapAccess<'de> for Map<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            let (name, node) = entry;
            let Some((read, unread)) = self.fields else {
                self.current = Some(entry);
                return seed.deserialize(name.as_str().into_deserializer()).map(Some);
            };
            if node.value == Value::Null {
                continue;
            }
            let camel = camel_case(name);
            if let Some(field) = read.iter().find(|field| **field == name || **field == camel) {
                self.current = Some(entry);
                return seed.deserialize((*field).into_deserializer()).map(Some);
            }
            let known = unread.iter().any(|field| *field == name || *field == camel);
            self.de.skip(name, node, known);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, node) = self.current.take().expect("serde asks for a value after its key");
        let path = Path::Field(self.de.path, name);
        read_child(node, &path, self.de.skipped, seed)
    }
}

/// Reads one node; an error that knows no place happened here.
fn read_child<'de, T: DeserializeSeed<'de>>(
    node: &Node,
    path: &Path<'_>,
    skipped: &RefCell<Vec<Skipped>>,
    seed: T,
) -> Result<T::Value, Error> {
    let de = De { node, path, skipped };
    de.locate(seed.deserialize(de))
}

/// `fooBar` from `foo_bar`, as protojson maps names.
fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            out.push(c.to_ascii_uppercase());
            upper = false;
        } else {
            out.push(c);
        }
    }
    out
}
