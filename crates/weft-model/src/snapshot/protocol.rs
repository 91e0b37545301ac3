//! What a port speaks: Istio's explicit protocol selection.

/// Application protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    /// TLS that carries HTTP; not terminated.
    Https,
    Tls,
    Tcp,
    Udp,
    Mongo,
    Mysql,
    Redis,
    /// Not declared: to be sniffed.
    Auto,
}

/// Well-known ports of protocols where the server speaks first or sniffing breaks.
const SERVER_FIRST_PORTS: [u32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// A protocol by its name, in any case: of a Gateway, ServiceEntry or Sidecar port.
    pub fn parse(name: &str) -> Option<Protocol> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" => Protocol::Http,
            "http2" => Protocol::Http2,
            "grpc" => Protocol::Grpc,
            "grpc-web" => Protocol::GrpcWeb,
            "https" => Protocol::Https,
            "tls" => Protocol::Tls,
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "mongo" => Protocol::Mongo,
            "mysql" => Protocol::Mysql,
            "redis" => Protocol::Redis,
            _ => return None,
        })
    }

    /// Of a Kubernetes Service port: transport, then `appProtocol`, then the name's prefix, then
    /// well-known server-first ports.
    pub fn of_service_port(
        port: u32,
        name: &str,
        transport: &str,
        app_protocol: Option<&str>,
    ) -> Protocol {
        if transport.eq_ignore_ascii_case("udp") {
            return Protocol::Udp;
        }
        let declared = match app_protocol {
            Some("kubernetes.io/h2c") => Some(Protocol::Http2),
            Some("kubernetes.io/ws") => Some(Protocol::Http),
            Some("kubernetes.io/wss") => Some(Protocol::Https),
            // A name outside Istio's vocabulary says nothing; the port's name may still.
            Some(other) => Protocol::parse(other),
            None => None,
        };
        declared.or_else(|| Protocol::of_port_name(name)).unwrap_or({
            if SERVER_FIRST_PORTS.contains(&port) { Protocol::Tcp } else { Protocol::Auto }
        })
    }

    /// From `protocol` or `protocol-suffix`.
    pub fn of_port_name(name: &str) -> Option<Protocol> {
        let lower = name.to_ascii_lowercase();
        if lower == "grpc-web" || lower.starts_with("grpc-web-") {
            return Some(Protocol::GrpcWeb);
        }
        Protocol::parse(lower.split('-').next().unwrap_or_default())
    }

    /// Routed by HTTP rules.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// HTTP/2 towards the endpoint.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }

    /// Routed by SNI, not terminated.
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Tls)
    }

    /// Bytes, routed by address and port (TLS routes too).
    pub fn is_tcp(self) -> bool {
        matches!(
            self,
            Protocol::Tcp
                | Protocol::Tls
                | Protocol::Https
                | Protocol::Mongo
                | Protocol::Mysql
                | Protocol::Redis
        )
    }

    pub fn is_auto(self) -> bool {
        self == Protocol::Auto
    }
}
