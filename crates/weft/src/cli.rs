//! The command line: names, defaults, help texts. Owns no behaviour.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_proxy::cli::ProxyArgs;

use crate::hooks::{DrainArgs, WaitArgs};
use crate::init::InitArgs;
use crate::inject::{InjectArgs, InjectSettings};
use crate::vm::VmArgs;

/// A service mesh that runs Istio's configuration, in one program.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A whole mesh on this machine, without root: gateway, sidecars, sample applications.
    Demo(DemoArgs),
    /// The control plane.
    Control(Box<ControlArgs>),
    /// The data plane: a sidecar or a gateway.
    Proxy {
        #[command(flatten)]
        args: Box<ProxyArgs>,
        /// End when standard input closes: whoever holds its other end is gone.
        #[arg(long, hide = true)]
        exit_with_stdin: bool,
    },
    /// Capture this pod's traffic into its proxy: writes, checks and removes the kernel's rules.
    #[command(alias = "istio-iptables")]
    Init(Box<InitArgs>),
    /// Put a proxy and capture rules into the pods of files, as the webhook does.
    #[command(alias = "kube-inject")]
    Inject(InjectArgs),
    /// Wait until the proxy beside this program is ready.
    Wait(WaitArgs),
    /// Tell the proxy beside this program that its pod is leaving.
    Drain(DrainArgs),
    /// Check configuration files; the findings are those of the control plane.
    Analyze(AnalyzeArgs),
    /// Where a request goes, and which resource decided it.
    Why(WhyArgs),
    /// What each proxy was sent and has acknowledged.
    ProxyStatus(ProxyStatusArgs),
    /// Who calls whom now: rates, failures, latencies, TLS.
    Graph(GraphArgs),
    /// The interfaces of services, the busiest first; with --failures what fails, and for whom.
    Top(TopArgs),
    /// Single requests of the last hour: who called what.
    Logs(LogsArgs),
    /// Print what the control plane needs in a Kubernetes cluster, for `kubectl apply -f -`.
    Install(InstallArgs),
    /// Make a join token: the proof of a workload's name, for `weft proxy --token-file`.
    Token(TokenArgs),
    /// Write what a machine outside Kubernetes needs to join as a workload of a WorkloadGroup.
    Vm(VmArgs),
    /// The version of this program.
    Version,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// `json` prints one line when the mesh is ready, and nothing else on standard output.
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
    /// Keep the configuration in this directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// All ports count from here; `free` finds a base where none is taken.
    #[arg(long, default_value = "15000", value_name = "PORT|free", value_parser = port_base)]
    pub(crate) port_base: PortBase,
    /// Send no requests but yours.
    #[arg(long)]
    pub(crate) no_traffic: bool,
    /// How long workload certificates live.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = lifetime)]
    #[arg(hide = true, value_name = "TIME")]
    pub(crate) workload_cert_ttl: Duration,
    /// error, warn, info, debug, trace, or a tracing filter, for the control plane's log.
    #[arg(long, env = "WEFT_LOG", default_value = "warn", value_name = "LEVEL")]
    pub(crate) log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortBase {
    Port(u16),
    Free,
}

fn port_base(text: &str) -> Result<PortBase, String> {
    match text {
        "free" => Ok(PortBase::Free),
        number => match number.parse() {
            Ok(port) => Ok(PortBase::Port(port)),
            Err(_) => Err("is neither a port nor `free`".into()),
        },
    }
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// Directory of YAML to run and watch; may be repeated.
    #[arg(long, required_unless_present_any = ["kubernetes", "kubeconfig"], value_name = "DIR")]
    pub(crate) config_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Keeps the root certificate and the keys; private to this user.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "weft-state", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// xDS and certificates, plain text: keep it on loopback.
    #[arg(long, default_value = "127.0.0.1:15010", value_name = "IP:PORT")]
    pub(crate) xds_address: SocketAddr,
    /// xDS and certificates over TLS.
    #[arg(long, default_value = "127.0.0.1:15012", value_name = "IP:PORT")]
    pub(crate) xds_tls_address: SocketAddr,
    /// Status, metrics and readiness.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "IP:PORT")]
    pub(crate) http_address: SocketAddr,
    /// Where the Kubernetes API server asks about pods and configuration [default: nowhere; Istio's
    /// port is 15017].
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) webhook_address: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) inject: InjectSettings,
    /// Where Istio's proxies up to 1.4 report their traffic (Mixer's Report) [default: nowhere; Mixer's
    /// port was 9091]. Whoever reaches it is believed.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) mixer_address: Option<SocketAddr>,
    /// Keep the newest traces in memory and answer Zipkin's API (/api/v2) on the status address: for
    /// one machine, where no collector is installed.
    #[arg(long)]
    pub(crate) trace_store: bool,
    /// Proxies that may be connected at a time; others are told to come back later.
    #[arg(long, default_value = "10000", value_name = "NUMBER")]
    pub(crate) xds_streams_max: usize,
    /// Proxies that may connect in a second, and at once after a quiet time; others are told to come
    /// back later, so that all proxies of a control plane that died do not ask another at once.
    #[arg(long, default_value = "100", value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) xds_streams_per_second: u32,
    /// SPIFFE trust domain of every certificate.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub(crate) trust_domain: String,
    /// Workloads that registered themselves stay this long after their proxy has gone.
    #[arg(long, env = "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", default_value = "10s")]
    #[arg(value_name = "TIME", value_parser = lifetime)]
    pub(crate) registration_grace: Duration,
    /// How long workload certificates live; they are renewed at about half of it.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = lifetime)]
    #[arg(value_name = "TIME")]
    pub(crate) workload_cert_ttl: Duration,
    /// error, warn, info, debug, trace, or a tracing filter such as weft_control=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "LEVEL")]
    pub(crate) log_level: String,
}

/// Which Kubernetes cluster is read, and how much is asked of it. The default is none.
#[derive(Debug, Default, Args)]
pub(crate) struct ClusterArgs {
    /// Read the cluster this runs in, as its Pod's service account.
    #[arg(long, conflicts_with = "config_dir")]
    pub(crate) kubernetes: bool,
    /// Read the cluster of this kubeconfig.
    #[arg(long, conflicts_with_all = ["config_dir", "kubernetes"], value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of --kubeconfig other than its current one.
    #[arg(long, requires = "kubeconfig", value_name = "NAME")]
    pub(crate) kube_context: Option<String>,
    /// Requests a second to the API server.
    #[arg(long, default_value = "80", value_name = "NUMBER")]
    pub(crate) kube_qps: u32,
    /// Requests at once after a quiet time.
    #[arg(long, default_value = "160", value_name = "NUMBER")]
    pub(crate) kube_burst: u32,
    /// Only inject and validate: a control plane in another cluster serves the proxies of this one.
    #[arg(long, requires = "webhook_address", conflicts_with_all = ["write_status", "write_roots"])]
    pub(crate) inject_only: bool,
    /// Whom the service account tokens of proxies must be meant for.
    #[arg(long, env = "TOKEN_AUDIENCE", default_value = "istio-ca", value_name = "NAME")]
    pub(crate) token_audience: String,
    /// Write resources' status, when elected among all control planes that do.
    #[arg(long)]
    pub(crate) write_status: bool,
    /// Write the mesh's roots into every namespace (ConfigMap `istio-ca-root-cert`), when elected.
    #[arg(long)]
    pub(crate) write_roots: bool,
    /// Write the certificates into our webhooks' configurations, when elected.
    #[arg(long, requires = "webhook_address")]
    pub(crate) write_webhooks: bool,
    /// Lease of the election, in the root namespace.
    #[arg(long, default_value = "weft-leader", value_name = "NAME")]
    pub(crate) lease: String,
    /// How long the Lease holds without being renewed: so long nobody writes when its holder dies.
    #[arg(long, default_value = "15s", value_parser = lifetime, value_name = "TIME")]
    pub(crate) lease_duration: Duration,
    /// How long another authority in Secret `cacerts` is trusted before it signs.
    #[arg(long, default_value = "60s", value_parser = lifetime, value_name = "TIME")]
    pub(crate) ca_rotation_grace: Duration,
    /// What this control plane calls itself in the election; a Pod's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub(crate) pod_name: Option<String>,
    /// Namespace of the mesh's own configuration.
    #[arg(long, default_value = "istio-system", value_name = "NAME")]
    pub(crate) root_namespace: String,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Namespace of the control plane, and the mesh's root namespace: `--set namespace=`.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Image that holds this program as its entry point: `--set image=`.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Revision of the control plane: `--set revision=`.
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// How many control planes: `--set replicas=`.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) replicas: Option<u32>,
    /// File of values, as the Helm chart takes them; may be repeated, later ones win.
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) values: Vec<PathBuf>,
    /// One value, over those of files: `ingressGateway.enabled=false`; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Apply it instead of printing it; what somebody else changed is changed back.
    #[arg(long)]
    pub(crate) apply: bool,
    /// With --apply: have it checked by the API server, and change nothing.
    #[arg(long, requires = "apply")]
    pub(crate) dry_run: bool,
    /// Which cluster, for --apply; without it the one this runs in.
    #[arg(long, requires = "apply", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of --kubeconfig other than its current one.
    #[arg(long, requires = "kubeconfig", value_name = "NAME")]
    pub(crate) kube_context: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// File or directory; may be repeated. `-` reads standard input.
    #[arg(long = "filename", short = 'f', required_unless_present = "live", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// What a running control plane has, at --api.
    #[arg(long, conflicts_with = "files")]
    pub(crate) live: bool,
    /// The control plane's status address, for --live.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    /// Fail when a finding is at least this bad.
    #[arg(long, value_enum, default_value = "error", value_name = "SEVERITY")]
    pub(crate) failure_threshold: Threshold,
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: FindingsOutput,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FindingsOutput {
    /// For people.
    Text,
    Json,
    Yaml,
}

/// From which severity on `weft analyze` fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Threshold {
    Info,
    Warning,
    Error,
    /// Never fail because of a finding.
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// Request method.
    #[arg(value_name = "METHOD")]
    pub(crate) method: String,
    /// `http://reviews:9080/path`; `https://` for TLS that the client itself begins.
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// File or directory of configuration; may be repeated. `-` reads standard input. Without any
    /// the control plane is asked about the mesh as it runs.
    #[arg(long = "filename", short = 'f', value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// The control plane's status address.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    /// The Pod or WorkloadEntry that asks (`NAMESPACE/NAME`, or a name in `default`). Without it the
    /// request comes from outside, through a gateway.
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) from: Option<String>,
    /// A request header; may be repeated.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyStatusArgs {
    /// The control plane's status address.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// The control plane's status address.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    /// Edges that begin or end in this namespace.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// How far back, at most 15m.
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = lifetime)]
    pub(crate) window: Duration,
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: GraphOutput,
}

/// How the graph is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphOutput {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For Graphviz.
    Dot,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The control plane's status address.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    /// Of this service only: `reviews`, or its full name.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// How far back, at most 15m.
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = lifetime)]
    pub(crate) window: Duration,
    /// What fails: by status, flags, caller and path; the mesh's own 404 (NR) told apart from the
    /// application's.
    #[arg(long)]
    pub(crate) failures: bool,
    /// Rows shown.
    #[arg(long, default_value = "50", value_name = "NUMBER")]
    pub(crate) limit: usize,
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The control plane's status address.
    #[arg(long, env = "WEFT_API", default_value = "http://127.0.0.1:15014", value_name = "URL")]
    pub(crate) api: String,
    /// How the path begins, or with `*` in it a pattern of the whole path.
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// A status, a class of them or a response flag: 503, 5xx, NR.
    #[arg(long, value_name = "STATUS")]
    pub(crate) status: Option<String>,
    /// How far back.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = lifetime)]
    pub(crate) since: Duration,
    /// The caller: NAMESPACE/WORKLOAD, its name or its IP.
    #[arg(long, value_name = "WHO")]
    pub(crate) from: Option<String>,
    /// The one called: as --from, or a service.
    #[arg(long, value_name = "WHO")]
    pub(crate) to: Option<String>,
    /// Rows shown, the newest first.
    #[arg(long, default_value = "100", value_name = "NUMBER")]
    pub(crate) limit: usize,
    /// `json` prints one line for each request.
    #[arg(long, short, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The control plane's state directory.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "weft-state", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Namespace of the workload.
    #[arg(long, short, default_value = "default", value_name = "NAME")]
    pub(crate) namespace: String,
    /// Service account of the workload.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) service_account: String,
    /// How long the token proves the name: 12h, 30d. A proxy presents it at every renewal of its
    /// certificate, so replace the token file before it ends.
    #[arg(long, default_value = "365d", value_name = "TIME", value_parser = lifetime)]
    pub(crate) ttl: Duration,
}

/// `90s`, `15m`, `12h`, `30d`.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || "is not a time such as 90s, 15m, 12h or 30d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds_each: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds_each) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lifetimes_and_port_bases() {
        assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(lifetime("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        for wrong in ["", "h", "12", "12y", "0h", "99999999999999999999d", "1é"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
        assert_eq!(port_base("free"), Ok(PortBase::Free));
        assert_eq!(port_base("20000"), Ok(PortBase::Port(20000)));
        assert!(port_base("70000").is_err());
    }
}
