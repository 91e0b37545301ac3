//! Does stock Envoy accept what we translate? `envoy --mode validate` on a bootstrap that holds
//! the resources inline.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use weft_model::Snapshot;
use weft_translate::{ProxyView, endpoints, translate};
use weft_xds::{Resource, json, type_url};

/// Envoy's complaint about the configuration of this proxy, if it has one.
pub fn validate(envoy: &PathBuf, snapshot: &Snapshot, view: &ProxyView) -> Result<(), String> {
    let file = tempfile::Builder::new().suffix(".json").tempfile().expect("temporary file");
    let bootstrap = bootstrap(snapshot, view);
    std::fs::write(file.path(), bootstrap.to_string()).expect("bootstrap is written");
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--log-level", "error", "--concurrency", "1", "-c"])
        .arg(file.path())
        .output()
        .expect("Envoy runs");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn to_json(url: &str, resource: &Resource) -> Value {
    json::body_to_json(url, &resource.body)
}

fn bootstrap(snapshot: &Snapshot, view: &ProxyView) -> Value {
    let (resources, _) = translate(snapshot, view);
    let routes: Vec<Value> = resources
        .routes
        .iter()
        .map(|routes| without_type(to_json(type_url::ROUTE, routes)))
        .collect();
    let mut listeners: Vec<Value> = resources
        .listeners
        .iter()
        .map(|listener| without_type(to_json(type_url::LISTENER, listener)))
        .collect();
    for listener in &mut listeners {
        inline_routes(listener, &routes);
    }
    let mut clusters = vec![xds_cluster()];
    for cluster in &resources.clusters {
        clusters.push(without_type(to_json(type_url::CLUSTER, cluster)));
        if let Some(assignment) = endpoints(snapshot, view, &cluster.name) {
            clusters.push(json!({
                "name": format!("check {}", cluster.name),
                "type": "STATIC",
                "load_assignment": without_type(to_json(type_url::ENDPOINT, &assignment)),
            }));
        }
    }
    json!({
        "node": {"id": "test", "cluster": "test"},
        "dynamic_resources": {"ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
        }},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn xds_cluster() -> Value {
    json!({
        "name": "xds",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        }}]}]},
    })
}

fn without_type(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.remove("@type");
    }
    value
}

/// Envoy validates routes only when they are in the listener: `rds` becomes `route_config`.
fn inline_routes(value: &mut Value, routes: &[Value]) {
    match value {
        Value::Object(fields) => {
            if let Some(rds) = fields.remove("rds") {
                let name = rds["routeConfigName"].as_str().or(rds["route_config_name"].as_str());
                let found = routes.iter().find(|routes| routes["name"].as_str() == name);
                let found = found.unwrap_or_else(|| panic!("no route configuration {name:?}"));
                fields.insert("route_config".to_owned(), found.clone());
            }
            fields.values_mut().for_each(|value| inline_routes(value, routes));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| inline_routes(value, routes)),
        _ => {}
    }
}
