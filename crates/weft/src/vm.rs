//! `weft vm`: what a virtual machine or a bare-metal host needs to join the mesh as a workload of a
//! WorkloadGroup. The files are those of `istioctl x workload entry configure`, and a systemd unit.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use weft_control::ca::{Identity, JoinKey};
use weft_model::spec::WorkloadGroup;
use weft_model::{Object, Resource};

/// What proxies call the control plane; the file `hosts` says where it is.
const CONTROL: &str = "istiod.istio-system.svc";
/// Where the unit looks for the files.
const FOLDER: &str = "/etc/weft";

#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// File with the WorkloadGroup.
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    file: PathBuf,
    /// Which, when there are several.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Folder for the files.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Address at which the machine reaches the control plane's TLS port.
    #[arg(long, value_name = "IP")]
    control_address: IpAddr,
    /// That port.
    #[arg(long, default_value = "15012", value_name = "PORT")]
    control_port: u16,
    /// The control plane's state directory, for a join token and the root certificate.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "weft-state", value_name = "DIR")]
    state_dir: PathBuf,
    /// A token made elsewhere, such as by `kubectl create token ACCOUNT --audience istio-ca`.
    #[arg(long, requires = "root", value_name = "FILE")]
    token: Option<PathBuf>,
    /// The mesh's root certificate (PEM) [default: the state directory's].
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// How long the join token holds.
    #[arg(long, default_value = "365d", value_name = "TIME", value_parser = crate::cli::lifetime)]
    ttl: Duration,
    /// The machine's own address [default: the first that `hostname -I` gives there].
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,
    #[arg(long, default_value = "Kubernetes", value_name = "ID")]
    cluster_id: String,
    #[arg(long, default_value = "cluster.local", value_name = "NAME")]
    trust_domain: String,
    /// Inbound ports to capture; `*` is all.
    #[arg(long, default_value = "*", value_name = "PORTS")]
    inbound_ports: String,
    /// Leave the machine's DNS alone.
    #[arg(long)]
    no_dns_capture: bool,
}

pub(crate) fn run(args: &VmArgs) -> anyhow::Result<()> {
    let group = group(args)?;
    let (token, root) = credentials(args, &group)?;
    let environment = environment(args, &group)?;
    std::fs::create_dir_all(&args.output).context(args.output.display().to_string())?;
    let variables: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    write(&args.output, "cluster.env", &shell(&variables), 0o644)?;
    write(&args.output, "mesh.yaml", &mesh(args, &group, &variables)?, 0o644)?;
    write(&args.output, "root-cert.pem", &root, 0o644)?;
    write(&args.output, "istio-token", &token, 0o600)?;
    write(&args.output, "hosts", &format!("{} {CONTROL}\n", args.control_address), 0o644)?;
    write(&args.output, "weft-proxy.service", &unit(args), 0o644)?;
    let (folder, meta) = (args.output.display(), &group.meta);
    crate::print(&format!(
        "{folder} is for machines of WorkloadGroup {}/{}. On the machine:\n\
         \x20 install -d {FOLDER} && cp cluster.env mesh.yaml root-cert.pem istio-token {FOLDER}/\n\
         \x20 chown -R 1337:1337 {FOLDER} && cat hosts >> /etc/hosts\n\
         \x20 cp weft-proxy.service /etc/systemd/system/ && systemctl enable --now weft-proxy\n",
        meta.namespace, meta.name
    ))
}

fn group(args: &VmArgs) -> anyhow::Result<Resource<WorkloadGroup>> {
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).context(name.clone())?;
    let (objects, findings) = weft_model::parse_yaml(&name, &text);
    if let Some(error) = findings.iter().find(|finding| finding.is_error()) {
        bail!("{error}");
    }
    let mut groups: Vec<Resource<WorkloadGroup>> = objects
        .into_iter()
        .filter_map(|object| match object {
            Object::WorkloadGroup(group) => Some(*group),
            _ => None,
        })
        .filter(|group| args.group.as_ref().is_none_or(|name| **name == *group.meta.name))
        .collect();
    match (groups.pop(), groups.is_empty()) {
        (Some(group), true) => Ok(group),
        (None, _) => bail!("{name}: there is no such WorkloadGroup"),
        (Some(_), false) => {
            bail!("{name}: there are several WorkloadGroups: name one with --group")
        }
    }
}

/// The token and the root certificate.
fn credentials(args: &VmArgs, group: &Resource<WorkloadGroup>) -> anyhow::Result<(String, String)> {
    let read = |path: &Path| std::fs::read_to_string(path).context(path.display().to_string());
    let ca = args.state_dir.join("ca");
    let root = args.root.clone().unwrap_or_else(|| ca.join("root.pem"));
    let token = match &args.token {
        Some(path) => read(path)?.trim().to_owned(),
        None => {
            if !args.state_dir.is_dir() {
                let dir = args.state_dir.display();
                bail!(
                    "{dir} is no directory: name the control plane's with --state-dir, or --token"
                );
            }
            let identity = Identity::new(&group.meta.namespace, group.spec.service_account())?;
            let key = JoinKey::open(&ca).context("opening the join key")?;
            key.mint(&identity, args.ttl, SystemTime::now())
        }
    };
    Ok((format!("{token}\n"), read(&root)?))
}

/// What `weft init` and `weft proxy` read.
fn environment(
    args: &VmArgs,
    group: &Resource<WorkloadGroup>,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let Resource { meta, spec } = group;
    let mut labels = spec.template.labels.clone();
    labels.extend(spec.metadata.labels.clone());
    let label = |names: [&str; 3], default: &str| {
        let found = names.iter().find_map(|name| labels.get(*name));
        found.cloned().unwrap_or_else(|| default.to_owned())
    };
    let service =
        label(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], &meta.name);
    let revision = label(
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
        "latest",
    );
    labels.insert("service.istio.io/canonical-name".into(), service.clone());
    labels.insert("service.istio.io/canonical-revision".into(), revision.clone());
    let mut all = vec![
        ("CANONICAL_REVISION", revision),
        ("CANONICAL_SERVICE", service),
        ("ISTIO_INBOUND_PORTS", args.inbound_ports.clone()),
        ("ISTIO_LOCAL_EXCLUDE_PORTS", "22,15090,15021,15020".into()),
        ("ISTIO_METAJSON_LABELS", serde_json::to_string(&labels)?),
        ("ISTIO_META_AUTO_REGISTER_GROUP", meta.name.to_string()),
        ("ISTIO_META_CLUSTER_ID", args.cluster_id.clone()),
        ("ISTIO_META_DNS_CAPTURE", (!args.no_dns_capture).to_string()),
        ("ISTIO_META_MESH_ID", args.trust_domain.clone()),
        ("ISTIO_META_NETWORK", spec.template.network.clone()),
        ("ISTIO_META_WORKLOAD_NAME", meta.name.to_string()),
        ("ISTIO_NAMESPACE", meta.namespace.to_string()),
        ("ISTIO_SERVICE", format!("{}.{}", meta.name, meta.namespace)),
        ("ISTIO_SERVICE_CIDR", "*".into()),
        ("POD_NAMESPACE", meta.namespace.to_string()),
        ("SERVICE_ACCOUNT", spec.service_account().to_owned()),
        ("TRUST_DOMAIN", args.trust_domain.clone()),
        ("WEFT_XDS", format!("{CONTROL}:{}", args.control_port)),
        ("WEFT_XDS_TLS_ROOT", format!("{FOLDER}/root-cert.pem")),
        ("WEFT_TOKEN_FILE", format!("{FOLDER}/istio-token")),
        ("WEFT_STATE_DIR", "/var/lib/weft".into()),
        ("WEFT_READINESS_PORT", "15021".into()),
        ("WEFT_STATUS_PORT", "15020".into()),
    ];
    if let Some(probe) = probe(spec) {
        all.push(("WEFT_HEALTH_PROBE", probe.to_string()));
    }
    if let Some(ip) = args.ip {
        all.push(("INSTANCE_IP", ip.to_string()));
    }
    all.retain(|(_, value)| !value.is_empty());
    Ok(all)
}

fn probe(group: &WorkloadGroup) -> Option<Value> {
    let probe = group.probe.as_ref()?;
    let times = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    let kinds = [
        ("httpGet", &probe.http_get),
        ("tcpSocket", &probe.tcp_socket),
        ("exec", &probe.exec),
        ("grpc", &probe.grpc),
    ];
    let mut fields = Map::new();
    for (name, seconds) in times.into_iter().filter(|(_, seconds)| *seconds > 0) {
        fields.insert(name.into(), seconds.into());
    }
    for (name, value) in kinds {
        fields.extend(value.as_ref().map(|value| (name.to_owned(), value.clone())));
    }
    Some(Value::Object(fields))
}

/// For Istio's own agent, which reads a ProxyConfig.
fn mesh(
    args: &VmArgs,
    group: &Resource<WorkloadGroup>,
    environment: &[(&str, &str)],
) -> anyhow::Result<String> {
    let metadata: Map<String, Value> = environment
        .iter()
        .filter(|(name, _)| name.starts_with("ISTIO_META"))
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let mut config = json!({
        "discoveryAddress": format!("{CONTROL}:{}", args.control_port),
        "meshId": args.trust_domain,
        "proxyMetadata": metadata,
    });
    if let Some(probe) = probe(&group.spec) {
        config["readinessProbe"] = probe;
    }
    Ok(weft_model::to_yaml(&[json!({ "defaultConfig": config })]))
}

/// `NAME='VALUE'` lines, for a shell and for systemd.
fn shell(variables: &[(&str, &str)]) -> String {
    let mut sorted = variables.to_vec();
    sorted.sort_unstable();
    sorted.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect()
}

fn unit(args: &VmArgs) -> String {
    let dns = if args.no_dns_capture { "" } else { " --redirect-dns" };
    let start = match args.ip {
        Some(_) => "/usr/local/bin/weft proxy sidecar".to_owned(),
        None => "/bin/sh -c 'INSTANCE_IP=$(hostname -I | cut -d\" \" -f1) exec /usr/local/bin/weft proxy sidecar'"
            .to_owned(),
    };
    format!(
        "[Unit]
Description=Weft: this machine's proxy in the mesh
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile={FOLDER}/cluster.env
# Capture rules need root; the proxy does not, and is known to them by its user.
ExecStartPre=+/usr/local/bin/weft init{dns}
ExecStart={start}
ExecStopPost=+/usr/local/bin/weft init{dns} --cleanup
User=1337
Group=1337
StateDirectory=weft
LimitNOFILE=1048576
Restart=always
RestartSec=1
TimeoutStopSec=45

[Install]
WantedBy=multi-user.target
"
    )
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let path = folder.join(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&path).context(path.display().to_string())?;
    // One that was there keeps its mode otherwise.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes()).context(path.display().to_string())
}
