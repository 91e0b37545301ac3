//! What reports of Mixer's clients cost: a real `weft control`, and so many reports a second from
//! this process. Started by `cargo xtask bench mixer` with WEFT REPORTS-PER-SECOND SECONDS; prints
//! the control plane's CPU time and how long reports took.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use prost_types::Duration as Time;
use weft_xds::connect::Target;
use weft_xds::mixer::{CompressedAttributes, REPORT, ReportRequest, ReportResponse};
use weft_xds::unary;

/// Proxies that report at the same time.
const CLIENTS: u32 = 20;
/// Different callers, services and paths.
const CALLERS: u32 = 50;
const START_MAX: Duration = Duration::from_secs(20);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [weft, rate, seconds] = args.as_slice() else { bail!("WEFT REPORTS-PER-SECOND SECONDS") };
    let (rate, seconds): (u32, u32) = (rate.parse()?, seconds.parse()?);
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let control = Killed(start(weft, folder.path(), port)?);
    let address = format!("http://127.0.0.1:{port}");
    until_served(&address).await?;

    let pause = Duration::from_secs(1) * CLIENTS / rate.max(1);
    let before = cpu(&control)?;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let channel = Target::plain(&address).connect().await?;
        clients.push(tokio::spawn(async move {
            let mut times = Vec::new();
            let mut ticks = tokio::time::interval(pause);
            for number in 0..rate * seconds / CLIENTS {
                ticks.tick().await;
                let sent = Instant::now();
                let message = report(client * 1000 + number);
                let answer: Result<ReportResponse, _> =
                    unary::call(channel.clone(), REPORT, (None, None), message).await;
                answer?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    let (took, used) = (begun.elapsed(), cpu(&control)? - before);
    times.sort_unstable();
    let quantile = |share: usize| times[(times.len() - 1) * share / 100];
    println!("### Reports of Mixer's clients\n");
    println!("| reports/s | CPU, cores | p50 | p99 |\n|---|---|---|---|");
    println!(
        "| {:.0} | {:.3} | {:.2?} | {:.2?} |",
        times.len() as f64 / took.as_secs_f64(),
        used.as_secs_f64() / took.as_secs_f64(),
        quantile(50),
        quantile(99)
    );
    Ok(())
}

fn start(weft: &str, folder: &Path, port: u16) -> anyhow::Result<Child> {
    let config = folder.join("config");
    std::fs::create_dir(&config)?;
    Command::new(weft)
        .args(["control", "--xds-address=127.0.0.1:0", "--xds-tls-address=127.0.0.1:0"])
        .args(["--http-address=127.0.0.1:0", "--log-level=error"])
        .arg(format!("--mixer-address=127.0.0.1:{port}"))
        .arg(format!("--config-dir={}", config.display()))
        .arg(format!("--state-dir={}", folder.join("state").display()))
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {weft}"))
}

async fn until_served(address: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    while Target::plain(address).connect().await.is_err() {
        if begun.elapsed() > START_MAX {
            bail!("the control plane does not listen at {address}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// User and system time, in clock ticks of 10 ms.
fn cpu(control: &Killed) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", control.0.id()))?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// One request, as an Envoy of Istio 1.1 tells of it: 30 attributes, half of them words of its own.
fn report(number: u32) -> ReportRequest {
    let caller = number % CALLERS;
    let texts: [(i32, String); 15] = [
        // Numbers of the global dictionary.
        (3, format!("kubernetes://caller-{caller}-x.shop")),
        (4, "shop".into()),
        (176, format!("cluster.local/ns/shop/sa/caller-{caller}")),
        (154, format!("kubernetes://service-{caller}-y.shop")),
        (155, "shop".into()),
        (195, format!("service-{caller}.shop.svc.cluster.local")),
        (16, format!("00000000-0000-0000-0000-{number:012}")),
        (17, format!("/users/{number}/orders")),
        (18, format!("service-{caller}:8080")),
        (19, "GET".into()),
        (22, "http".into()),
        (25, "Go-http-client/1.1".into()),
        (131, "http".into()),
        (203, "inbound".into()),
        (200, "0".into()),
    ];
    let (mut words, mut strings) = (Vec::new(), HashMap::new());
    for (name, text) in texts {
        words.push(text);
        strings.insert(name, -(words.len() as i32));
    }
    let code = if number.is_multiple_of(100) { 503 } else { 200 };
    let attributes = CompressedAttributes {
        strings,
        int64s: [(30, code), (171, 300), (172, 1200), (23, 0), (27, 1000)].into(),
        bools: [(179, true)].into(),
        durations: [(29, Time { seconds: 0, nanos: 3_000_000 })].into(),
        bytes: [(0, vec![10, 0, 0, 7]), (150, vec![10, 0, 0, 8])].into(),
        ..Default::default()
    };
    ReportRequest { attributes: vec![attributes], default_words: words, ..Default::default() }
}
