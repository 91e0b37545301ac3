//! The proxies that are compared.

use clap::ValueEnum;

/// In the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The backend itself.
    Direct,
    /// Bytes in, bytes out: the floor for anything that must read and write.
    Relay,
    Weft,
    /// Stock Envoy as a bare router.
    Envoy,
    /// Stock Envoy doing what a sidecar does.
    EnvoyMesh,
    Haproxy,
    Nginx,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Direct,
        Kind::Relay,
        Kind::Weft,
        Kind::Envoy,
        Kind::EnvoyMesh,
        Kind::Haproxy,
        Kind::Nginx,
    ];
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Direct => "direct",
            Kind::Relay => "raw relay",
            Kind::Weft => "Weft",
            Kind::Envoy => "Envoy",
            Kind::EnvoyMesh => "Envoy, sidecar work",
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
        })
    }
}
