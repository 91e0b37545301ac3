//! `weft wait` and `weft drain`: what a pod's lifecycle hooks run beside the proxy.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;

/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// The proxy's readiness port.
    #[arg(long, env = "WEFT_READINESS_PORT", default_value = "15021", value_name = "PORT")]
    readiness_port: u16,
    /// Seconds to wait at most.
    #[arg(long, default_value = "60", value_name = "SECONDS")]
    timeout_seconds: u64,
    /// Milliseconds between two questions.
    #[arg(long, default_value = "500", value_name = "MS")]
    period_millis: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The proxy's admin port.
    #[arg(long, default_value = "15000", value_name = "PORT")]
    admin_port: u16,
}

/// Waits until the proxy is ready; an error after the timeout.
pub(crate) fn wait(args: &WaitArgs) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.timeout_seconds);
    let start = Instant::now();
    loop {
        let said = match ask(args.readiness_port, "GET /healthz/ready") {
            Ok(head) if head.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(head) => head.lines().next().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        if start.elapsed() >= limit {
            bail!("the proxy is not ready after {limit:?}: {said}");
        }
        std::thread::sleep(Duration::from_millis(args.period_millis));
    }
}

/// Tells the proxy that its pod is leaving.
pub(crate) fn drain(args: &DrainArgs) -> anyhow::Result<()> {
    let head = ask(args.admin_port, "POST /drain_listeners")?;
    match head.starts_with("HTTP/1.1 200") {
        true => Ok(()),
        false => bail!("the proxy said {:?}", head.lines().next().unwrap_or_default()),
    }
}

/// One request on loopback; the answer from its first line on.
fn ask(port: u16, what: &str) -> std::io::Result<String> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&to, QUESTION)?;
    stream.set_read_timeout(Some(QUESTION))?;
    let request = format!(
        "{what} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
