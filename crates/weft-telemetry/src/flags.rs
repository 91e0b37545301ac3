//! Envoy's response flags as a set of bits, printed as Envoy prints them.

/// Why a request ended as it did, beyond its status code. Several flags may be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseFlags(u32);

/// Envoy's short names, in the order in which Envoy prints them.
const NAMES: [&str; 28] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO",
];

impl ResponseFlags {
    /// Nothing to report; printed as `-`.
    pub const NONE: Self = Self(0);
    /// No healthy upstream.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1 << 1);
    /// Upstream request timeout.
    pub const UPSTREAM_TIMEOUT: Self = Self(1 << 2);
    /// Local reset.
    pub const LOCAL_RESET: Self = Self(1 << 3);
    /// Upstream remote reset.
    pub const UPSTREAM_RESET: Self = Self(1 << 4);
    /// Upstream connection failure.
    pub const UPSTREAM_CONNECT_FAILURE: Self = Self(1 << 5);
    /// Upstream connection termination.
    pub const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 6);
    /// Upstream overflow (circuit breaker).
    pub const UPSTREAM_OVERFLOW: Self = Self(1 << 7);
    /// No route found.
    pub const NO_ROUTE: Self = Self(1 << 8);
    /// Delay injected.
    pub const DELAY_INJECTED: Self = Self(1 << 9);
    /// Abort injected.
    pub const FAULT_INJECTED: Self = Self(1 << 10);
    /// Rate limited.
    pub const RATE_LIMITED: Self = Self(1 << 11);
    /// Denied by external authorization.
    pub const UNAUTHORIZED: Self = Self(1 << 12);
    /// Downstream connection termination.
    pub const DOWNSTREAM_TERMINATION: Self = Self(1 << 14);
    /// Upstream retry limit exceeded.
    pub const RETRY_LIMIT_EXCEEDED: Self = Self(1 << 15);
    /// Stream idle timeout.
    pub const STREAM_IDLE: Self = Self(1 << 16);
    /// Downstream protocol error.
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 18);
    /// Upstream max stream duration reached.
    pub const MAX_STREAM_DURATION: Self = Self(1 << 19);
    /// Duration timeout (downstream max duration).
    pub const DURATION_TIMEOUT: Self = Self(1 << 22);
    /// Upstream protocol error.
    pub const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 23);
    /// No cluster found.
    pub const NO_CLUSTER: Self = Self(1 << 24);
    /// Overload manager terminated the request.
    pub const OVERLOAD: Self = Self(1 << 25);

    /// The flag with Envoy's short name, for example `UF`.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| *known == name).map(|bit| Self(1 << bit))
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when every flag of `other` is set here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The short names that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, n)| *n)
    }
}

impl std::fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_envoy_does() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!(ResponseFlags::NO_ROUTE.to_string(), "NR");
        assert_eq!(ResponseFlags::NO_CLUSTER.to_string(), "NC");
        assert_eq!(ResponseFlags::UPSTREAM_PROTOCOL_ERROR.to_string(), "UPE");
        assert_eq!(ResponseFlags::DURATION_TIMEOUT.to_string(), "DT");
        assert_eq!(ResponseFlags::MAX_STREAM_DURATION.to_string(), "UMSDR");
        assert_eq!(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR.to_string(), "DPE");
        assert_eq!(ResponseFlags::OVERLOAD.to_string(), "OM");
        assert_eq!(ResponseFlags::RETRY_LIMIT_EXCEEDED.to_string(), "URX");
        let both =
            ResponseFlags::UPSTREAM_CONNECT_FAILURE.with(ResponseFlags::RETRY_LIMIT_EXCEEDED);
        assert_eq!(both.to_string(), "UF,URX");
        assert_eq!(ResponseFlags::from_name("UF"), Some(ResponseFlags::UPSTREAM_CONNECT_FAILURE));
        assert_eq!(ResponseFlags::from_name("??"), None);
    }
}
