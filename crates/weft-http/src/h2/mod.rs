//! The HTTP/2 engine, sans-io (RFC 9113, RFC 7541): bytes in, events out; values in, bytes out.
//!
//! `frame` and `settings` take single frames apart and write them, `hpack` does the same for field
//! blocks. Must not know sockets, clocks, routes or what a proxy forwards: that is `rules`.

pub mod conn;
mod error;
pub mod frame;
pub mod hpack;
mod settings;
pub mod write;

pub use conn::Connection;
pub use error::{ErrorCode, FrameError, Scope};
pub use frame::{FrameHead, FrameType};
pub use settings::{FRAME_SIZE_MIN, Setting, Settings, parse_settings};
