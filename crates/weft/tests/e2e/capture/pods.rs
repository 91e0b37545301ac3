//! Pods without a cluster: a network namespace each, behind one node, with IPv4 and IPv6. Whatever
//! runs in a pod's thread has that pod's network.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use weft_testkit::process::Process;
use weft_testkit::{client, netns, wait};

use crate::harness::WEFT;

/// How long a program of ours may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Where the node's control plane listens.
const XDS_PORT: u16 = 15010;

/// What injection would tell a proxy of its application's probes.
const PROBES: &str = r#"{"/app-health/app/livez":{"httpGet":{"port":8080}}}"#;

/// The machine: routes between pods and runs the control plane.
pub struct Node {
    folder: tempfile::TempDir,
    control: Option<Process>,
}

/// A pod: its network, and the applications and the proxy in it.
pub struct Pod {
    pub name: &'static str,
    number: u8,
    tasks: tokio::runtime::Handle,
    proxy: Option<Process>,
}

/// What is special about a pod's proxy.
#[derive(Clone, Copy)]
struct Run {
    /// The control plane's port.
    xds: u16,
    dns: bool,
    tproxy: bool,
}

impl Default for Run {
    fn default() -> Run {
        Run { xds: XDS_PORT, dns: false, tproxy: false }
    }
}

impl Node {
    /// Starts the control plane on `yaml`. The test's own namespaces are the node's.
    pub async fn start(yaml: &str) -> Node {
        std::fs::create_dir_all("/run/netns").expect("/run is writable");
        netns::commands(&[
            "mount -t tmpfs tmpfs /run/netns",
            "ip link set lo up",
            "sysctl -q net.ipv4.ip_forward=1",
            "sysctl -q net.ipv6.conf.all.forwarding=1",
        ]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        readable(folder.path());
        let config = folder.path().join("config");
        std::fs::create_dir(&config).expect("a fresh folder");
        std::fs::write(config.join("mesh.yaml"), yaml).expect("the folder is writable");
        // The proxy's user may not reach the folder this was built in.
        let program = folder.path().join("weft");
        std::fs::write(&program, "").expect("the folder is writable");
        netns::commands(&[&format!("mount --bind {WEFT} {}", program.display())]);
        let mut node = Node { folder, control: None };
        node.start_control().await;
        node
    }

    /// Starts the control plane on what it read and kept before, if it ran before.
    pub async fn start_control(&mut self) {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 15014));
        let folder = self.folder.path();
        let args = [
            "control".to_owned(),
            format!("--config-dir={}", folder.join("config").display()),
            format!("--state-dir={}", folder.join("state").display()),
            format!("--xds-address=0.0.0.0:{XDS_PORT}"),
            format!("--http-address={http}"),
        ];
        let mut control = Process::start("control", folder, Path::new(WEFT), &args);
        wait::until("the control plane to be ready", START_LIMIT, || {
            assert!(control.ended().is_none(), "weft control ended: {}", control.output());
            async move { client::get(http, "/ready", &[]).await.ok().filter(|r| r.status == 200) }
        })
        .await;
        self.control = Some(control);
    }

    /// Kills the control plane at once.
    pub fn kill_control(&mut self) {
        self.control.take();
    }

    /// Writes (or replaces) a file of the watched folder.
    pub fn write(&self, name: &str, yaml: &str) {
        let path = self.folder.path().join("config").join(name);
        std::fs::write(path, yaml).expect("the folder is writable");
    }

    /// A pod outside the mesh: reachable, nothing captured.
    pub fn pod(&self, name: &'static str, number: u8) -> Pod {
        let (cable, prefix) = (format!("pod-{name}"), format!("10.20.{number}"));
        let inside = |command: &str| format!("ip netns exec {name} {command}");
        let commands = [
            format!("ip netns add {name}"),
            format!("ip link add {cable} type veth peer name eth0 netns {name}"),
            format!("ip address add {prefix}.1/24 dev {cable}"),
            format!("ip address add fd20:{number}::1/64 dev {cable} nodad"),
            format!("ip link set {cable} up"),
            inside("ip link set lo up"),
            inside(&format!("ip address add {prefix}.2/24 dev eth0")),
            inside(&format!("ip address add fd20:{number}::2/64 dev eth0 nodad")),
            inside("ip link set eth0 up"),
            inside(&format!("ip route add default via {prefix}.1")),
            inside(&format!("ip route add default via fd20:{number}::1")),
        ];
        netns::commands(&commands.each_ref().map(String::as_str));
        Pod { name, number, tasks: tasks(name), proxy: None }
    }

    /// A pod with captured traffic and a proxy beside it, ready.
    pub async fn mesh_pod(&self, name: &'static str, number: u8, init: &[&str]) -> Pod {
        let mut pod = self.pod(name, number);
        let rules = pod.command(&[&["init"], init].concat());
        let said = String::from_utf8_lossy(&rules.stdout);
        assert!(rules.status.success(), "{said}{}", String::from_utf8_lossy(&rules.stderr));
        assert!(said.contains("IPv4") && said.contains("IPv6"), "{said}");
        let (tproxy, dns) = (init.contains(&"TPROXY"), init.contains(&"--redirect-dns"));
        pod.proxy = Some(self.proxy(&pod, Run { tproxy, dns, ..Run::default() }));
        pod.ready().await;
        pod
    }

    /// A pod with captured traffic, and a proxy that is told of another control plane's port. It is
    /// not waited for.
    pub fn starting_pod(&self, name: &'static str, number: u8, init: &[&str], xds: u16) -> Pod {
        let mut pod = self.pod(name, number);
        let rules = pod.command(&[&["init"], init].concat());
        assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
        self.start_proxy_at(&mut pod, xds);
        pod
    }

    /// Starts a proxy that is told of another control plane's port, and does not wait.
    pub fn start_proxy_at(&self, pod: &mut Pod, xds: u16) {
        pod.proxy = Some(self.proxy(pod, Run { xds, ..Run::default() }));
    }

    /// Kills a pod's proxy at once and starts another.
    pub async fn replace_proxy(&self, pod: &mut Pod) {
        pod.stop_proxy();
        pod.proxy = Some(self.proxy(pod, Run::default()));
        pod.ready().await;
    }

    fn proxy(&self, pod: &Pod, run: Run) -> Process {
        let Run { xds, dns, tproxy } = run;
        let name = pod.name;
        let token = Command::new(WEFT)
            .args(["token", "--namespace=default", &format!("--service-account={name}")])
            .arg(format!("--state-dir={}", self.folder.path().join("state").display()))
            .output()
            .expect("weft starts");
        let file = self.folder.path().join(format!("{name}.token"));
        std::fs::write(&file, token.stdout).expect("the folder is writable");
        readable(&file);
        let mut command = format!(
            "netns exec {name} setpriv --reuid=1337 --regid=1337 --clear-groups --no-new-privs"
        );
        if tproxy {
            command.push_str(" --inh-caps=+net_admin --ambient-caps=+net_admin");
        }
        let interception = if tproxy { "tproxy" } else { "redirect" };
        command.push_str(&format!(
            " {} proxy sidecar --xds=10.20.{}.1:{xds} --name={name} --namespace=default \
             --service-account={name} --ip={},{} --labels=app={name} --interception={interception} \
             --token-file={} --concurrency=1 --readiness-port=15021 --status-port=15020 \
             --app-probers={PROBES} --dns-capture={dns}",
            self.folder.path().join("weft").display(),
            pod.number,
            pod.v4(),
            pod.v6(),
            file.display(),
        ));
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        Process::start(name, self.folder.path(), Path::new("ip"), &words)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Else the folder could not be removed.
        let program: PathBuf = self.folder.path().join("weft");
        let _ = Command::new("umount").arg("--lazy").arg(program).status();
    }
}

impl Pod {
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 20, self.number, 2).into()
    }

    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd20, u16::from(self.number), 0, 0, 0, 0, 0, 2).into()
    }

    /// Kills its proxy at once.
    pub fn stop_proxy(&mut self) {
        self.proxy.take();
    }

    /// Waits until its proxy is ready.
    pub async fn ready(&self) {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
        wait::until("the proxy to be ready", START_LIMIT, || async {
            let reply = self.run(client::get(admin, "/ready", &[])).await;
            reply.ok().filter(|reply| reply.status == 200)
        })
        .await;
    }

    /// Runs something with the pod's network.
    pub async fn run<F>(&self, task: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task).await.expect("the pod's task ends well")
    }

    /// As [`Self::run`], without waiting for the end.
    pub fn start<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Runs `weft` in the pod, as root.
    pub fn command(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name, WEFT]).args(args);
        command.output().expect("ip starts")
    }

    /// Runs any program in the pod, as root.
    pub fn program(&self, words: &[&str]) -> std::process::Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name]).args(words);
        command.output().expect("ip starts")
    }

    /// A server that tells every client that asks its address, and closes.
    pub async fn teller(&self, port: u16) {
        self.run(async move {
            let listener = TcpListener::bind(("::", port)).await.expect("the port is free");
            tokio::spawn(async move {
                while let Ok((mut stream, peer)) = listener.accept().await {
                    let text = peer.ip().to_canonical().to_string();
                    let _ = stream.read(&mut [0; 64]).await;
                    let _ = stream.write_all(text.as_bytes()).await;
                }
            });
        })
        .await;
    }
}

/// A thread in the pod's namespace that runs what it is given until the test ends.
fn tasks(name: &str) -> tokio::runtime::Handle {
    let namespace = std::fs::File::open(format!("/run/netns/{name}")).expect("it was just made");
    let (give, take) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let network = Some(LinkNameSpaceType::Network);
        let fd = OwnedFd::from(namespace);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&fd), network).expect("root may");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        give.send(runtime.handle().clone()).expect("the test waits for it");
        runtime.block_on(std::future::pending::<()>());
    });
    take.recv().expect("the thread started")
}

pub fn readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

/// Everything that passed through the node, from IP headers on.
#[derive(Clone, Default)]
pub struct Wire {
    packets: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Wire {
    /// Begins to listen on all interfaces of the node.
    pub fn tap() -> Wire {
        /// ETH_P_ALL of linux/if_ether.h, in network order.
        const EVERYTHING: u32 = 0x0003_u16.to_be() as u32;
        let protocol = NonZeroU32::new(EVERYTHING).map(Protocol::from_raw);
        let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, protocol);
        let socket = socket.expect("root may listen");
        let wire = Wire::default();
        let packets = wire.packets.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((length, _)) =
                rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())
            {
                packets.lock().expect("nobody panics with it").push(buffer[..length].to_vec());
            }
        });
        wire
    }

    /// Whether these bytes were seen by anybody on the way.
    pub fn shows(&self, text: &str) -> bool {
        self.any(|packet| packet.windows(text.len()).any(|window| window == text.as_bytes()))
    }

    /// Whether a TLS handshake began from one IPv4 address to a port of another.
    pub fn begins_tls(&self, from: IpAddr, to: IpAddr, port: u16) -> bool {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => panic!("IPv4 here"),
        };
        let (from, to) = (octets(from), octets(to));
        self.any(|packet| {
            let Some(first) = packet.first().filter(|first| *first >> 4 == 4) else { return false };
            let Some(tcp) = packet.get(usize::from(first & 15) * 4..) else { return false };
            let Some(payload) = tcp.get(12).and_then(|at| tcp.get(usize::from(at >> 4) * 4..))
            else {
                return false;
            };
            // A record of a handshake, RFC 8446 5.1.
            packet[9] == 6
                && packet[12..16] == from
                && packet[16..20] == to
                && tcp[2..4] == port.to_be_bytes()
                && payload.starts_with(&[22, 3])
        })
    }

    fn any(&self, is: impl Fn(&[u8]) -> bool) -> bool {
        self.packets.lock().expect("nobody panics with it").iter().any(|packet| is(packet))
    }
}
