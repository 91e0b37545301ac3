//! From the command line to a running proxy.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use weft_telemetry::{Buckets, PeerInfo};
use weft_traffic::access_log::LogTarget;
use weft_xds::NodeView;
use weft_xds::client::Options;
use weft_xds::connect::Target;
use weft_xds::node::NodeKind;

use crate::cli::{Interception, ProxyArgs, ProxyKind};
use crate::config::subscriber::Source;
use crate::dns::DnsSettings;
use crate::handover;
use crate::logging::{self, LogLevel};
use crate::runtime::{self, Proxy, Settings};
use crate::status::health::HealthSettings;
use crate::status::{Application, Probes, StatusSettings};
use crate::tls::identity::IdentityConfig;
use crate::worker::NodeInfo;

/// What variables that go into the node's metadata begin with, as for Istio's agent.
const NODE_METADATA: &str = "ISTIO_META_";

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option does not make sense.
    #[error("{0}")]
    Option(String),
    /// A file or socket could not be opened.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Runs a proxy until it has drained after SIGTERM or SIGINT; a second signal ends it at once.
pub fn run(args: &ProxyArgs) -> Result<(), StartError> {
    // Huge pages would hold three times the memory a sidecar uses. Where the kernel cannot turn
    // them off for a process, that is all it costs.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let log_level = logging::init(&args.log_level).map_err(StartError::Option)?;
    let proxy = start(args, log_level)?;
    let failed = |source| StartError::Io { what: "signal handling".into(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(until_told(&proxy)).map_err(failed)?;
    let failure = proxy.failure().map(str::to_owned);
    proxy.join();
    match failure {
        Some(why) => Err(StartError::Option(why)),
        None => Ok(()),
    }
}

/// Starts a proxy in this process and returns at once.
pub fn start(args: &ProxyArgs, log_level: Option<LogLevel>) -> Result<Proxy, StartError> {
    let settings = settings(args, log_level)?;
    let what = format!("admin server on {}", settings.admin);
    let proxy = runtime::start(settings).map_err(|source| StartError::Io { what, source })?;
    tracing::info!(admin = %proxy.admin_address(), xds = args.xds, "proxy started");
    Ok(proxy)
}

async fn until_told(proxy: &Proxy) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = proxy.ended() => return Ok(()),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        match proxy.is_leaving() {
            false => proxy.shutdown(),
            true => proxy.stop(),
        }
    }
}

fn settings(args: &ProxyArgs, log_level: Option<LogLevel>) -> Result<Settings, StartError> {
    let view = node_view(args)?;
    let trust_domain = args.trust_domain.clone();
    let spiffe_id =
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", args.namespace, args.service_account);
    let root = match &args.xds_tls_root {
        Some(path) => Some((read(path)?, path.as_path())),
        None => None,
    };
    let target = |address: &str| target(address, root.as_ref()).with_cluster(&args.cluster_id);
    let mut options = Options::new(target(&args.xds));
    let identity = args.token_file.as_ref().map(|token_file| IdentityConfig {
        spiffe_id: spiffe_id.clone(),
        ca: target(args.ca.as_deref().unwrap_or(&args.xds)),
        token_file: token_file.clone(),
        state_dir: args.state_dir.clone(),
        validity: Duration::ZERO,
    });
    if let Some(path) = args.token_file.clone() {
        options.token = Some(Arc::new(move || std::fs::read_to_string(&path).ok()));
    }
    let health = HealthSettings::parse(&args.health_probe)
        .map_err(|error| StartError::Option(format!("--health-probe: {error}")))?;
    let health = health.map(|settings| (settings, watch::Sender::new(None)));
    options.health = health.as_ref().map(|(_, says)| says.subscribe());
    Ok(Settings {
        node: NodeInfo {
            id: view.id(),
            gateway: args.kind == ProxyKind::Gateway,
            trust_domain,
            peer: Arc::new(peer(&view, spiffe_id)),
            span_log: match args.span_log.as_str() {
                "" => None,
                "/dev/stdout" => Some(LogTarget::Stdout),
                "/dev/stderr" => Some(LogTarget::Stderr),
                path => Some(LogTarget::File(path.into())),
            },
        },
        source: Source {
            options,
            node: view.to_node(),
            state_dir: args.state_dir.clone(),
            state_age_max: args.state_age_max,
            names: args.dns_capture,
        },
        identity,
        admin: args.admin_address,
        admin_file: args.admin_address_file.clone(),
        status: status(args)?,
        health,
        dns: dns(args, &view)?,
        workers: args.workers(),
        drain_time: args.drain_time,
        grace: args.termination_grace,
        handover: handover(args),
        limits: args.limits.clone(),
        buckets: buckets(args),
        policy: args.policy,
        log_level,
        options: json!({
            "xds": args.xds,
            "interception": format!("{:?}", args.interception),
            "state_dir": args.state_dir,
            "http_policy": args.policy.describe(),
            "drain_time_s": args.drain_time.as_secs_f64(),
            "termination_grace_s": args.termination_grace.as_secs_f64(),
        }),
    })
}

/// A wrong annotation is no reason to have no proxy.
fn buckets(args: &ProxyArgs) -> Buckets {
    args.limits.buckets().unwrap_or_else(|error| {
        tracing::warn!(error, "histogram buckets are not usable; Istio's own are used");
        Buckets::default()
    })
}

fn status(args: &ProxyArgs) -> Result<StatusSettings, StartError> {
    let application = args.ip.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
    let captured = args.interception != Interception::None;
    let probes = Probes::parse(&args.app_probers, application, captured)
        .map_err(|error| StartError::Option(format!("ISTIO_KUBE_APP_PROBERS: {error}")))?;
    let (readiness_port, status_ports) = (args.readiness_port, args.status_port.clone());
    let application =
        Application::parse(&args.app_metrics, &status_ports).unwrap_or_else(|error| {
            tracing::warn!(error, "the application's metrics cannot be had");
            None
        });
    let application = application.map(Arc::new);
    Ok(StatusSettings { readiness_port, status_ports, application, probes })
}

fn dns(args: &ProxyArgs, view: &NodeView) -> Result<Option<DnsSettings>, StartError> {
    if !args.dns_capture {
        return Ok(None);
    }
    let wrong = |error: &dyn std::fmt::Display| {
        StartError::Option(format!("--dns-address: {:?}: {error}", args.dns_address))
    };
    let addresses = match args.dns_address.strip_prefix("localhost:") {
        Some(port) => {
            let port: u16 = port.parse().map_err(|error| wrong(&error))?;
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        None => vec![args.dns_address.parse().map_err(|error| wrong(&error))?],
    };
    Ok(Some(DnsSettings {
        addresses,
        resolv_conf: args.resolv_conf.clone(),
        namespace: view.namespace.clone(),
        domain: view.dns_domain.clone(),
    }))
}

/// Without a state directory there is no place both proxies know, unless one is named.
fn handover(args: &ProxyArgs) -> Option<handover::Settings> {
    let named = args.handover.clone();
    let explicit = named.is_some();
    let path = named.or_else(|| Some(args.state_dir.as_ref()?.join(handover::SOCKET_NAME)))?;
    Some(handover::Settings {
        path,
        explicit,
        timeout: args.handover_timeout,
        drain_time: args.handover_drain_time,
    })
}

fn node_view(args: &ProxyArgs) -> Result<NodeView, StartError> {
    let kind = match args.kind {
        ProxyKind::Sidecar => NodeKind::Sidecar,
        ProxyKind::Gateway => NodeKind::Router,
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let mut view = NodeView::new(kind, args.ip.first().copied(), &name, &args.namespace);
    view.service_account.clone_from(&args.service_account);
    view.cluster_id.clone_from(&args.cluster_id);
    if let Some(path) = &args.labels_file {
        view.labels.extend(labels_of(&String::from_utf8_lossy(&read(path)?)));
    }
    view.labels.extend(labels_of_environment()?);
    view.labels.extend(args.label_pairs().map_err(StartError::Option)?);
    view.instance_ips.clone_from(&args.ip);
    view.workload_name = match &args.workload {
        Some(workload) => workload.clone(),
        None => workload_of_pod(&name),
    };
    view.interception_mode = match args.interception {
        Interception::None => "NONE",
        Interception::Redirect => "REDIRECT",
        Interception::Tproxy => "TPROXY",
    }
    .into();
    for (name, value) in std::env::vars() {
        if let Some(key) = name.strip_prefix(NODE_METADATA) {
            view.metadata.insert(key.to_owned(), value);
        }
    }
    // The control plane gives allocated addresses only to those who answer with them.
    view.metadata.insert("DNS_CAPTURE".into(), args.dns_capture.to_string());
    view.weft_version = Some(env!("CARGO_PKG_VERSION").into());
    Ok(view)
}

/// `ISTIO_METAJSON_LABELS`, as Istio writes it for virtual machines.
fn labels_of_environment() -> Result<BTreeMap<String, String>, StartError> {
    match std::env::var("ISTIO_METAJSON_LABELS") {
        Ok(json) => serde_json::from_str(&json)
            .map_err(|error| StartError::Option(format!("ISTIO_METAJSON_LABELS: {error}"))),
        Err(_) => Ok(BTreeMap::new()),
    }
}

/// Lines `name="value"` with Go's escapes, as Kubernetes writes a pod's labels into a file. Values of
/// labels have nothing to escape.
fn labels_of(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        Some((name.to_owned(), value.to_owned()))
    })
}

/// This workload as Istio's metrics name it.
fn peer(view: &NodeView, principal: String) -> PeerInfo {
    let label = |name: &str| view.labels.get(name).cloned().unwrap_or_default();
    let first =
        |names: &[&str]| names.iter().map(|name| label(name)).find(|value| !value.is_empty());
    PeerInfo {
        name: view.name.clone(),
        workload: view.workload_name.clone(),
        namespace: view.namespace.clone(),
        app: label("app"),
        version: label("version"),
        principal,
        cluster: view.cluster_id.clone(),
        canonical_service: first(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ])
        .unwrap_or_else(|| view.workload_name.clone()),
        canonical_revision: first(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ])
        .unwrap_or_else(|| "latest".into()),
    }
}

/// A Deployment's pod is NAME-REPLICASET-POD: 10 or so and 5 characters of Kubernetes' own
/// alphabet, which has no vowels. Anything else is taken as it is.
fn workload_of_pod(pod: &str) -> String {
    let hashed = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len())
            && part.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
    };
    let parts: Vec<&str> = pod.rsplitn(3, '-').collect();
    match parts[..] {
        [pod_hash, set_hash, name] if hashed(pod_hash, 5..=5) && hashed(set_hash, 8..=10) => {
            name.to_owned()
        }
        _ => pod.to_owned(),
    }
}

fn host_name() -> Result<String, StartError> {
    let failed = |source| StartError::Io { what: "host name; give --name".into(), source };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(failed)?;
    Ok(name.trim().to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path)
        .map_err(|source| StartError::Io { what: path.display().to_string(), source })
}

fn target(address: &str, root: Option<&(Vec<u8>, &Path)>) -> Target {
    match root {
        Some((root, path)) => Target::tls(format!("https://{address}"), root.clone())
            .with_root_file(path.to_path_buf()),
        None => Target::plain(format!("http://{address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_from_the_downward_api() {
        let labels: Vec<_> = labels_of("app=\"a\"\nempty=\"\"\n\nbroken\n").collect();
        assert_eq!(labels, [("app".into(), "a".into()), ("empty".into(), String::new())]);
    }

    #[test]
    fn workload_names() {
        assert_eq!(workload_of_pod("servicea-v1-7d8f6c5b9-x2z4w"), "servicea-v1");
        assert_eq!(workload_of_pod("servicea-v1-0"), "servicea-v1-0");
        assert_eq!(workload_of_pod("ingress"), "ingress");
        assert_eq!(workload_of_pod("my-app-deployed-there"), "my-app-deployed-there");
    }
}
