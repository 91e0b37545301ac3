//! Command line of `weft proxy` and `weft-proxy`. Every option has an environment variable, with
//! Istio's name where Istio has one. Owns names and defaults only.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// The data plane.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// What kind of proxy this is.
    #[arg(value_enum)]
    pub kind: ProxyKind,

    /// Control plane, host:port.
    #[arg(long, env = "WEFT_XDS", default_value = "127.0.0.1:15010", value_name = "HOST:PORT")]
    pub xds: String,
    /// Talk TLS to the control plane and trust these roots (PEM).
    #[arg(long, env = "WEFT_XDS_TLS_ROOT", value_name = "FILE")]
    pub xds_tls_root: Option<PathBuf>,
    /// Certificate authority, host:port [default: the control plane].
    #[arg(long, env = "CA_ADDR", value_name = "HOST:PORT")]
    pub ca: Option<String>,
    /// File with the token that proves who we are to the control plane and the CA. Without it the
    /// proxy has no identity, so mutual TLS cannot work.
    #[arg(long, env = "WEFT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// SPIFFE trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub trust_domain: String,

    /// Workload (pod) name [default: the host name].
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// Namespace of the workload.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// Service account of the workload.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default", value_name = "NAME")]
    pub service_account: String,
    /// Addresses of the workload, first one first.
    #[arg(long, env = "INSTANCE_IP", value_delimiter = ',', default_value = "127.0.0.1")]
    pub ip: Vec<IpAddr>,
    /// Labels of the workload, k=v,k=v; may be repeated.
    #[arg(long, env = "WEFT_LABELS", value_delimiter = ',', value_name = "K=V")]
    pub labels: Vec<String>,
    /// Cluster id.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes", value_name = "ID")]
    pub cluster_id: String,
    /// Name of the workload's owner (Deployment) [default: the name without its hashes].
    #[arg(long, env = "ISTIO_META_WORKLOAD_NAME", value_name = "NAME")]
    pub workload: Option<String>,
    /// How traffic reaches the proxy.
    #[arg(long, env = "ISTIO_META_INTERCEPTION_MODE", value_enum, ignore_case = true)]
    #[arg(default_value = "redirect")]
    pub interception: Interception,

    /// Keeps the last accepted configuration and the workload certificate here, so that a restart
    /// without the control plane still serves.
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Oldest saved configuration that is still used, for example 24h.
    #[arg(long, env = "WEFT_STATE_AGE_MAX", default_value = "24h", value_parser = duration)]
    pub state_age_max: Duration,
    /// Admin address; port 0 takes any.
    #[arg(long, env = "WEFT_ADMIN_ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// Writes the admin address that was bound to this file.
    #[arg(long, value_name = "FILE")]
    pub admin_address_file: Option<PathBuf>,
    /// Worker threads [default: one per core].
    #[arg(long, env = "ISTIO_CPU_LIMIT", value_name = "N")]
    pub concurrency: Option<usize>,
    /// On SIGTERM keep accepting at least this long, so that callers learn we are leaving.
    #[arg(long, env = "MINIMUM_DRAIN_DURATION", default_value = "5s", value_parser = duration)]
    pub drain_time: Duration,
    /// On SIGTERM exit after this time even with connections open.
    #[arg(long, env = "TERMINATION_DRAIN_DURATION_SECONDS", default_value = "30s", value_parser = duration)]
    pub termination_grace: Duration,
    /// Unix socket over which a newer proxy takes over from this one, and this one from an older
    /// [default: handover.sock in the state directory].
    #[arg(long, env = "WEFT_HANDOVER", value_name = "PATH")]
    pub handover: Option<PathBuf>,
    /// A proxy that takes over gives up when it is not ready within this; the running one stays.
    #[arg(long, env = "WEFT_HANDOVER_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub handover_timeout: Duration,
    /// After a hand-over leave connections that cannot be passed on open this long.
    #[arg(long, env = "WEFT_HANDOVER_DRAIN_TIME", default_value = "10m", value_parser = duration)]
    pub handover_drain_time: Duration,
    /// error, warn, info, debug, trace, or a tracing filter such as weft_proxy=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// Sidecar or gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyKind {
    /// Next to one workload.
    Sidecar,
    /// At the edge of the mesh.
    Gateway,
}

/// How traffic reaches the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Interception {
    /// Applications name the proxy's own listeners.
    None,
    /// iptables REDIRECT.
    Redirect,
    /// iptables TPROXY: the application sees the client's address.
    Tproxy,
}

/// `5s`, `500ms`, `2m`, `24h`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_each = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is no unit; use ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no duration"))?;
    Duration::try_from_secs_f64(number * seconds_each).map_err(|error| error.to_string())
}

impl ProxyArgs {
    /// Labels as pairs; a label without `=` is an error.
    pub fn label_pairs(&self) -> Result<Vec<(String, String)>, String> {
        let pair = |label: &String| match label.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("--labels: {label:?} is not of the form name=value")),
        };
        self.labels.iter().filter(|label| !label.is_empty()).map(pair).collect()
    }

    /// Worker threads to start.
    pub fn workers(&self) -> usize {
        match self.concurrency {
            Some(n) if n > 0 => n,
            _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86400)));
        assert!(duration("soon").is_err());
        assert!(duration("5d").is_err());
    }
}
