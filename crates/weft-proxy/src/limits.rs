//! Bounds of the whole process, connections by source, and what counts a limit that was reached.
//! `docs/limits.md` lists every limit; those of listeners and clusters come with configuration.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_http::h1::ParseError;
use weft_http::h2::conn::Budgets;
use weft_telemetry::{LocalCounter, Shard};

use crate::error::{ErrorKind, ProxyError};

/// Bounds of the whole process.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Downstream connections; further ones are closed at once.
    pub connections_max: usize,
    /// Of them, those of one source; see [`Sources`].
    pub connections_per_source_max: u32,
    /// Longest request line of HTTP/1 (`414` beyond). Bytes.
    pub url_bytes_max: usize,
    /// How long a client may leave us waiting: for more of an HTTP/1 request body, or until it takes
    /// some of its response. Zero: without limit.
    pub client_stall: Duration,
    /// A client of a port that takes plain bytes beside TLS and says nothing for this long waits for
    /// the server to speak first. Zero: only the listener's own time-out ends the wait.
    pub server_first_wait: Duration,
    /// Whose upgrade to HTTP/2 is taken.
    pub h2c_upgrade: H2cUpgrade,
    /// What one HTTP/2 connection, of a client or an endpoint, may make us do for nothing.
    pub h2_budgets: Budgets,
    /// Its peer's preface and SETTINGS must have come within this.
    pub h2_handshake: Duration,
    /// Metric series of Istio's that nobody has counted in for so long are forgotten. Zero: never.
    pub metrics_idle: Duration,
}

/// Where `Upgrade: h2c` is taken; elsewhere such a request is an ordinary one of HTTP/1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum H2cUpgrade {
    Never,
    /// From the workload's own client: nobody stands in front of us there.
    #[default]
    Outbound,
    /// A proxy in front of us that passes `Upgrade` on can then be tunnelled through.
    Everywhere,
}

impl Limits {
    /// The defaults of a process that can carry `connections_max`.
    pub fn of(connections_max: usize) -> Limits {
        let half = u32::try_from(connections_max / 2).unwrap_or(u32::MAX);
        Limits {
            connections_max,
            // One client can make us slow, but never keep all others out.
            connections_per_source_max: half.max(1),
            url_bytes_max: weft_http::h1::Limits::DEFAULT.request_line_bytes_max,
            client_stall: Duration::from_secs(300),
            server_first_wait: Duration::from_millis(500),
            h2c_upgrade: H2cUpgrade::default(),
            h2_budgets: Budgets::default(),
            h2_handshake: Duration::from_secs(10),
            metrics_idle: Duration::from_secs(3600),
        }
    }
}

/// Open connections by source address, over all workers. Asked once per connection, never per
/// request. A source is an IPv4 address or the /64 of an IPv6 address, which one host has to itself.
#[derive(Debug, Clone, Default)]
pub struct Sources(Arc<[Mutex<HashMap<IpAddr, u32>>; PARTS]>);

/// Locks that sources are spread over.
const PARTS: usize = 16;

/// Counts one connection of its source until dropped.
#[derive(Debug)]
pub struct SourceGuard {
    sources: Sources,
    key: IpAddr,
}

impl Sources {
    /// Counts a connection; None when its source has `max` already.
    pub fn admit(&self, source: IpAddr, max: u32) -> Option<SourceGuard> {
        let key = key(source);
        let mut part = self.part(key);
        let open = part.entry(key).or_insert(0);
        if *open >= max {
            return None;
        }
        *open += 1;
        drop(part);
        Some(SourceGuard { sources: self.clone(), key })
    }

    fn part(&self, key: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        let mixed = match key {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        let part = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        self.0[part as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SourceGuard {
    fn drop(&mut self) {
        let mut part = self.sources.part(self.key);
        if let Entry::Occupied(mut open) = part.entry(self.key) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
        if part.is_empty() {
            // Give the memory of a scan back.
            *part = HashMap::new();
        }
    }
}

fn key(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// One worker's counters of limits that were reached, by Envoy's names where it has one.
pub struct LimitCounters {
    /// Connections closed because of [`Limits::connections_max`].
    pub overload: LocalCounter,
    /// Connections that did not say what they are in time.
    pub detect_timeout: LocalCounter,
    /// Idle HTTP connections closed.
    pub connection_idle: LocalCounter,
    /// HTTP connections ended because of their age.
    pub connection_duration: LocalCounter,
    /// TCP connections closed because nothing moved.
    pub tcp_idle: LocalCounter,
    /// TCP connections closed because of their age.
    pub tcp_duration: LocalCounter,
    /// TCP connections that a circuit breaker refused.
    pub tcp_overflow: LocalCounter,
    /// Requests whose head did not come in time.
    pub request_head: LocalCounter,
    request: LocalCounter,
    stream_idle: LocalCounter,
    stream_duration: LocalCounter,
    overflow: LocalCounter,
    metrics: Shard,
    refused: RefCell<HashMap<&'static str, LocalCounter>>,
}

impl LimitCounters {
    pub(crate) fn new(metrics: &Shard) -> LimitCounters {
        let counter = |name, help| metrics.counter(name, help, &[]);
        LimitCounters {
            overload: counter(
                "envoy_listener_downstream_cx_overload_reject",
                "Connections closed because the connection limit was reached.",
            ),
            detect_timeout: counter(
                "envoy_listener_downstream_pre_cx_timeout",
                "Connections whose PROXY header or first bytes did not come in time.",
            ),
            connection_idle: counter(
                "envoy_http_downstream_cx_idle_timeout",
                "HTTP connections closed because they carried no request for the idle timeout.",
            ),
            connection_duration: counter(
                "envoy_http_downstream_cx_max_duration_reached",
                "HTTP connections ended because of max_connection_duration.",
            ),
            tcp_idle: counter(
                "envoy_tcp_idle_timeout",
                "TCP connections closed because nothing moved for the idle timeout.",
            ),
            tcp_duration: counter(
                "envoy_tcp_max_downstream_connection_duration",
                "TCP connections closed because of max_downstream_connection_duration.",
            ),
            tcp_overflow: counter(
                "envoy_cluster_upstream_cx_overflow",
                "TCP connections refused by a circuit breaker.",
            ),
            request_head: counter(
                "envoy_http_downstream_rq_header_timeout",
                "Requests whose head did not come in time.",
            ),
            request: counter(
                "envoy_http_downstream_rq_timeout",
                "Requests that did not come whole within request_timeout.",
            ),
            stream_idle: counter(
                "envoy_http_downstream_rq_idle_timeout",
                "Streams ended because nothing moved, or their client left us waiting.",
            ),
            stream_duration: counter(
                "envoy_http_downstream_rq_max_duration_reached",
                "Streams ended because of max_stream_duration.",
            ),
            overflow: counter(
                "envoy_cluster_upstream_rq_pending_overflow",
                "Requests refused by a circuit breaker.",
            ),
            metrics: metrics.clone(),
            refused: RefCell::default(),
        }
    }

    /// Counts a failed request, if a limit is why.
    pub(crate) fn failed(&self, error: &ProxyError) {
        match error.kind {
            ErrorKind::DownstreamTimeout => self.request_head.inc(),
            ErrorKind::RequestTimeout => self.request.inc(),
            ErrorKind::StreamIdle(_) => self.stream_idle.inc(),
            ErrorKind::StreamDuration => self.stream_duration.inc(),
            ErrorKind::Overflow => self.overflow.inc(),
            ErrorKind::DownstreamProtocol(_) => {
                let parse = error.source.as_ref().and_then(|source| source.downcast_ref());
                self.refused(parse.map_or("other", |error: &ParseError| error.reason()));
            }
            _ => {}
        }
    }

    fn refused(&self, reason: &'static str) {
        let counter = || {
            self.metrics.counter(
                "weft_proxy_requests_refused_total",
                "Requests refused for what their bytes say, by reason.",
                &[("reason", reason)],
            )
        };
        self.refused.borrow_mut().entry(reason).or_insert_with(counter).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_source_and_forgotten() {
        let sources = Sources::default();
        let admit = |ip: &str| sources.admit(ip.parse().unwrap(), 2);
        let one = admit("192.0.2.1");
        let two = admit("::ffff:192.0.2.1");
        assert!(one.is_some() && two.is_some());
        assert!(admit("192.0.2.1").is_none());
        assert!(admit("192.0.2.2").is_some());
        drop(two);
        assert!(admit("192.0.2.1").is_some());
        let host = (admit("2001:db8::1"), admit("2001:db8::2"));
        assert!(admit("2001:db8::3").is_none());
        assert!(admit("2001:db8:0:1::3").is_some());
        drop((one, host));
        assert!(sources.0.iter().all(|part| part.lock().unwrap().is_empty()));
    }
}
