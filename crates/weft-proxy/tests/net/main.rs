//! The proxy as a process sees it, against a scripted control plane and real sockets on loopback:
//! listeners, TLS, TCP, configuration changes, start and stop. HTTP is tested beside its code; here, through mutual TLS.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod control;
mod rig;

mod abuse;
mod capture;
mod changes;
mod config;
mod http;
mod keep_alive;
mod lifecycle;
mod limits;
mod source;
mod status;
mod tcp;
mod tls;
mod tls_stream;
