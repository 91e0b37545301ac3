//! Sockets as the rest of the proxy sees them: one byte stream, plain or TLS.

pub mod io;
pub(crate) mod pipe;
pub mod tls_stream;

pub use io::Io;
