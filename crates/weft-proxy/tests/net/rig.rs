//! A proxy in this process, and xDS resources in the few shapes these tests need.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proxy::Proxy;
use weft_proxy::cli::ProxyArgs;
use weft_testkit::{client, wait};

use crate::control::Control;

pub const LIMIT: Duration = Duration::from_secs(10);

/// A proxy that ends with the test.
pub struct Running(Option<Proxy>);

impl Running {
    pub fn proxy(&self) -> &Proxy {
        self.0.as_ref().unwrap()
    }

    pub fn admin(&self) -> SocketAddr {
        self.proxy().admin_address()
    }

    pub async fn page(&self, path: &str) -> String {
        client::get(self.admin(), path, &[]).await.unwrap().text()
    }

    pub async fn ready(&self) {
        wait::until("the proxy to be ready", LIMIT, || async {
            let reply = client::get(self.admin(), "/ready", &[]).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
    }

    /// Where a listener is bound.
    pub async fn listener(&self, name: &str) -> SocketAddr {
        wait::until(&format!("listener {name}"), LIMIT, || async {
            let page = self.page("/listeners").await;
            let line = page.lines().find(|line| line.starts_with(&format!("{name}::")))?;
            line.rsplit_once("::")?.1.parse().ok()
        })
        .await
    }

    /// Waits until a page shows a text.
    pub async fn shows(&self, path: &str, text: &str) {
        wait::until(&format!("{text:?} on {path}"), LIMIT, || async {
            self.page(path).await.contains(text).then_some(())
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(proxy) = self.0.take() {
            proxy.stop();
            proxy.join();
        }
    }
}

/// Options of a proxy under test.
pub struct Wish<'a> {
    pub xds: SocketAddr,
    /// The SPIFFE id's service account; written as the token.
    pub account: Option<&'a str>,
    pub dir: Option<&'a Path>,
    pub extra: &'a [&'a str],
}

pub fn start(wish: &Wish<'_>) -> Running {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        proxy: ProxyArgs,
    }
    let mut args: Vec<String> = vec!["test".into(), "sidecar".into()];
    args.push(format!("--xds={}", wish.xds));
    for arg in ["--name=app-1", "--admin-address=127.0.0.1:0", "--concurrency=2"] {
        args.push(arg.into());
    }
    args.push("--drain-time=50ms".into());
    if let Some(dir) = wish.dir {
        args.push(format!("--state-dir={}", dir.join("state").display()));
    }
    if let (Some(account), Some(dir)) = (wish.account, wish.dir) {
        let token = dir.join("token");
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&token, format!("spiffe://cluster.local/ns/default/sa/{account}")).unwrap();
        args.push(format!("--service-account={account}"));
        args.push(format!("--token-file={}", token.display()));
    }
    args.extend(wish.extra.iter().map(|arg| (*arg).to_owned()));
    let cli = <Cli as clap::Parser>::parse_from(args);
    Running(Some(weft_proxy::start(&cli.proxy, None).unwrap()))
}

pub fn plain(control: &Control) -> Running {
    start(&Wish { xds: control.address, account: None, dir: None, extra: &[] })
}

/// Upstream that answers each connection with its name and echoes until the client half-closes,
/// then says how much it got.
pub async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut tcp, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                tcp.write_all(format!("{name}\n").as_bytes()).await.unwrap();
                let mut total = 0;
                let mut buf = vec![0; 65536];
                loop {
                    match tcp.read(&mut buf).await {
                        Ok(0) => break,
                        Ok(n) => {
                            total += n;
                            if tcp.write_all(&buf[..n]).await.is_err() {
                                return;
                            }
                        }
                        Err(_) => return,
                    }
                }
                let _ = tcp.write_all(format!("end {total}\n").as_bytes()).await;
            });
        }
    });
    address
}

/// First line a connection gets.
pub async fn greeting(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, stream.read_u8()).await.expect("a greeting in time")? {
            b'\n' => return Ok(String::from_utf8(line).unwrap()),
            byte => line.push(byte),
        }
    }
}

pub async fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.unwrap()
}

pub fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

pub fn any_port() -> Value {
    socket_address(SocketAddr::from(([127, 0, 0, 1], 0)))
}

pub fn static_cluster(name: &str, to: &[SocketAddr]) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": assignment(name, to),
    })
}

pub fn assignment(name: &str, to: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = to
        .iter()
        .map(|address| json!({ "endpoint": { "address": socket_address(*address) } }))
        .collect();
    json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] })
}

pub fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

pub fn tcp_listener(name: &str, cluster: &str) -> Value {
    json!({
        "name": name,
        "address": any_port(),
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{ "filters": [tcp_proxy(cluster)] }],
    })
}

pub fn inspector(kind: &str, message: &str) -> Value {
    json!({
        "name": format!("envoy.filters.listener.{kind}"),
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{kind}.v3.{message}"),
        },
    })
}

fn sds(name: &str) -> Value {
    json!({ "name": name, "sds_config": { "ads": {}, "resource_api_version": "V3" } })
}

fn common_tls(sans: &[Value], alpn: &[&str]) -> Value {
    json!({
        "alpn_protocols": alpn,
        "tls_certificate_sds_secret_configs": [sds("default")],
        "combined_validation_context": {
            "default_validation_context": { "match_typed_subject_alt_names": sans },
            "validation_context_sds_secret_config": sds("ROOTCA"),
        },
    })
}

/// Transport socket of an Istio mTLS server.
pub fn mtls_server(alpn: &[&str]) -> Value {
    let san = json!({ "san_type": "URI", "matcher": { "prefix": "spiffe://cluster.local/" } });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": common_tls(&[san], alpn),
        },
    })
}

/// Transport socket of an Istio mTLS client that expects one identity.
pub fn mtls_client(expect: &str) -> Value {
    let san = json!({ "san_type": "URI", "matcher": { "exact": expect } });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "outbound_.80_._.server.default.svc.cluster.local",
            "common_tls_context": common_tls(&[san], &["istio"]),
        },
    })
}
