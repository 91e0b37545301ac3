//! Bounds that the CRDs put on values of any kind: durations, lengths, counts, labels.

use std::time::Duration;

use super::{Findings, entry};
use crate::Labels;
use crate::spec::{ConnectionPoolSettings, OutlierDetection};

/// Shortest time that Istio's API takes.
const DURATION_MIN: Duration = Duration::from_millis(1);
/// Longest value of a label.
const LABEL_BYTES_MAX: usize = 63;

pub(super) fn duration(value: Option<Duration>, path: String, findings: &mut Findings<'_>) {
    if let Some(value) = value.filter(|value| *value < DURATION_MIN) {
        let message = format!("expected a duration of 1ms or more, found {value:?}");
        findings.error(path, message);
    }
}

pub(super) fn length(text: &str, max: usize, path: String, findings: &mut Findings<'_>) {
    if text.len() > max {
        findings.error(path, format!("has {} characters, more than {max}", text.len()));
    }
}

pub(super) fn count(count: usize, max: usize, path: String, findings: &mut Findings<'_>) {
    if count > max {
        findings.error(path, format!("has {count} entries, more than {max}"));
    }
}

/// Labels that pick workloads.
pub(super) fn selector(labels: &Labels, max: usize, path: &str, findings: &mut Findings<'_>) {
    count(labels.len(), max, path.to_owned(), findings);
    for (key, value) in labels {
        if key.is_empty() {
            findings.error(path, "an empty key is not supported in a selector");
        } else if key.contains('*') {
            findings.error(path, format!("wildcard is not supported in selector: {key:?}"));
        }
        if value.contains('*') {
            findings.error(entry(path, key), "wildcard is not supported in selector");
        }
        length(value, LABEL_BYTES_MAX, entry(path, key), findings);
    }
}

/// The times of a `connectionPool`.
pub(super) fn pool(pool: &ConnectionPoolSettings, path: &str, findings: &mut Findings<'_>) {
    if let Some(tcp) = &pool.tcp {
        let mut times = vec![
            ("connectTimeout", tcp.connect_timeout),
            ("maxConnectionDuration", tcp.max_connection_duration),
            ("idleTimeout", tcp.idle_timeout),
        ];
        if let Some(keepalive) = &tcp.tcp_keepalive {
            times.push(("tcpKeepalive.time", keepalive.time));
            times.push(("tcpKeepalive.interval", keepalive.interval));
        }
        for (field, value) in times {
            duration(value, format!("{path}.tcp.{field}"), findings);
        }
    }
    if let Some(http) = &pool.http {
        duration(http.idle_timeout, format!("{path}.http.idleTimeout"), findings);
        if let Some(keep_alive) = &http.http2_keep_alive {
            let path = format!("{path}.http.http2KeepAlive");
            duration(keep_alive.interval, format!("{path}.interval"), findings);
            duration(keep_alive.timeout, format!("{path}.timeout"), findings);
        }
    }
}

/// The times of an `outlierDetection`.
pub(super) fn outlier(outlier: &OutlierDetection, path: &str, findings: &mut Findings<'_>) {
    duration(outlier.interval, format!("{path}.interval"), findings);
    duration(outlier.base_ejection_time, format!("{path}.baseEjectionTime"), findings);
}
