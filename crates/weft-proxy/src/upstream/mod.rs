//! The way to the other side: connections, and what is counted about endpoints.

pub mod balance;
pub mod connect;
pub mod dns;
pub mod endpoints;
