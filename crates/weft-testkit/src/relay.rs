//! Other people's proxies as plain HTTP relays: each lane is a port to listen on and a backend.
//!
//! For tests that ask what several implementations make of the same bytes. Configurations are the
//! plainest that relay at all; limits are the programs' own.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::process::Process;

/// Where a relay listens, and the backend it relays to.
pub type Lane = (SocketAddr, SocketAddr);

/// How long a relay may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// haproxy in HTTP mode.
pub fn haproxy(binary: &Path, folder: &Path, lanes: &[Lane]) -> Process {
    let mut text = String::from(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  \
         timeout server 30s\n  timeout http-request 30s\n",
    );
    for (index, (listen, backend)) in lanes.iter().enumerate() {
        writeln!(text, "listen lane{index}\n  bind {listen}\n  server s {backend}")
            .expect("writing to memory cannot fail");
    }
    let config = folder.join("haproxy.cfg");
    std::fs::write(&config, text).expect("a test's own folder is writable");
    let args = ["-db", "-f", config.to_str().expect("test paths are UTF-8")];
    listening(Process::start("haproxy", folder, binary, &args), lanes)
}

/// nginx with `proxy_pass`, HTTP/1.1 and kept connections towards the backend.
pub fn nginx(binary: &Path, folder: &Path, lanes: &[Lane]) -> Process {
    let home = folder.join("nginx");
    std::fs::create_dir_all(&home).expect("a test's own folder is writable");
    let at = home.display();
    let mut text = format!(
        "daemon off; master_process off; worker_processes 1; pid {at}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_timeout 30;\n\
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n"
    );
    for (index, (listen, backend)) in lanes.iter().enumerate() {
        writeln!(
            text,
            "upstream u{index} {{ server {backend}; keepalive 4; }}\nserver {{ listen {listen}; \
             location / {{ proxy_pass http://u{index}; proxy_http_version 1.1; \
             proxy_next_upstream off; proxy_set_header Connection \"\"; \
             proxy_set_header Host $http_host; }} }}"
        )
        .expect("writing to memory cannot fail");
    }
    text.push('}');
    let config = folder.join("nginx.conf");
    std::fs::write(&config, text).expect("a test's own folder is writable");
    let args = ["-c", config.to_str().expect("test paths are UTF-8")];
    listening(Process::start("nginx", folder, binary, &args), lanes)
}

/// Stock Envoy with a static configuration; HTTP/1.0 is let in as a sidecar of ours lets it in.
pub fn envoy(binary: &Path, folder: &Path, lanes: &[Lane]) -> Process {
    envoy_with(binary, folder, lanes, "HTTP1", "http_protocol_options")
}

/// The same for clients that speak HTTP/2 with prior knowledge.
pub fn envoy_http2(binary: &Path, folder: &Path, lanes: &[Lane]) -> Process {
    envoy_with(binary, folder, lanes, "HTTP2", "http_protocol_options")
}

/// HTTP/2 on both sides.
pub fn envoy_http2_to_http2(binary: &Path, folder: &Path, lanes: &[Lane]) -> Process {
    envoy_with(binary, folder, lanes, "HTTP2", "http2_protocol_options")
}

fn envoy_with(
    binary: &Path,
    folder: &Path,
    lanes: &[Lane],
    codec: &str,
    upstream: &str,
) -> Process {
    let mut options = json!({});
    if upstream == "http_protocol_options" {
        options["enable_trailers"] = json!(true);
    }
    let socket = |address: &SocketAddr| {
        let (address, port) = (address.ip().to_string(), address.port());
        json!({"socket_address": {"address": address, "port_value": port}})
    };
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let listener = |(index, (listen, _)): (usize, &Lane)| {
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": format!("c{index}")}});
        let connect = json!({"match": {"connect_matcher": {}}, "direct_response": {"status": 403}});
        json!({"name": format!("l{index}"), "address": socket(listen), "filter_chains": [{
            "filters": [{"name": "hcm", "typed_config": {
                "@type": kind("network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "lane",
                "codec_type": codec,
                "delayed_close_timeout": "0.01s",
                "normalize_path": true,
                "http_protocol_options": {
                    "accept_http_10": true,
                    "allow_custom_methods": true,
                    "default_host_for_http_10": "app",
                    "enable_trailers": true,
                },
                "route_config": {"virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": [connect, route]},
                ]},
                "http_filters": [{"name": "router", "typed_config": {
                    "@type": kind("http.router.v3.Router"),
                }}],
            }}],
        }]})
    };
    let cluster = |(index, (_, backend)): (usize, &Lane)| {
        json!({"name": format!("c{index}"), "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket(backend)}},
        ]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {upstream: options},
            },
        }})
    };
    let listeners: Vec<_> = lanes.iter().enumerate().map(listener).collect();
    let clusters: Vec<_> = lanes.iter().enumerate().map(cluster).collect();
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    let file = folder.join(format!("envoy-relay-{codec}-{upstream}.json"));
    std::fs::write(&file, config.to_string()).expect("a test's own folder is writable");
    let file = file.to_str().expect("test paths are UTF-8");
    let args =
        ["-c", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"];
    listening(Process::start("envoy-relay", folder, binary, &args), lanes)
}

fn listening(mut process: Process, lanes: &[Lane]) -> Process {
    let start = Instant::now();
    for (listen, _) in lanes {
        while std::net::TcpStream::connect(listen).is_err() {
            assert!(process.ended().is_none(), "it ended: {}", process.output());
            assert!(start.elapsed() < START_LIMIT, "{listen} is not listened on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    process
}
