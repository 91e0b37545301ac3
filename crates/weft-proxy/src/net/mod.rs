//! Sockets as the rest of the proxy sees them: one byte stream, plain or TLS.

pub mod io;

pub use io::Io;
