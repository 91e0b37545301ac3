//! Command line of `weft proxy` and `weft-proxy`. Every option has an environment variable, with
//! Istio's name where Istio has one. Owns names and defaults only.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use weft_telemetry::{Buckets, Budget};

use crate::http::policy::HttpPolicy;
use weft_http::h2::conn::Budgets;

use crate::limits::{H2cUpgrade, Limits};

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
    /// File with the workload's labels, as Kubernetes' downward API writes them.
    #[arg(long, env = "WEFT_LABELS_FILE", value_name = "FILE")]
    pub labels_file: Option<PathBuf>,
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

    /// Answer the workload's DNS for the hosts of the mesh and pass on all other questions; for this
    /// `weft init --redirect-dns` brings them here.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_name = "BOOL", action = clap::ArgAction::Set)]
    #[arg(value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true")]
    pub dns_capture: bool,
    /// Where DNS is answered; localhost is both loopback addresses.
    #[arg(
        long,
        env = "DNS_PROXY_ADDR",
        default_value = "localhost:15053",
        value_name = "HOST:PORT"
    )]
    pub dns_address: String,
    /// Whom to ask for names outside the mesh.
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,

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
    /// Port that says on all addresses whether this proxy is ready, at /healthz/ready.
    #[arg(long, env = "WEFT_READINESS_PORT", value_name = "PORT")]
    pub readiness_port: Option<u16>,
    /// Ports for Kubernetes, on all addresses: the application's probes that injection turned here,
    /// readiness, metrics.
    #[arg(long, env = "WEFT_STATUS_PORT", value_delimiter = ',', value_name = "PORT,…")]
    pub status_port: Vec<u16>,
    /// The application's probes, JSON; injection writes it.
    #[arg(long, env = "ISTIO_KUBE_APP_PROBERS", hide = true, default_value = "")]
    pub app_probers: String,
    /// Write spans as lines of Zipkin's JSON to a file, `/dev/stdout` or `/dev/stderr`, beside any
    /// collector.
    #[arg(long, env = "WEFT_SPAN_LOG", default_value = "", value_name = "FILE")]
    pub span_log: String,
    /// Where the application tells its metrics, JSON; injection writes it.
    #[arg(long, env = "ISTIO_PROMETHEUS_ANNOTATIONS", hide = true, default_value = "")]
    pub app_metrics: String,
    /// Outside Kubernetes: how to find out whether the workload is well, JSON of a WorkloadGroup's
    /// `probe`; the control plane is told.
    #[arg(long, env = "WEFT_HEALTH_PROBE", default_value = "", value_name = "JSON")]
    pub health_probe: String,
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
    /// Bounds of the process.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What peers that break the rules of HTTP get.
    #[command(flatten)]
    pub policy: HttpPolicy,
    /// error, warn, info, debug, trace, or a tracing filter such as weft_proxy=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// Bounds of the whole process; `docs/limits.md` has all limits.
#[derive(Debug, Clone, Default, Args)]
pub struct LimitArgs {
    /// Downstream connections at most; further ones are closed at once [default: half of the open
    /// files the process may have].
    #[arg(long, env = "WEFT_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<usize>,
    /// Of them, connections of one source: an IPv4 address or an IPv6 /64 [default: half].
    #[arg(long, env = "WEFT_CONNECTIONS_PER_SOURCE_MAX", value_name = "N")]
    pub connections_per_source_max: Option<u32>,
    /// Longest HTTP/1 request line in bytes; 414 beyond [default: 61440].
    #[arg(long, env = "WEFT_URL_BYTES_MAX", value_name = "BYTES")]
    pub url_bytes_max: Option<usize>,
    /// How long a client may leave us waiting for more of an HTTP/1 request body, or until it takes
    /// some of its response; 0 is no limit [default: 5m].
    #[arg(long, env = "WEFT_CLIENT_STALL_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub client_stall_timeout: Option<Duration>,
    /// On a port that takes plain bytes beside mutual TLS a client that is silent for this long waits
    /// for the server to speak first, as MySQL's and SMTP's do; 0 is never [default: 500ms].
    #[arg(long, env = "WEFT_SERVER_FIRST_WAIT", value_parser = duration, value_name = "TIME")]
    pub server_first_wait: Option<Duration>,
    /// Where HTTP/1's upgrade to HTTP/2 (`Upgrade: h2c`) is taken; a proxy in front that passes the
    /// field on could be tunnelled through [default: outbound].
    #[arg(long, env = "WEFT_H2C_UPGRADE", value_name = "WHERE")]
    pub h2c_upgrade: Option<H2cUpgrade>,
    /// Label sets of Istio's metrics; what comes after is counted together, as `other` [default: 4096].
    #[arg(long, env = "WEFT_METRIC_SERIES_MAX", value_name = "N")]
    pub metric_series_max: Option<usize>,
    /// Hosts outside the mesh that metrics tell apart (`destination_service` of passthrough); later
    /// ones are counted together, as `other` [default: 64].
    #[arg(long, env = "WEFT_METRIC_HOSTS_MAX", value_name = "N")]
    pub metric_hosts_max: Option<usize>,
    /// Metric series of Istio's that nobody has counted in for so long are forgotten; 0: never
    /// [default: 1h].
    #[arg(long, env = "WEFT_METRIC_IDLE", value_parser = duration, value_name = "TIME")]
    pub metric_idle: Option<Duration>,
    /// Upper bounds of Istio's histograms by prefix of their Envoy names, JSON, as the annotation
    /// `sidecar.istio.io/statsHistogramBuckets`: `{"istiocustom": [1, 10, 100]}`.
    #[arg(long, env = "ISTIO_STATS_HISTOGRAM_BUCKETS", default_value = "", value_name = "JSON")]
    pub stats_histogram_buckets: String,
    #[command(flatten)]
    pub http2: Http2LimitArgs,
}

/// What one HTTP/2 connection, of a client or an endpoint, may cost. Useful requests, and time (a
/// fifth a second), give back what was used up.
#[derive(Debug, Clone, Default, Args)]
pub struct Http2LimitArgs {
    /// Streams of one HTTP/2 connection that the peer resets before they are answered [default: 500].
    #[arg(long, env = "WEFT_HTTP2_RESETS_MAX", value_name = "N")]
    pub http2_resets_max: Option<u32>,
    /// Streams of one HTTP/2 connection that the peer makes us reset [default: 200].
    #[arg(long, env = "WEFT_HTTP2_ERRORS_MAX", value_name = "N")]
    pub http2_errors_max: Option<u32>,
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames of one HTTP/2 connection beyond
    /// those that useful ones explain [default: 4000].
    #[arg(long, env = "WEFT_HTTP2_CONTROL_MAX", value_name = "N")]
    pub http2_control_max: Option<u32>,
    /// Empty DATA frames of one HTTP/2 connection [default: 200].
    #[arg(long, env = "WEFT_HTTP2_EMPTY_MAX", value_name = "N")]
    pub http2_empty_max: Option<u32>,
    /// CONTINUATION frames of one HTTP/2 head [default: 64].
    #[arg(long, env = "WEFT_HTTP2_CONTINUATIONS_MAX", value_name = "N")]
    pub http2_continuations_max: Option<u32>,
    /// Answers to PING, SETTINGS and errors that wait for an HTTP/2 peer that does not read
    /// [default: 4000].
    #[arg(long, env = "WEFT_HTTP2_CONTROL_QUEUED_MAX", value_name = "N")]
    pub http2_control_queued_max: Option<u32>,
    /// 1xx heads of one HTTP/2 response that wait to be passed on [default: 100].
    #[arg(long, env = "WEFT_HTTP2_INFORMATIONAL_MAX", value_name = "N")]
    pub http2_informational_max: Option<usize>,
    /// How soon the preface and SETTINGS of an HTTP/2 peer must have come [default: 10s].
    #[arg(long, env = "WEFT_HTTP2_HANDSHAKE_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub http2_handshake_timeout: Option<Duration>,
}

impl Http2LimitArgs {
    fn budgets(&self) -> Budgets {
        let default = Budgets::default();
        Budgets {
            resets_max: self.http2_resets_max.unwrap_or(default.resets_max),
            errors_max: self.http2_errors_max.unwrap_or(default.errors_max),
            control_max: self.http2_control_max.unwrap_or(default.control_max),
            empty_max: self.http2_empty_max.unwrap_or(default.empty_max),
            continuations_max: self.http2_continuations_max.unwrap_or(default.continuations_max),
            control_queued_max: self.http2_control_queued_max.unwrap_or(default.control_queued_max),
            informational_max: self.http2_informational_max.unwrap_or(default.informational_max),
        }
    }
}

impl LimitArgs {
    /// The limits, for a process that can carry `connections_max` at most.
    pub fn resolve(&self, connections_max: usize) -> Limits {
        let default = Limits::of(self.connections_max.unwrap_or(connections_max));
        Limits {
            connections_max: default.connections_max,
            connections_per_source_max: self
                .connections_per_source_max
                .unwrap_or(default.connections_per_source_max),
            url_bytes_max: self.url_bytes_max.unwrap_or(default.url_bytes_max),
            client_stall: self.client_stall_timeout.unwrap_or(default.client_stall),
            server_first_wait: self.server_first_wait.unwrap_or(default.server_first_wait),
            h2c_upgrade: self.h2c_upgrade.unwrap_or(default.h2c_upgrade),
            h2_budgets: self.http2.budgets(),
            h2_handshake: self.http2.http2_handshake_timeout.unwrap_or(default.h2_handshake),
            metrics_idle: self.metric_idle.unwrap_or(default.metrics_idle),
        }
    }

    /// Upper bounds of Istio's histograms.
    ///
    /// # Errors
    /// The JSON is none, or has bounds that cannot be.
    pub fn buckets(&self) -> Result<Buckets, String> {
        if self.stats_histogram_buckets.is_empty() {
            return Ok(Buckets::default());
        }
        let settings: BTreeMap<String, Vec<f64>> =
            serde_json::from_str(&self.stats_histogram_buckets)
                .map_err(|error| error.to_string())?;
        Buckets::of_prefixes(settings.into_iter().collect()).map_err(|error| error.to_string())
    }

    /// How many metric series there may be.
    pub fn budget(&self) -> Budget {
        let default = Budget::default();
        let istio_series_max = self.metric_series_max.unwrap_or(default.istio_series_max);
        let hosts_max = self.metric_hosts_max.unwrap_or(default.hosts_max);
        Budget { istio_series_max, hosts_max, ..default }
    }
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

    /// `docs/limits.md` names every option of ours, no other, and no counter that is not there.
    #[test]
    fn limits_are_documented() {
        let page = include_str!("../../../docs/limits.md");
        let options: Vec<String> = LimitArgs::augment_args(clap::Command::new("limits"))
            .get_arguments()
            .filter_map(|argument| argument.get_long().map(|name| format!("--{name}")))
            .collect();
        let words = |start: &'static str| {
            page.split(|c: char| c.is_whitespace() || "`{".contains(c))
                .filter(move |word| word.starts_with(start) && word.len() > start.len())
        };
        for option in &options {
            assert!(words("--").any(|word| word.trim_end_matches(':') == option), "{option}");
        }
        for word in words("--").filter(|word| word.as_bytes()[2].is_ascii_lowercase()) {
            let known = options.iter().any(|option| option == word) || word == "--help";
            assert!(known, "{word} is no option");
        }
        let sources = [include_str!("limits.rs"), include_str!("worker.rs")].concat();
        for counter in words("envoy_").chain(words("weft_")) {
            assert!(sources.contains(&format!("\"{counter}\"")), "{counter} is no counter");
        }
        // And every counter of a limit is on the page, as is what ends an HTTP/2 connection.
        let limits = include_str!("limits.rs");
        let counters = limits.split('"').filter(|text| {
            text.starts_with("envoy_") || (text.starts_with("weft_") && text.ends_with("_total"))
        });
        for counter in counters {
            assert!(page.contains(counter), "{counter} is not on the page");
        }
        use weft_http::h2::conn::Abuse;
        for abuse in [
            Abuse::Resets,
            Abuse::Errors,
            Abuse::Control,
            Abuse::Empty,
            Abuse::Continuations,
            Abuse::ControlQueued,
        ] {
            assert!(page.contains(&format!("`{}`", abuse.name())), "{abuse:?} is not on the page");
        }
        for flag in page.split("flag `").skip(1).filter_map(|rest| rest.split('`').next()) {
            let known = weft_telemetry::ResponseFlags::from_name(flag);
            assert!(known.is_some(), "{flag} is no response flag");
        }
    }
}
