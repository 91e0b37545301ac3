//! Stock Envoy and this crate, given the same configuration, decide the same: which route answers,
//! where a redirect leads, what header edits say, and which endpoint a key hashes to.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod hashes;
mod rig;
mod routes;
