//! TCP proxying: bytes both ways between a client and a chosen endpoint.

mod copy;
mod forward;

pub use copy::{SCRATCH_BYTES, Scratch};
pub use forward::forward;
