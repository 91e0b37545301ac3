//! What the demo prints when it is ready: one JSON line for programs, or a tour for people.

use super::WEBSITE;
use super::layout::{Layout, Role};
use super::proxies::Proxies;
use serde_json::{Value, json};
use std::path::Path;

/// The line of `--output json`.
pub(super) fn json(layout: &Layout, config: &Path, proxies: &Proxies) -> Value {
    let control = format!("http://{}", layout.control_http());
    let proxies: Vec<Value> = proxies
        .list()
        .iter()
        .map(|proxy| {
            let kind = if proxy.instance.role == Role::Ingress { "gateway" } else { "sidecar" };
            let admin = format!("http://{}", layout.admin(proxy.instance));
            json!({
                "name": proxy.instance.name,
                "kind": kind,
                "metrics": format!("{admin}/stats/prometheus"),
                "admin": admin,
                "pid": proxy.pid(),
            })
        })
        .collect();
    let apps: Vec<Value> = layout
        .instances()
        .iter()
        .filter(|instance| instance.role != Role::Ingress)
        .map(|instance| {
            let scheme = if instance.role == Role::TcpEcho { "tcp" } else { "http" };
            json!({
                "name": instance.app,
                "version": instance.version,
                "url": format!("{scheme}://{}", layout.app(instance)),
            })
        })
        .collect();
    json!({
        "gateway": format!("http://{}", layout.gateway_http()),
        "gateway_https": format!("https://{}", layout.gateway_https()),
        // The control plane's status page stands in until there is a console.
        "console": control,
        "xds": layout.xds().to_string(),
        "config_dir": config,
        "control": {"metrics": format!("{control}/metrics"), "api": control},
        "traces": format!("{control}/api/v2/traces"),
        "proxies": proxies,
        "apps": apps,
    })
}

/// The tour for people.
pub(super) fn tour(layout: &Layout, config: &Path, proxies: &Proxies, traffic: bool) -> String {
    let gateway = format!("http://{}", layout.gateway_http());
    let https = layout.gateway_https();
    let control = format!("http://{}", layout.control_http());
    let config = config.display();
    let mut text = format!(
        "
The mesh is up. All of it is on this machine's loopback.

  gateway    {gateway}     (host {WEBSITE}; TLS on https://{https})
  control    {control}     (status, /metrics, /debug/syncz)
  config     {config}

  client -> ingress gateway -> gateway -+-> servicea v1, v2   (HTTP)
                                        +-> serviceb          (gRPC, two copies)

Try:
  curl -H 'Host: {WEBSITE}' {gateway}/
  for i in $(seq 20); do curl -s -o /dev/null -D - -H 'Host: {WEBSITE}' {gateway}/ | grep x-servicea; done
  $EDITOR {config}/servicea.yaml        change the weights: traffic shifts within a second
  $EDITOR {config}/mtls.yaml            STRICT: plain-client is refused, the mesh is not
  curl -k --resolve {WEBSITE}:{https_port}:127.0.0.1 https://{WEBSITE}:{https_port}/
  curl -H 'Host: {WEBSITE}' '{gateway}/stream?n=3'        gRPC streams (also /tcp, /plain)
  curl {plain}/                        a client without a sidecar
  weft why GET http://{WEBSITE}:{http_port}/ -f {config}
  weft analyze -f {config}
  weft proxy-status --api {control}
  weft graph --api {control}            who calls whom (also: weft top, weft logs)
  curl '{control}/api/v2/traces?serviceName=servicea.default&limit=1'    a trace (Zipkin's API)

Proxies (admin: /config_dump, /clusters, /stats/prometheus):
",
        http_port = layout.gateway_http().port(),
        https_port = https.port(),
        plain = format_args!("http://{}", layout.app(layout.instance(Role::PlainClient))),
    );
    for proxy in proxies.list() {
        let (name, admin) = (proxy.instance.name, layout.admin(proxy.instance));
        text.push_str(&format!("  {name:<24} http://{admin}   pid {}\n", proxy.pid()));
    }
    if traffic {
        text.push_str("\nA little traffic runs by itself (--no-traffic leaves it out).\n");
    }
    text.push_str("Ctrl-C stops everything and leaves nothing behind.\n");
    text
}
