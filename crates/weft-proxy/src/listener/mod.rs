//! From a socket to a chosen filter chain: accepting, original destination, protocol detection.

pub mod accept;
pub mod detect;

pub(crate) mod client_hello;
pub mod crew;
pub mod proxy_protocol;
pub mod sniff;

pub mod bind;
pub mod set;
