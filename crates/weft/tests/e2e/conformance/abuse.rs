//! HTTP/2 abuse at the socket: each attack for a while against Weft, with an ordinary client beside
//! it. Whatever is sent, memory stays bounded, who floods is thrown out, and the proxy serves on.
//!
//! `WEFT_ABUSE_SECONDS` makes each attack that long, takes stock Envoy as well, binds the proxies to
//! core 1 and everything else to core 0, and prints CPU, memory and the ordinary client's times for
//! both. The proxies, the ordinary client and the application go before other work, so that the times
//! are not those of the attackers' own core. Such figures are worth reading of release programs only;
//! `WEFT_BINARY` takes a release build of `weft`, and `WEFT_ABUSE_ONLY` names one attack.

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
    time::{Instant, sleep, timeout},
};
use weft_testkit::{
    backend, free_port, peer as peers,
    process::{Process, before_others, bind, measured_on, resident_bytes},
    relay,
};

use super::{
    cases::{self, attacks::Attack},
    peer,
};
use crate::harness::Proxy;

/// Connections that attack at once.
const ATTACKERS: usize = 4;
/// Each sends a round this often: 160,000 frames a second together.
const ROUND_EVERY: Duration = Duration::from_millis(5);
/// One that was thrown out is back after this.
const BACK_AFTER: Duration = Duration::from_millis(50);
/// What an attack may make a proxy grow by. Each attacker's buffers and windows are far below.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Time between two requests of the ordinary client, which keeps its connection.
const PACE: Duration = Duration::from_millis(2);
/// What one of them may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an attack lasts that is not measured, unless nobody was thrown out yet.
const SHORT: Duration = Duration::from_millis(60);

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
    lasted: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_abuse_is_bounded() {
    let seconds = std::env::var("WEFT_ABUSE_SECONDS").ok().and_then(|text| text.parse().ok());
    let span = seconds.map_or(SHORT, Duration::from_secs_f64);
    if seconds.is_some() {
        bind(std::process::id(), "0");
    }
    let app = app(seconds.is_some()).await;
    let (weft, _mesh, proxy) = super::weft(app).await;
    let Proxy::Weft { process, .. } = &proxy else { unreachable!("ours was asked for") };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let envoy = match seconds {
        Some(_) => peers::envoy("http2_abuse_is_bounded"),
        None => None,
    };
    let envoy = envoy.map(|envoy| relay::envoy_http2(&envoy, folder.path(), &[(listen, app)]));
    if seconds.is_some() {
        measured_on(process.pid(), "1");
        envoy.iter().for_each(|envoy| measured_on(envoy.pid(), "1"));
    }

    println!("| attack | proxy | CPU ms/s | MB/s | thrown out/s | grown KiB | p50 µs | p99 µs |");
    println!("|---|---|---|---|---|---|---|---|");
    // Without any attack once more in the end: what the machine alone makes of the times.
    let only = std::env::var("WEFT_ABUSE_ONLY").unwrap_or_default();
    let attacks = cases::attacks::all().into_iter().filter(|attack| attack.name.contains(&only));
    let attacks = attacks.map(Some);
    let again = seconds.map(|_| None);
    for attack in [None].into_iter().chain(attacks).chain(again) {
        let name = attack.as_ref().map_or("none", |attack| attack.name);
        let ends = attack.as_ref().is_some_and(|attack| attack.ends);
        let cost = measure(weft, process, attack.as_ref(), span, ends).await;
        print(name, "Weft", &cost);
        assert!(cost.grown_bytes < GROWTH_BYTES_MAX as i64, "{name}: {cost:?}");
        assert_eq!(cost.failed, 0, "{name}: an ordinary request failed");
        assert!(cost.thrown_out > 0 || !ends, "{name}: nobody was thrown out: {cost:?}");
        if let Some(envoy) = &envoy {
            print(name, "Envoy", &measure(listen, envoy, attack.as_ref(), span, false).await);
        }
    }
}

fn print(attack: &str, proxy: &str, cost: &Cost) {
    let per_second = |amount: f64| amount / cost.lasted.as_secs_f64();
    println!(
        "| {attack} | {proxy} | {:.0} | {:.1} | {:.0} | {} | {} | {} |",
        per_second(cost.cpu.as_secs_f64() * 1e3),
        per_second(cost.sent_bytes as f64 / 1e6),
        per_second(cost.thrown_out as f64),
        cost.grown_bytes / 1024,
        cost.p50.as_micros(),
        cost.p99.as_micros(),
    );
}

/// The application, on a thread of its own.
async fn app(measured: bool) -> SocketAddr {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        if measured {
            before_others();
        }
        runtime().block_on(async {
            let app = backend::http("app", "127.0.0.1:0").await;
            let _ = tell.send(app.address);
            std::future::pending::<()>().await;
        });
    });
    told.await.expect("it starts")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread")
}

/// `ends`: goes on until somebody was thrown out.
async fn measure(
    address: SocketAddr,
    process: &Process,
    attack: Option<&Attack>,
    span: Duration,
    ends: bool,
) -> Cost {
    let measured = span != SHORT;
    let stop = Arc::new(AtomicBool::new(false));
    let (sent, thrown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (cpu, resident) = (cpu_time(process.pid()), resident_bytes(process.pid()));
    let start = Instant::now();
    let ordinary = {
        let stop = stop.clone();
        std::thread::spawn(move || ordinary(address, &stop, measured))
    };
    let attackers: Vec<_> = (0..attack.map_or(0, |_| ATTACKERS))
        .filter_map(|_| attack.cloned())
        .map(|attack| {
            let (stop, sent, thrown) = (stop.clone(), sent.clone(), thrown.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    strike(address, &attack, &stop, &sent, &thrown).await;
                    sleep(BACK_AFTER).await;
                }
            })
        })
        .collect();
    // An attack that proves bounded only once it has been thrown out is given the time.
    while start.elapsed() < span
        || (ends && thrown.load(Ordering::Relaxed) == 0 && start.elapsed() < PATIENCE)
    {
        sleep(PACE).await;
    }
    let lasted = start.elapsed();
    let cpu = cpu_time(process.pid()).saturating_sub(cpu);
    let grown_bytes = resident_bytes(process.pid()) as i64 - resident as i64;
    stop.store(true, Ordering::Relaxed);
    for attacker in attackers {
        attacker.await.expect("an attacker does not panic");
    }
    let (mut times, failed) = tokio::task::spawn_blocking(|| ordinary.join())
        .await
        .expect("a thread that waits")
        .expect("the ordinary client does not panic");
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
        lasted,
    }
}

/// The ordinary client, on a thread and a connection of its own: how long each request took, and
/// how many failed.
fn ordinary(address: SocketAddr, stop: &AtomicBool, measured: bool) -> (Vec<Duration>, usize) {
    if measured {
        before_others();
    }
    runtime().block_on(async {
        let (mut times, mut failed, mut client) = (Vec::new(), 0, None);
        loop {
            let asked = Instant::now();
            let kept = match &mut client {
                Some(client) => client,
                None => match peer::Client::connect(address, PATIENCE).await {
                    Ok(connected) => client.insert(connected),
                    Err(_) => {
                        failed += 1;
                        sleep(PACE).await;
                        continue;
                    }
                },
            };
            match kept.ask(PATIENCE).await {
                true => times.push(asked.elapsed()),
                false => {
                    failed += 1;
                    client = None;
                }
            }
            // At least one request sees the attack out.
            if stop.load(Ordering::Relaxed) {
                return (times, failed);
            }
            sleep(PACE).await;
        }
    })
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
        let mut due = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            due = (due + ROUND_EVERY).max(Instant::now());
            tokio::time::sleep_until(due).await;
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
