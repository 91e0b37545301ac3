//! TCP proxying: bytes both ways between a client and a chosen endpoint.

mod copy;
mod forward;
mod log;
mod tunnel;

pub use copy::{SCRATCH_BYTES, Scratch};
pub use forward::forward;
pub(crate) use log::unrouted as log_unrouted;
