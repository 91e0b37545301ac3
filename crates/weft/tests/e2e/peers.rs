//! Other people's programs on either side of the mesh, each with each: curl, h2load, haproxy, nginx
//! and grpc's core as clients, over plaintext, TLS and mTLS; nginx, haproxy and grpc's core as
//! servers, over HTTP/1 and HTTP/2. Between the proxies it is mTLS.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use weft_testkit::{
    client::{self, Wire},
    free_port, peer,
    process::Process,
    wait,
};

use crate::{
    cast::{place, pod},
    crossings::world::Keys,
    grpc_core::PEER,
    harness::{self, Flavor, Mesh, Proxy},
};

/// Python and nginx start slowly on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Requests of one run of h2load.
const REQUESTS: usize = 60;

/// How a client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Sidecar,
    GatewayTls,
    GatewayMtls,
}

const EDGES: [Edge; 3] = [Edge::Sidecar, Edge::GatewayTls, Edge::GatewayMtls];

/// A server, its port of the service and what it speaks.
struct App {
    name: &'static str,
    port: u16,
    protocol: &'static str,
}

const WEB: [App; 4] = [
    App { name: "nginx-one", port: 8101, protocol: "HTTP" },
    App { name: "nginx-two", port: 8102, protocol: "HTTP2" },
    App { name: "haproxy-one", port: 8103, protocol: "HTTP" },
    App { name: "haproxy-two", port: 8104, protocol: "HTTP2" },
];
const CORE: App = App { name: "core", port: 8105, protocol: "GRPC" };

#[tokio::test(flavor = "multi_thread")]
async fn every_client_reaches_every_server() {
    const TEST: &str = "every_client_reaches_every_server";
    let (Some(nginx), Some(haproxy)) = (peer::nginx(TEST), peer::haproxy(TEST)) else { return };
    let (Some(curl), Some(h2load)) = (peer::curl(TEST), peer::h2load(TEST)) else { return };
    let Some(python) = peer::python(TEST) else { return };
    let world = World::start(&nginx, &haproxy, &python).await;
    for edge in EDGES {
        for app in &WEB {
            world.curl(&curl, edge, app).await;
            if edge != Edge::GatewayMtls {
                // It has no certificate to show.
                world.h2load(&h2load, edge, app).await;
            }
        }
    }
    world.haproxy_as_client(&haproxy).await;
    world.nginx_as_client(&nginx).await;
    world.grpc_core(&python).await;
}

struct World {
    folder: PathBuf,
    _mesh: Mesh,
    client_ip: IpAddr,
    gateway_ip: IpAddr,
    _proxies: [Proxy; 3],
    _servers: [Process; 3],
}

impl World {
    async fn start(nginx: &Path, haproxy: &Path, python: &Path) -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = folder.path().to_owned();
        let names: Vec<String> =
            WEB.iter().chain([&CORE]).map(|app| format!("{}.example", app.name)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = Keys::write(&at, &names);
        let together =
            ["client.crt", "client.key"].map(|name| std::fs::read_to_string(at.join(name)));
        let together: String =
            together.into_iter().map(|text| text.expect("just written")).collect();
        std::fs::write(at.join("client.pem"), together).expect("the folder is writable");

        let mut ports = [(); 4].map(|()| free_port()).to_vec();
        let listens = Ipv4Addr::LOCALHOST;
        let conf = nginx_conf(
            &at.join("nginx-server"),
            &format!(
                "server {{ listen {listens}:{}; location / {{ return 200 \"nginx-one\\n\"; }} }}\n\
                 server {{ listen {listens}:{} http2; location / {{ return 200 \"nginx-two\\n\"; }} }}\n",
                ports[0], ports[1]
            ),
        );
        let nginx = start_nginx("nginx-server", &at, nginx, &conf);
        let conf = haproxy_conf(
            &at.join("haproxy-server.cfg"),
            &format!(
                "frontend one\n  bind {listens}:{}\n  http-request return status 200 content-type text/plain string haproxy-one\n\
             frontend two\n  bind {listens}:{} proto h2\n  http-request return status 200 content-type text/plain string haproxy-two\n",
                ports[2], ports[3]
            ),
        );
        let haproxy = Process::start("haproxy-server", &at, haproxy, &["-db", "-f", &conf]);
        let port_file = at.join("port");
        let args = [PEER, "serve", text(&port_file), "127.0.0.1"];
        let core = Process::start("core", &at, python, &args);
        let core_port = wait::until("grpc's server to listen", START_LIMIT, || async {
            std::fs::read_to_string(&port_file).ok()?.parse().ok()
        })
        .await;
        for port in &ports {
            listening((listens, *port).into()).await;
        }
        ports.push(core_port);

        let ips = [(); 3].map(|()| harness::address());
        let config = at.join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        std::fs::write(config.join("mesh.yaml"), yaml(ips, &ports, &at)).expect("writable");
        let mesh = Mesh::over(folder, config).await;
        let [gateway_ip, client_ip, server_ip] = ips;
        let server = mesh.proxy(Flavor::Weft, &place("server", server_ip)).await;
        let gateway = mesh.proxy(Flavor::Weft, &place("gateway", gateway_ip)).await;
        let client = mesh.proxy(Flavor::Weft, &place("client", client_ip)).await;
        let world = World {
            folder: at,
            _mesh: mesh,
            client_ip,
            gateway_ip,
            _proxies: [client, gateway, server],
            _servers: [nginx, haproxy, core],
        };
        for app in &WEB {
            let host = world.host(Edge::Sidecar, app);
            wait::until("requests to get through", START_LIMIT, || async {
                let headers = [("host", host.as_str())];
                let reply = client::get(world.address(Edge::Sidecar), "/", &headers).await.ok()?;
                (reply.status == 200).then_some(())
            })
            .await;
        }
        world
    }

    fn address(&self, edge: Edge) -> SocketAddr {
        match edge {
            Edge::Sidecar => SocketAddr::new(self.client_ip, 15080),
            Edge::GatewayTls => SocketAddr::new(self.gateway_ip, 10443),
            Edge::GatewayMtls => SocketAddr::new(self.gateway_ip, 10444),
        }
    }

    fn host(&self, edge: Edge, app: &App) -> String {
        match edge {
            Edge::Sidecar => format!("server:{}", app.port),
            _ => format!("{}.example", app.name),
        }
    }

    fn key(&self, name: &str) -> String {
        text(&self.folder.join(name)).to_owned()
    }

    async fn curl(&self, curl: &Path, edge: Edge, app: &App) {
        let (to, host) = (self.address(edge), self.host(edge, app));
        for version in ["1.1", "2"] {
            let mut command = Command::new(curl);
            command.args(["-sS", "--max-time", "20", "-w", " over %{http_version}"]);
            command.args(["-H", &format!("Host: {host}")]);
            let how = match (version, edge) {
                ("1.1", _) => "--http1.1",
                (_, Edge::Sidecar) => "--http2-prior-knowledge",
                (_, _) => "--http2",
            };
            command.arg(how);
            match edge {
                Edge::Sidecar => _ = command.arg(format!("http://{to}/")),
                _ => {
                    command.args(["--cacert", &self.key("server.crt")]);
                    command.args(["--resolve", &format!("{host}:{}:{}", to.port(), to.ip())]);
                    command.arg(format!("https://{host}:{}/", to.port()));
                }
            }
            if edge == Edge::GatewayMtls {
                command.args(["--cert", &self.key("client.crt"), "--key", &self.key("client.key")]);
            }
            let said = output(command).await;
            let (body, over) = said.split_once(" over ").expect("the format above");
            assert_eq!((body.trim(), over), (app.name, version), "{edge:?} {host}");
        }
    }

    async fn h2load(&self, h2load: &Path, edge: Edge, app: &App) {
        let (to, host) = (self.address(edge), self.host(edge, app));
        let url = match edge {
            Edge::Sidecar => format!("http://{host}/"),
            _ => format!("https://{host}/"),
        };
        let mut command = Command::new(h2load);
        command.args(["-n", &REQUESTS.to_string(), "-c", "3", "-m", "10"]);
        command.args([&format!("--connect-to={to}"), &url]);
        let said = output(command).await;
        let whole = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
        assert!(said.contains(&whole), "{edge:?} {host}: {said}");
        assert!(said.contains(&format!("status codes: {REQUESTS} 2xx")), "{edge:?} {host}: {said}");
    }

    /// haproxy before the mesh, over HTTP/1 and HTTP/2, as a proxy of one's own would stand there.
    async fn haproxy_as_client(&self, haproxy: &Path) {
        let mut relays = Vec::new();
        let mut conf = String::new();
        for edge in EDGES {
            for version in ["http/1.1", "h2"] {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
                let tls = match edge {
                    Edge::Sidecar if version == "h2" => "proto h2".to_owned(),
                    Edge::Sidecar => String::new(),
                    _ => format!(
                        "ssl verify required ca-file {} sni req.hdr(host) alpn {version}",
                        self.key("server.crt")
                    ),
                };
                let own = match edge {
                    Edge::GatewayMtls => format!("crt {}", self.key("client.pem")),
                    _ => String::new(),
                };
                let to = self.address(edge);
                writeln!(
                    conf,
                    "listen {}\n  bind {listen}\n  server mesh {to} {tls} {own}",
                    listen.port()
                )
                .expect("memory");
                relays.push((edge, format!("haproxy, {version}"), listen));
            }
        }
        let conf = haproxy_conf(&self.folder.join("haproxy-client.cfg"), &conf);
        let _relay = Process::start("haproxy-client", &self.folder, haproxy, &["-db", "-f", &conf]);
        self.relayed(&relays).await;
    }

    /// nginx before the mesh: HTTP/1 by `proxy_pass`, gRPC by `grpc_pass`.
    async fn nginx_as_client(&self, nginx: &Path) {
        let (mut web, mut grpc, mut servers) = (Vec::new(), Vec::new(), String::new());
        for edge in EDGES {
            for (module, plain, tls) in [("proxy", "http", "https"), ("grpc", "grpc", "grpcs")] {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
                let to = self.address(edge);
                let scheme = if edge == Edge::Sidecar { plain } else { tls };
                let h2 = if module == "grpc" { "http2" } else { "" };
                let mut more = format!("{module}_set_header Host $http_host;");
                if module == "proxy" {
                    more += " proxy_http_version 1.1; proxy_set_header Connection \"\";";
                }
                if edge != Edge::Sidecar {
                    write!(
                        more,
                        " {module}_ssl_verify on; {module}_ssl_trusted_certificate {};\
                         {module}_ssl_server_name on; {module}_ssl_name $http_host;",
                        self.key("server.crt")
                    )
                    .expect("memory");
                }
                if edge == Edge::GatewayMtls {
                    write!(
                        more,
                        " {module}_ssl_certificate {}; {module}_ssl_certificate_key {};",
                        self.key("client.crt"),
                        self.key("client.key")
                    )
                    .expect("memory");
                }
                writeln!(
                    servers,
                    "server {{ listen {listen} {h2}; location / {{ {module}_pass {scheme}://{to}; {more} }} }}"
                )
                .expect("memory");
                let relays = if module == "grpc" { &mut grpc } else { &mut web };
                relays.push((edge, format!("nginx, {module}_pass"), listen));
            }
        }
        let conf = nginx_conf(&self.folder.join("nginx-client"), &servers);
        let _relay = start_nginx("nginx-client", &self.folder, nginx, &conf);
        self.relayed(&web).await;
        for (edge, how, listen) in grpc {
            listening(listen).await;
            let host = self.host(edge, &CORE);
            let headers =
                [("host", host.as_str()), ("content-type", "application/grpc"), ("te", "trailers")];
            let message = Bytes::from_static(b"\0\0\0\0\x05hello");
            let path = "/test.Core/Unary";
            let reply =
                client::send(Wire::H2, listen, Method::POST, path, &headers, message.clone());
            let reply = reply.await.unwrap_or_else(|error| panic!("{edge:?} {how}: {error:#}"));
            let status = reply.trailers.get("grpc-status").map(|value| value.as_bytes());
            assert_eq!((reply.body, status), (message, Some(&b"0"[..])), "{edge:?} {how}");
        }
    }

    /// A request to every server through each relay.
    async fn relayed(&self, relays: &[(Edge, String, SocketAddr)]) {
        for (edge, how, listen) in relays {
            listening(*listen).await;
            for app in &WEB {
                let host = self.host(*edge, app);
                // On kept connections the second time.
                for _ in 0..2 {
                    let reply = client::get(*listen, "/", &[("host", &host)]).await;
                    let reply = reply.unwrap_or_else(|error| panic!("{edge:?} {how}: {error:#}"));
                    let got = (reply.status, reply.text());
                    assert_eq!((got.0, got.1.trim()), (200, app.name), "{edge:?} {how} {host}");
                }
            }
        }
    }

    /// Every mode of call, and all that `grpc_core.py` asks for, with TLS and with mTLS.
    async fn grpc_core(&self, python: &Path) {
        let host = self.host(Edge::GatewayTls, &CORE);
        let folder = text(&self.folder);
        let mut command = Command::new(python);
        command.args([PEER, "call"]);
        command.arg(format!("{}={host}={folder}", self.address(Edge::GatewayTls)));
        command.arg(format!("{}={host}={folder}=mutual", self.address(Edge::GatewayMtls)));
        output(command).await;
    }
}

/// What a program printed; it must end well.
async fn output(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || {
        let output = command.output().expect("it starts");
        (format!("{command:?}"), output)
    });
    let (command, output) = output.await.expect("no panic");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}\n{failed}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

async fn listening(address: SocketAddr) {
    wait::until("it to listen", START_LIMIT, || async move {
        tokio::net::TcpStream::connect(address).await.ok()
    })
    .await;
}

fn haproxy_conf(file: &Path, rest: &str) -> String {
    let text_ = format!(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 20s\n  timeout client 20s\n  \
         timeout server 20s\n{rest}"
    );
    std::fs::write(file, text_).expect("the folder is writable");
    text(file).to_owned()
}

fn nginx_conf(home: &Path, servers: &str) -> String {
    std::fs::create_dir(home).expect("a fresh folder");
    let at = home.display();
    let text_ = format!(
        "daemon off; master_process off; worker_processes 1; pid {at}/pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\nhttp {{ access_log off;\n\
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{servers}}}\n"
    );
    let file = home.join("nginx.conf");
    std::fs::write(&file, text_).expect("the folder is writable");
    text(&file).to_owned()
}

fn start_nginx(name: &str, folder: &Path, nginx: &Path, conf: &str) -> Process {
    Process::start(name, folder, nginx, &["-e", "stderr", "-c", conf])
}

fn yaml([gateway, client, server]: [IpAddr; 3], ports: &[u16], keys: &Path) -> String {
    let keys = keys.display();
    let simple = format!(
        "mode: SIMPLE, serverCertificate: {keys}/server.crt, privateKey: {keys}/server.key"
    );
    let mutual =
        simple.replace("SIMPLE", "MUTUAL") + &format!(", caCertificates: {keys}/client.crt");
    let (mut of_service, mut ingress, mut routes) = (String::new(), String::new(), String::new());
    for (App { name, port, protocol }, app) in WEB.iter().chain([&CORE]).zip(ports) {
        let word = protocol.to_lowercase();
        writeln!(of_service, "  - {{name: {word}-{port}, port: {port}, targetPort: {port}}}")
            .expect("memory");
        writeln!(
            ingress,
            "  - {{port: {{number: {port}, protocol: {protocol}, name: p-{port}}}, bind: {server}, \
             captureMode: NONE, defaultEndpoint: \"127.0.0.1:{app}\"}}"
        )
        .expect("memory");
        writeln!(
            routes,
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: {name}, namespace: default}}\n\
             spec: {{hosts: [{name}.example], gateways: [gateway], http: [{{route: [{{destination: \
             {{host: server, port: {{number: {port}}}}}}}]}}]}}"
        )
        .expect("memory");
    }
    let world = format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: server, namespace: default}}
spec:
  selector: {{app: server}}
  ports:
{of_service}---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: 10443, name: https, protocol: HTTPS}}, hosts: ["*.example"], tls: {{{simple}}}}}
  - {{port: {{number: 10444, name: mutual, protocol: HTTPS}}, hosts: ["*.example"], tls: {{{mutual}}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: server, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: server}}}}
  ingress:
{ingress}  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {server}, port: {{number: 15080, protocol: HTTP, name: http}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: client, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: client}}}}
  egress:
  - {{hosts: ["./*"], captureMode: NONE, bind: {client}, port: {{number: 15080, protocol: HTTP, name: http}}}}
{routes}"#
    );
    [world, pod("gateway", gateway), pod("client", client), pod("server", server)].concat()
}
