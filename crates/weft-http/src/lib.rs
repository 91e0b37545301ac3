//! Version-neutral HTTP message that keeps header order, spelling and duplicates; the HTTP/1 codec;
//! framing and hop-by-hop rules.
//!
//! Everything here is sans-io: bytes in, values and bytes out. The crate must not know sockets,
//! clocks, routes or clusters. HTTP/1 and HTTP/2 meet only in [`RequestHead`] and [`ResponseHead`].

pub mod h1;
pub mod h2;
mod headers;
mod message;
pub mod rules;

pub use headers::{Header, HeaderList, Iter, Known, Lengths};
pub use message::{
    BodyLength, Frame, Method, RequestHead, ResponseHead, Scheme, Target, Version, reason_phrase,
};
