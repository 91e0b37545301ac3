//! HTTP/2 abuse at the socket: each attack for a while against Weft and against stock Envoy, with
//! an ordinary client beside it. Prints CPU, memory and what the ordinary client saw. Whatever is
//! sent, memory stays bounded and the proxy serves on. `WEFT_ABUSE_SECONDS` makes each attack
//! longer; figures are worth reading on a quiet machine only.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use weft_testkit::{
    backend, free_port, peer as peers,
    process::{Process, resident_bytes},
    relay,
};

use super::{
    cases::{self, attacks::Attack},
    peer,
};
use crate::harness::Proxy;

/// Connections that attack at once; each comes back when it was thrown out.
const ATTACKERS: usize = 4;
/// What an attack may make a proxy grow by. Each attacker's buffers and windows are far below.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Time between two requests of the ordinary client.
const PACE: Duration = Duration::from_millis(4);
/// What one of them may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an attack came to on one proxy.
#[derive(Debug, Default)]
struct Cost {
    cpu: Duration,
    sent_bytes: u64,
    thrown_out: u64,
    grown_bytes: i64,
    p50: Duration,
    p99: Duration,
    failed: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_abuse_is_bounded() {
    const TEST: &str = "http2_abuse_is_bounded";
    let Some(envoy) = peers::envoy(TEST) else { return };
    let seconds = std::env::var("WEFT_ABUSE_SECONDS").ok().and_then(|text| text.parse().ok());
    let span = Duration::from_secs_f64(seconds.unwrap_or(0.15));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let app = backend::http("app", "127.0.0.1:0").await;
    let (weft, _mesh, proxy) = super::weft(app.address).await;
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let relay = relay::envoy_http2(&envoy, folder.path(), &[(listen, app.address)]);
    let Proxy::Weft { process, .. } = &proxy else { unreachable!("ours was asked for") };

    println!(
        "{:24} {:6} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9}",
        "attack", "", "CPU ms/s", "MB/s sent", "ended", "grown kB", "p50 us", "p99 us"
    );
    for attack in cases::attacks::all() {
        for (name, address, process) in [("Weft", weft, process), ("Envoy", listen, &relay)] {
            let cost = measure(address, process, &attack, span).await;
            let per_second = |amount: f64| amount / span.as_secs_f64();
            println!(
                "{:24} {:6} {:9.0} {:9.1} {:7} {:9} {:9} {:9}",
                attack.name,
                name,
                per_second(cost.cpu.as_secs_f64() * 1e3),
                per_second(cost.sent_bytes as f64 / 1e6),
                cost.thrown_out,
                cost.grown_bytes / 1024,
                cost.p50.as_micros(),
                cost.p99.as_micros(),
            );
            if name == "Weft" {
                assert!(cost.grown_bytes < GROWTH_BYTES_MAX as i64, "{}: {cost:?}", attack.name);
                assert_eq!(cost.failed, 0, "{}: an ordinary request failed", attack.name);
                assert!(
                    cost.thrown_out > 0 || !attack.ends,
                    "{}: nobody was thrown out: {cost:?}",
                    attack.name
                );
            }
            let after = peer::run(address, &cases::plain(), PATIENCE).await;
            assert_eq!(after, Ok(()), "{name} serves on after {}", attack.name);
        }
    }
}

async fn measure(address: SocketAddr, process: &Process, attack: &Attack, span: Duration) -> Cost {
    let stop = Arc::new(AtomicBool::new(false));
    let (sent, thrown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (cpu, resident) = (cpu_time(process.pid()), resident_bytes(process.pid()));
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|_| {
            let (attack, stop) = (attack.clone(), stop.clone());
            let (sent, thrown) = (sent.clone(), thrown.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    strike(address, &attack, &stop, &sent, &thrown).await;
                }
            })
        })
        .collect();
    // An attack that proves bounded only once it has been thrown out is given the time.
    let (mut times, mut failed) = (Vec::new(), 0);
    let (start, patience) = (Instant::now(), Duration::from_secs(30));
    while start.elapsed() < span
        || (attack.ends && thrown.load(Ordering::Relaxed) == 0 && start.elapsed() < patience)
    {
        let asked = Instant::now();
        match peer::run(address, &cases::plain(), PATIENCE).await {
            Ok(()) => times.push(asked.elapsed()),
            Err(_) => failed += 1,
        }
        tokio::time::sleep(PACE).await;
    }
    let grown_bytes = resident_bytes(process.pid()) as i64 - resident as i64;
    let spent = cpu_time(process.pid()).saturating_sub(cpu);
    // Of a longer run, the share of the span.
    let cpu = spent.mul_f64(span.as_secs_f64() / start.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.await.expect("an attacker does not panic");
    }
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    Cost {
        cpu,
        sent_bytes: sent.load(Ordering::Relaxed),
        thrown_out: thrown.load(Ordering::Relaxed),
        grown_bytes,
        p50: at(0.5).unwrap_or_default(),
        p99: at(0.99).unwrap_or_default(),
        failed,
    }
}

/// One connection of an attacker, until it is thrown out or told to stop.
async fn strike(
    address: SocketAddr,
    attack: &Attack,
    stop: &AtomicBool,
    sent: &AtomicU64,
    thrown: &AtomicU64,
) {
    let Ok(stream) = TcpStream::connect(address).await else { return };
    let (mut read, mut write) = stream.into_split();
    let reads = attack.reads;
    let reader = tokio::spawn(async move {
        let mut part = vec![0; 64 * 1024];
        if reads {
            while !matches!(read.read(&mut part).await, Ok(0) | Err(_)) {}
        } else {
            std::future::pending::<()>().await;
        }
    });
    if write.write_all(&attack.opening).await.is_ok() {
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let bytes = (attack.round)(round);
            round += 1;
            match timeout(Duration::from_millis(50), write.write_all(&bytes)).await {
                Ok(Ok(())) => drop(sent.fetch_add(bytes.len() as u64, Ordering::Relaxed)),
                Ok(Err(_)) => {
                    thrown.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // The proxy holds the attacker back; a half-written round cannot go on.
                Err(_) => {
                    let held = wait_for_end(&mut write, stop).await;
                    thrown.fetch_add(u64::from(held), Ordering::Relaxed);
                    break;
                }
            }
            if reader.is_finished() {
                thrown.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
    }
    reader.abort();
}

/// Whether the proxy ends a connection that it has stopped reading, before the attack is over.
async fn wait_for_end(write: &mut tokio::net::tcp::OwnedWriteHalf, stop: &AtomicBool) -> bool {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(Err(_)) = timeout(Duration::from_millis(20), write.write_all(&[0; 1024])).await {
            return true;
        }
    }
    false
}

/// User and system time of a process.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<u64> =
        after_name.split(' ').skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    // Linux reports hundredths of a second.
    Duration::from_millis(fields.iter().sum::<u64>() * 10)
}
