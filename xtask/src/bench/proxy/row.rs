//! What is measured: the ways through a proxy (doors), the loads sent through each, and the goals
//! each row is held to.

use super::kind::Kind;

/// One way through a proxy: what the client speaks and what the proxy speaks to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    Http1,
    /// HTTP/1 over TLS 1.3 from the client, plain behind.
    TlsIn,
    /// The same, the client showing a certificate.
    MtlsIn,
    /// Plain HTTP/1 from the client, mutual TLS to the backend.
    MtlsOut,
    /// client → proxy → mutual TLS → proxy → backend, two proxies of one kind.
    Pair,
    Tcp,
    Http2,
    Http2To1,
    Http1To2,
    /// Plain HTTP/2 from the client, HTTP/2 over mutual TLS to the backend.
    Http2Mtls,
    /// HTTP/2 on both sides to the gRPC echo server.
    Grpc,
}

impl Door {
    pub const ALL: [Door; 11] = [
        Door::Http1,
        Door::TlsIn,
        Door::MtlsIn,
        Door::MtlsOut,
        Door::Pair,
        Door::Tcp,
        Door::Http2,
        Door::Http2To1,
        Door::Http1To2,
        Door::Http2Mtls,
        Door::Grpc,
    ];

    /// What stands between two `@` in the configurations of `bench/` for the door's port.
    pub fn key(self) -> &'static str {
        match self {
            Door::Http1 => "HTTP1",
            Door::TlsIn => "TLS_IN",
            Door::MtlsIn => "MTLS_IN",
            Door::MtlsOut => "MTLS_OUT",
            Door::Pair => "PAIR",
            Door::Tcp => "TCP",
            Door::Http2 => "HTTP2",
            Door::Http2To1 => "HTTP2_TO_1",
            Door::Http1To2 => "HTTP1_TO_2",
            Door::Http2Mtls => "HTTP2_MTLS",
            Door::Grpc => "GRPC",
        }
    }

    /// The host a client asks for.
    pub fn host(self) -> &'static str {
        match self {
            Door::MtlsOut | Door::Http2Mtls => "mtls.local",
            Door::Pair => "app.default.svc.cluster.local",
            _ => "bench.local",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Door::Http1 => "HTTP/1",
            Door::TlsIn => "HTTP/1 over TLS",
            Door::MtlsIn => "HTTP/1 over mTLS",
            Door::MtlsOut => "HTTP/1, mTLS out,",
            Door::Pair => "two in a row, HTTP/1",
            Door::Tcp => "TCP",
            Door::Http2 => "HTTP/2",
            Door::Http2To1 => "HTTP/2 in, HTTP/1 out,",
            Door::Http1To2 => "HTTP/1 in, HTTP/2 out,",
            Door::Http2Mtls => "HTTP/2, mTLS out,",
            Door::Grpc => "gRPC",
        }
    }
}

/// How a door is loaded: closed loop, keep-alive, from core 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// wrk: HTTP/1 connections, each asking for so many bytes at a time.
    Http1 { connections: u32, bytes: u32 },
    /// h2load: streams on each connection; two bytes at a time.
    Http2 { connections: u32, streams: u32 },
    /// h2load: gRPC calls with a message of so many bytes each way.
    Unary { connections: u32, streams: u32, bytes: u32 },
    /// Own client: open streams on which one message after the other goes out and comes back.
    Streaming { connections: u32, streams: u32, bytes: u32 },
}

/// A table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub door: Door,
    pub load: Load,
}

const fn http1(door: Door, connections: u32, bytes: u32) -> Row {
    Row { door, load: Load::Http1 { connections, bytes } }
}

const fn http2(door: Door, connections: u32, streams: u32) -> Row {
    Row { door, load: Load::Http2 { connections, streams } }
}

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// In the order of the tables.
pub const ALL: &[Row] = &[
    http1(Door::Http1, 1, 2),
    http1(Door::Http1, 1, KIB),
    http1(Door::Http1, 64, 2),
    http1(Door::Http1, 64, KIB),
    http1(Door::Http1, 64, 64 * KIB),
    http1(Door::Http1, 64, MIB),
    http1(Door::Http1, 512, 2),
    http1(Door::Http1, 512, KIB),
    http1(Door::Http1, 512, 64 * KIB),
    http1(Door::TlsIn, 64, 2),
    http1(Door::TlsIn, 64, 64 * KIB),
    http1(Door::TlsIn, 64, MIB),
    http1(Door::MtlsIn, 64, 2),
    http1(Door::MtlsIn, 64, 64 * KIB),
    http1(Door::MtlsOut, 64, 2),
    http1(Door::MtlsOut, 64, 64 * KIB),
    http1(Door::Pair, 64, 2),
    http1(Door::Pair, 64, 64 * KIB),
    http1(Door::Tcp, 64, 2),
    http1(Door::Tcp, 64, 64 * KIB),
    http1(Door::Tcp, 64, MIB),
    http2(Door::Http2, 1, 1),
    http2(Door::Http2, 1, 100),
    http2(Door::Http2, 8, 32),
    http2(Door::Http2, 64, 1),
    http2(Door::Http2To1, 1, 100),
    http2(Door::Http2To1, 8, 32),
    http1(Door::Http1To2, 64, 2),
    http2(Door::Http2Mtls, 1, 100),
    http2(Door::Http2Mtls, 8, 32),
    Row { door: Door::Http2, load: Load::Unary { connections: 1, streams: 100, bytes: 100 } },
    Row { door: Door::Http2, load: Load::Unary { connections: 8, streams: 32, bytes: 100 } },
    Row { door: Door::Grpc, load: Load::Streaming { connections: 4, streams: 16, bytes: KIB } },
    Row {
        door: Door::Grpc,
        load: Load::Streaming { connections: 4, streams: 16, bytes: 64 * KIB },
    },
];

/// A bound on Weft's figure as a share of a neighbour's in the same run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// CPU per request at most this share of the neighbour's.
    Cpu(Kind, f64),
    /// CPU per request below the neighbour's.
    Below(Kind),
    /// Requests per second at least so many times the neighbour's.
    Rate(Kind, f64),
}

impl Row {
    pub fn name(self) -> String {
        let door = self.door.name();
        match self.load {
            Load::Http1 { connections, bytes } => format!("{door} {connections} × {}", size(bytes)),
            Load::Http2 { connections, streams } => {
                format!("{door} {connections} × {streams} streams")
            }
            Load::Unary { connections, streams, bytes } => {
                format!("gRPC unary {connections} × {streams} streams, {}", size(bytes))
            }
            Load::Streaming { connections, streams, bytes } => {
                format!("{door} streaming {connections} × {streams} streams, {}", size(bytes))
            }
        }
    }

    /// The goals of the project's tables for this row. Envoy is the one with a sidecar's work.
    pub fn goals(self) -> Vec<Goal> {
        use Goal::{Below, Cpu, Rate};
        let small = self.bytes() <= KIB;
        match (self.door, self.load) {
            (Door::Http1, Load::Http1 { connections: 512, bytes }) if bytes <= KIB => {
                vec![Cpu(Kind::Relay, 1.25), Cpu(Kind::EnvoyMesh, 0.25), Below(Kind::Haproxy)]
            }
            (Door::Http1, Load::Http1 { connections: 64, bytes }) if bytes <= KIB => vec![
                Cpu(Kind::Relay, 1.15),
                Cpu(Kind::EnvoyMesh, 0.40),
                Below(Kind::Haproxy),
                Below(Kind::Nginx),
            ],
            (Door::Http1, Load::Http1 { bytes, .. }) if bytes > KIB => {
                vec![Cpu(Kind::Relay, 1.15), Cpu(Kind::EnvoyMesh, 0.6), Below(Kind::Haproxy)]
            }
            (Door::TlsIn | Door::MtlsIn | Door::MtlsOut, _) => {
                let share = if small { 0.40 } else { 0.6 };
                vec![Cpu(Kind::EnvoyMesh, share), Below(Kind::Haproxy)]
            }
            (Door::Pair, _) if small => vec![Rate(Kind::EnvoyMesh, 2.5)],
            (Door::Tcp, _) => vec![Cpu(Kind::Relay, 1.05)],
            (Door::Http2, Load::Http2 { connections: 64, .. }) => {
                vec![Cpu(Kind::EnvoyMesh, 0.40), Cpu(Kind::Haproxy, 0.7)]
            }
            (Door::Http2, Load::Http2 { streams, .. }) if streams > 1 => {
                vec![Cpu(Kind::EnvoyMesh, 0.15), Cpu(Kind::Haproxy, 0.4)]
            }
            (_, Load::Unary { .. }) => {
                vec![Cpu(Kind::EnvoyMesh, 0.15), Cpu(Kind::Haproxy, 0.4)]
            }
            (Door::Http2To1 | Door::Http1To2, _) => vec![Cpu(Kind::EnvoyMesh, 0.40)],
            (Door::Grpc, Load::Streaming { .. }) => vec![Cpu(Kind::EnvoyMesh, 0.40)],
            (Door::Http2Mtls, _) => vec![Cpu(Kind::EnvoyMesh, 0.35)],
            _ => Vec::new(),
        }
    }

    /// Bytes of a reply's body, or of a message.
    pub fn bytes(self) -> u32 {
        match self.load {
            Load::Http1 { bytes, .. }
            | Load::Unary { bytes, .. }
            | Load::Streaming { bytes, .. } => bytes,
            Load::Http2 { .. } => 2,
        }
    }
}

fn size(bytes: u32) -> String {
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{} KiB", bytes / KIB),
        _ => format!("{} MiB", bytes / MIB),
    }
}
