//! Stock Envoy and this crate, given the same configuration, decide the same: which route answers,
//! where a redirect leads, what header edits say, which endpoint a key hashes to and where it moves
//! when that one goes, who is ejected, and how traffic spills over.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::needless_pass_by_value, reason = "json!() is most readable as an argument")]

mod ejection;
mod hashes;
mod rewrites;
mod rig;
mod routes;
mod spill;
