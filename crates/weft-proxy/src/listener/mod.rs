//! From a socket to a chosen filter chain: accepting, original destination, protocol detection.

mod client_hello;
pub mod proxy_protocol;
pub mod sniff;
