//! Ports, certificates and the configurations of `bench/` with both filled in.

use std::net::TcpListener;
use std::path::Path;

use anyhow::Context as _;

use super::row::Door;
use crate::process;

/// Where everything listens.
#[derive(Clone, Copy)]
pub struct Ports {
    doors: [u16; Door::ALL.len()],
    /// The second of two proxies in a row, which takes mutual TLS.
    pub second: u16,
    pub backend: Backends,
}

/// Where the backend listens.
#[derive(Clone, Copy)]
pub struct Backends {
    pub plain: u16,
    pub tls: u16,
    pub grpc: u16,
}

impl Backends {
    pub fn choose() -> anyhow::Result<Self> {
        Ok(Self { plain: free_port()?, tls: free_port()?, grpc: free_port()? })
    }
}

impl Ports {
    pub fn choose(backend: Backends) -> anyhow::Result<Self> {
        let mut doors = [0; Door::ALL.len()];
        for port in &mut doors {
            *port = free_port()?;
        }
        Ok(Self { doors, second: free_port()?, backend })
    }

    pub fn of(&self, door: Door) -> u16 {
        self.doors[door as usize]
    }
}

/// Writes a configuration of `bench/`, filled in, to `folder`; returns its path.
pub fn write(file: &str, as_name: &str, ports: &Ports, folder: &Path) -> anyhow::Result<String> {
    let path = folder.join(as_name);
    std::fs::write(&path, render(&read(file)?, ports, folder))?;
    Ok(path.display().to_string())
}

/// A file of `bench/`.
pub fn read(file: &str) -> anyhow::Result<String> {
    let path = process::root().join("bench").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Fills in ports and the folder of certificates.
pub fn render(text: &str, ports: &Ports, folder: &Path) -> String {
    let mut text = text
        .replace("@BACKEND@", &ports.backend.plain.to_string())
        .replace("@BACKEND_TLS@", &ports.backend.tls.to_string())
        .replace("@BACKEND_GRPC@", &ports.backend.grpc.to_string())
        .replace("@SECOND@", &ports.second.to_string())
        .replace("@DIR@", &folder.display().to_string());
    for door in Door::ALL {
        text = text.replace(&format!("@{}@", door.key()), &ports.of(door).to_string());
    }
    text
}

/// Envoy's configuration: `@ROUTER cluster@` stands for the HTTP filter chain to a cluster, which
/// is what differs between the bare router and the one with a sidecar's work.
pub fn write_envoy(
    file: &str,
    router: &str,
    as_name: &str,
    ports: &Ports,
    folder: &Path,
) -> anyhow::Result<String> {
    // In flow style, so that it may stand on one line anywhere.
    let router: String = router.lines().filter(|line| !line.starts_with('#')).collect();
    let mut text = String::new();
    for line in read(file)?.lines() {
        match line.split_once("@ROUTER ") {
            Some((before, after)) => {
                let (cluster, rest) = after.split_once('@').context("@ROUTER without its end")?;
                let chain = router.replace("@CLUSTER@", cluster);
                text.push_str(&format!("{before}{chain}{rest}\n"));
            }
            None => text.push_str(&format!("{line}\n")),
        }
    }
    let path = folder.join(as_name);
    std::fs::write(&path, render(&text, ports, folder))?;
    Ok(path.display().to_string())
}

/// An authority with a server's and a client's P-256 certificate, in the forms that the
/// configurations want.
pub fn make_certificates(folder: &Path) -> anyhow::Result<()> {
    let script = r#"
        set -e
        new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "$@"; }
        new -x509 -keyout ca-key.pem -out ca.pem -days 30 -subj /CN=bench-authority
        issue() { # NAME KEY SUBJECT EXTENSIONS
            new -keyout "$2" -out request.pem -subj "/CN=$3"
            printf '%s\n' "$4" > extensions.txt
            openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
                -days 30 -extfile extensions.txt -out "$1"
        }
        issue cert.pem key.pem bench.local \
            'subjectAltName=DNS:bench.local,DNS:mtls.local,DNS:app.default.svc.cluster.local'
        issue client.pem client-key.pem client 'subjectAltName=DNS:client.local'
        cat cert.pem key.pem > both.pem
        cat client.pem client-key.pem > client-both.pem
    "#;
    let output = std::process::Command::new("sh")
        .current_dir(folder)
        .args(["-c", script])
        .output()
        .context("cannot start sh")?;
    anyhow::ensure!(
        output.status.success(),
        "cannot make certificates: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
