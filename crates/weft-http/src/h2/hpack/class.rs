//! What there is to know about a field apart from its place in a head: worked out once when it
//! enters a table, and read every time it is named by index.

use crate::headers::known_byte;
use crate::rules::{H2Error, name_fault, value_fault};

/// The class of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Of the name.
    pub(super) name: NameClass,
    /// What is wrong with the value, whatever head it is in.
    pub(super) value_fault: Option<H2Error>,
}

/// The class of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameClass {
    /// As in the list of fields.
    pub(super) known: u8,
    pub(super) kind: Kind,
}

/// What a name makes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Pseudo(Pseudo),
    /// Not allowed in any head.
    Faulty(H2Error),
}

/// The pseudo fields of RFC 9113 §8.3 and RFC 8441 §4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

pub(super) const PSEUDO_COUNT: usize = 6;

impl NameClass {
    pub(super) fn of(name: &[u8]) -> NameClass {
        let known = known_byte(name);
        let kind = match name {
            [b':', rest @ ..] => match rest {
                b"method" => Kind::Pseudo(Pseudo::Method),
                b"scheme" => Kind::Pseudo(Pseudo::Scheme),
                b"authority" => Kind::Pseudo(Pseudo::Authority),
                b"path" => Kind::Pseudo(Pseudo::Path),
                b"protocol" => Kind::Pseudo(Pseudo::Protocol),
                b"status" => Kind::Pseudo(Pseudo::Status),
                _ => Kind::Faulty(H2Error::Pseudo),
            },
            name => match name_fault(name, known) {
                Some(fault) => Kind::Faulty(fault),
                None => Kind::Regular,
            },
        };
        NameClass { known, kind }
    }

    pub(super) fn with_value(self, value: &[u8]) -> Class {
        Class { name: self, value_fault: value_fault(self.known, value) }
    }
}
