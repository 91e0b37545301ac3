//! A control plane on a folder of its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use weft_control::ca::Identity;
use weft_control::status::{ProxyStatus, Sync, client};
use weft_control::{Config, Handle, run};
use weft_xds::connect::Target;

/// Longest wait for anything; only reached by a failing test.
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Plane {
    folder: tempfile::TempDir,
    pub handle: Handle,
}

/// Two services with one ready Pod each, without endpoints of each other.
pub const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: default}
spec:
  selector: {app: a}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: default}
spec:
  selector: {app: b}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

/// A Pod of app `app`.
pub fn pod(app: &str, index: u8, ready: bool) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {app}-{index}, namespace: default, labels: {{app: {app}}}}}
spec:
  serviceAccountName: {app}
  containers: [{{name: app, ports: [{{containerPort: 8080}}]}}]
status:
  phase: Running
  podIP: {ip}
  conditions: [{{type: Ready, status: \"{ready}\"}}]
",
        ip = address(app, index),
        ready = if ready { "True" } else { "False" },
    )
}

/// `a`, `b` → 10.0.97.INDEX, 10.0.98.INDEX; `s300` → 10.2.50.INDEX.
fn address(app: &str, index: u8) -> Ipv4Addr {
    match app[1..].parse::<u16>() {
        Ok(number) => Ipv4Addr::new(10, 1 + (number / 250) as u8, (number % 250) as u8, index),
        Err(_) => Ipv4Addr::new(10, 0, app.as_bytes()[0], index),
    }
}

/// The cluster of a service's port 80.
pub fn cluster(app: &str, subset: &str) -> String {
    format!("outbound|80|{subset}|{app}.default.svc.cluster.local")
}

impl Plane {
    pub async fn start() -> Self {
        Self::with("", |_| {}).await
    }

    /// With more resources from the start, and other options.
    pub async fn with(more: &str, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("works in a test");
        std::fs::create_dir(folder.path().join("config")).expect("works in a test");
        let write = |name: &str, text: &str| {
            std::fs::write(config_dir(folder.path()).join(name), text).expect("works in a test");
        };
        write("services.yaml", SERVICES);
        write("more.yaml", more);
        write("a.yaml", &pod("a", 1, true));
        write("b.yaml", &pod("b", 1, true));
        let mut config = config(folder.path(), 0);
        change(&mut config);
        let handle = run(config, CancellationToken::new()).await.expect("the plane starts");
        handle.ready().await;
        Self { folder, handle }
    }

    /// Stops the control plane and starts another one on the same xDS port and state.
    pub async fn restart(self) -> Self {
        let Self { folder, handle } = self;
        let port = handle.xds.port();
        handle.stop().await;
        let config = config(folder.path(), port);
        let handle = run(config, CancellationToken::new()).await.expect("works in a test");
        handle.ready().await;
        Self { folder, handle }
    }

    /// Replaces a file of the configuration at once.
    pub fn write(&self, name: &str, text: &str) {
        // Written elsewhere and moved, so that it is never seen half-written.
        let folder = config_dir(self.folder.path());
        let draft = self.folder.path().join(name);
        std::fs::write(&draft, text).expect("works in a test");
        std::fs::rename(draft, folder.join(name)).expect("works in a test");
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(config_dir(self.folder.path()).join(name)).expect("works in a test");
    }

    pub fn target(&self) -> Target {
        Target::plain(format!("http://{}", self.handle.xds))
    }

    pub fn token(&self, account: &str) -> String {
        let identity = Identity::new("default", account).expect("works in a test");
        self.handle.join_key.mint(&identity, Duration::from_secs(600), SystemTime::now())
    }

    pub async fn page(&self, path: &str) -> String {
        let page = client::get(&self.handle.http.to_string(), path).await.expect("works in a test");
        String::from_utf8(page).expect("works in a test")
    }

    pub async fn proxies(&self) -> Vec<ProxyStatus> {
        client::proxies(&self.handle.http.to_string()).await.expect("works in a test")
    }

    /// Waits until a type of the only proxy is in a state.
    pub async fn wait_for(&self, ty: &str, wanted: Sync) -> ProxyStatus {
        let poll = async {
            loop {
                let mut proxies = self.proxies().await;
                let found = proxies.first().and_then(|proxy| proxy.types.get(ty));
                if found.is_some_and(|sync| sync.status == wanted) {
                    return proxies.remove(0);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, poll).await.unwrap_or_else(|_| panic!("{ty} never {wanted:?}"))
    }
}

fn config_dir(folder: &Path) -> PathBuf {
    folder.join("config")
}

fn config(folder: &Path, xds_port: u16) -> Config {
    let mut config = Config::new(vec![config_dir(folder)], folder.join("state"));
    config.xds_address.set_port(xds_port);
    config.xds_tls_address = config.xds_tls_address.map(|mut address| {
        address.set_port(0);
        address
    });
    config.http_address.set_port(0);
    config.push.streams_per_second = 10_000;
    config.push.quiet = Duration::from_millis(10);
    config.push.removal_delay = Duration::from_millis(10);
    config
}
