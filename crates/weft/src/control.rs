//! `weft control`, and the control plane inside `weft demo`.

use crate::cli::{ClusterArgs, ControlArgs};
use crate::inject::InjectSettings;
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use weft_control::kube::{Access, Candidate, Hooks, Rate};
use weft_control::webhook::Webhook;
use weft_control::{Config, Handle, Kubernetes, Writes, source};

/// Runs the control plane until Ctrl-C or SIGTERM.
pub(crate) fn run(args: ControlArgs) -> anyhow::Result<()> {
    log(&args.log_level)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // A thousand proxies that start at once leave tens of megabytes to nobody.
    runtime.on_thread_park(weft_proxy::release_freed_when_idle);
    // A thread that ends gives back what the reading of all files has left.
    runtime.thread_keep_alive(std::time::Duration::from_secs(1));
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        let stop = crate::stop_signal()?;
        let control = start(args).await?;
        stop.cancelled().await;
        control.stop().await;
        Ok(())
    })
}

/// Starts the control plane on the current runtime and waits until it has read its sources.
pub(crate) async fn start(args: ControlArgs) -> anyhow::Result<Handle> {
    let ControlArgs {
        config_dir,
        cluster,
        state_dir,
        xds_address,
        xds_tls_address,
        http_address,
        webhook_address,
        inject,
        mixer_address,
        trace_store,
        xds_streams_max,
        xds_streams_per_second,
        trust_domain,
        workload_cert_ttl,
        registration_grace,
        log_level: _,
    } = args;
    let mut config = Config::new(config_dir, state_dir);
    config.kubernetes = kubernetes(cluster, &inject);
    if let Some(cluster) = &config.kubernetes {
        // As its Service is called in any namespace, and in any revision.
        for service in ["istiod", "istiod-injector"] {
            let service = named(service, inject.revision());
            let name = format!("{service}.{}.svc", cluster.source.root_namespace);
            config.tls_names.extend([format!("{name}.cluster.local"), name]);
        }
    }
    config.xds_address = xds_address;
    config.xds_tls_address = Some(xds_tls_address);
    config.http_address = http_address;
    config.tls_addresses.push(xds_tls_address.ip());
    config.why = Some(crate::why::explain);
    config.mixer_address = mixer_address;
    config.traces = trace_store;
    if let Some(address) = webhook_address {
        let settings = inject.read(&trust_domain)?;
        config.webhook = Some(Webhook { address, settings });
        config.tls_addresses.push(address.ip());
    }
    config.push.streams_max = xds_streams_max;
    config.push.streams_per_second = xds_streams_per_second;
    config.trust_domain = trust_domain;
    config.registration_grace = registration_grace;
    config.lifetimes.default = workload_cert_ttl;
    config.lifetimes.max = workload_cert_ttl;
    let control = weft_control::run(config, CancellationToken::new()).await?;
    control.ready().await;
    Ok(control)
}

/// `NAME`, or `NAME-REVISION`.
fn named(name: &str, revision: &str) -> String {
    match revision {
        "" | "default" => name.to_owned(),
        revision => format!("{name}-{revision}"),
    }
}

fn kubernetes(args: ClusterArgs, inject: &InjectSettings) -> Option<Kubernetes> {
    let revision = inject.revision();
    let ClusterArgs {
        kubernetes,
        kubeconfig,
        kube_context,
        kube_qps,
        kube_burst,
        inject_only,
        write_status,
        write_roots,
        write_webhooks,
        lease,
        lease_duration,
        ca_rotation_grace,
        pod_name,
        root_namespace,
        token_audience,
    } = args;
    if !kubernetes && kubeconfig.is_none() {
        return None;
    }
    let rate = Rate { per_second: f64::from(kube_qps), burst: kube_burst };
    let access = Access { kubeconfig, context: kube_context, rate };
    let writes = Writes {
        status: write_status,
        roots: write_roots,
        hooks: write_webhooks.then(|| Hooks {
            mutating: named("istio-sidecar-injector", revision),
            validating: named("istio-validator", revision),
        }),
    };
    let candidate = (writes != Writes::default()).then(|| Candidate {
        namespace: root_namespace.clone(),
        lease,
        duration: lease_duration,
        identity: pod_name.unwrap_or_else(|| format!("weft-{:08x}", rand::random::<u32>())),
    });
    let cluster_id = inject.cluster_id().to_owned();
    let source = source::kube::Options { root_namespace, cluster_id, ..Default::default() };
    Some(Kubernetes {
        access,
        source,
        shared_root: kubernetes,
        inject_only,
        token_audience,
        rotation_grace: ca_rotation_grace,
        candidate,
        writes,
    })
}

/// Logs to standard error: plain lines, colours on a terminal only.
pub(crate) fn log(level: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("--log-level {level}: try warn, info or debug"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
