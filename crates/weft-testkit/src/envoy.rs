//! Stock Envoy as a client of our control plane.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{client, free_port, process::Process, wait};

/// How an Envoy of a test joins the mesh.
pub struct Join<'a> {
    /// `sidecar` or `router`.
    pub kind: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    pub service_account: &'a str,
    pub ip: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
    /// `NONE`, `REDIRECT` or `TPROXY`.
    pub interception: &'a str,
    pub xds: SocketAddr,
    /// Sent as `authorization: Bearer …` on the ADS stream.
    pub token: Option<&'a str>,
    /// Delta xDS instead of state of the world.
    pub delta: bool,
}

/// A running stock Envoy.
pub struct Envoy {
    pub process: Process,
    pub admin: SocketAddr,
}

/// The bootstrap of an Envoy that takes everything from ADS.
pub fn bootstrap(join: &Join<'_>, admin: SocketAddr) -> Value {
    let Join { kind, name, namespace, service_account, ip, labels, interception, xds, .. } = join;
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let metadata: Vec<Value> = join
        .token
        .map(|token| json!({"key": "authorization", "value": format!("Bearer {token}")}))
        .into_iter()
        .collect();
    json!({
        "node": {
            "id": format!("{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
            "cluster": format!("{name}.{namespace}"),
            "metadata": {
                "NAME": name,
                "NAMESPACE": namespace,
                "SERVICE_ACCOUNT": service_account,
                "LABELS": labels,
                "INSTANCE_IPS": ip,
                "INTERCEPTION_MODE": interception,
                "WORKLOAD_NAME": name,
                "CLUSTER_ID": "Kubernetes",
            },
        },
        "admin": {"address": socket(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": if join.delta { "DELTA_GRPC" } else { "GRPC" },
                "transport_api_version": "V3",
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": "xds-grpc"},
                    "initial_metadata": metadata,
                }],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "xds-grpc",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{
                "lb_endpoints": [{"endpoint": {"address": socket(*xds)}}],
            }]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
        }]},
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

impl Envoy {
    /// Starts Envoy with `join`; logs and bootstrap go to `folder`.
    pub fn start(binary: &Path, folder: &Path, join: &Join<'_>) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let name = format!("envoy-{}", join.name);
        let config = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&bootstrap(join, admin)).expect("JSON prints");
        std::fs::write(&config, text).expect("a test's own folder is writable");
        let args = [
            "-c",
            config.to_str().expect("test paths are UTF-8"),
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
            "--drain-time-s",
            "1",
        ];
        Self { process: Process::start(&name, folder, binary, &args), admin }
    }

    /// Waits until the admin page says LIVE: every listener is warm.
    pub async fn ready(&self) {
        wait::until("Envoy to be LIVE", Duration::from_secs(30), || async {
            let reply = client::get(self.admin, "/ready", &[]).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
    }

    /// The admin page at `path`, as text.
    pub async fn admin(&self, path: &str) -> String {
        client::get(self.admin, path, &[]).await.map(|reply| reply.text()).unwrap_or_default()
    }

    /// A counter or gauge of Envoy's `/stats`, 0 when absent.
    pub async fn stat(&self, name: &str) -> u64 {
        let text = self.admin("/stats").await;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Sum of every `update_rejected` counter: configuration Envoy refused.
    pub async fn rejected(&self) -> u64 {
        let text = self.admin("/stats").await;
        text.lines()
            .filter_map(|line| line.split_once(".update_rejected: "))
            .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
            .sum()
    }
}
