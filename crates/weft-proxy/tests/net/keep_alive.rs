//! An endpoint that closes kept-alive connections at random moments: what is idempotent never
//! fails, what is not is never executed twice.
//!
//! `WEFT_SOAK_REQUESTS=1000000` runs the full size.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_xds::ResourceType::{Cluster, Listener};

use crate::control::Control;
use crate::http;
use crate::rig::*;

/// Requests of the bounded run.
const REQUESTS: u64 = 20_000;
const CLIENTS: u64 = 16;

/// What the endpoint has executed: POSTs by id, and how often.
#[derive(Default)]
struct Executed {
    posts: Mutex<HashMap<u64, u32>>,
    closes: AtomicU64,
}

/// Answers requests; closes each connection some time after some answer, and now and then after it
/// has read a GET, without an answer.
async fn fickle(executed: Arc<Executed>, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut rng = SmallRng::seed_from_u64(seed);
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let rng = SmallRng::seed_from_u64(rng.random());
            tokio::spawn(serve(tcp, executed.clone(), rng));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream, executed: Arc<Executed>, mut rng: SmallRng) {
    let mut read = Vec::new();
    for served in 0.. {
        // The close races with whatever request comes.
        let patience = match rng.random_ratio(1, 4) {
            true => Duration::from_micros(rng.random_range(0..3000)),
            false => Duration::from_secs(60),
        };
        let head_end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let more = tcp.read_buf(&mut read);
            match (served, tokio::time::timeout(patience, more).await) {
                (_, Ok(Ok(1..))) => {}
                // A new connection is given its first request.
                (0, Err(_)) => {}
                _ => {
                    executed.closes.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        };
        let head = String::from_utf8(read.drain(..head_end).collect()).unwrap();
        if let Some(rest) = head.strip_prefix("POST /") {
            let id = rest.split(' ').next().unwrap().parse().unwrap();
            *executed.posts.lock().unwrap().entry(id).or_default() += 1;
        } else if served > 0 && rng.random_ratio(1, 50) {
            executed.closes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Seen {
    gets: u64,
    get_failures: u64,
    posts: u64,
    post_failures: u64,
}

async fn client(to: SocketAddr, first_id: u64, count: u64, seed: u64) -> Seen {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut tcp = connect(to).await;
    let mut seen = Seen::default();
    for id in first_id..first_id + count {
        let post = rng.random_ratio(1, 4);
        let method = if post { "POST" } else { "GET" };
        let request = format!("{method} /{id} HTTP/1.1\r\nHost: a\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let status = answer(&mut tcp).await;
        let failed = u64::from(status != 200);
        match post {
            true => {
                (seen.posts, seen.post_failures) = (seen.posts + 1, seen.post_failures + failed)
            }
            false => (seen.gets, seen.get_failures) = (seen.gets + 1, seen.get_failures + failed),
        }
        if rng.random_ratio(1, 3) {
            // The random gap in which the endpoint may close: part of what is tested.
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..3000))).await;
        }
    }
    seen
}

/// Reads one whole response; returns its status.
async fn answer(tcp: &mut TcpStream) -> u16 {
    let mut read = Vec::new();
    loop {
        assert!(tcp.read_buf(&mut read).await.unwrap() > 0, "the proxy closed the connection");
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            return head[9..12].parse().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closes_at_random_moments_fail_nothing_idempotent_and_repeat_no_post() {
    let total: u64 = match std::env::var("WEFT_SOAK_REQUESTS") {
        Ok(count) => count.parse().unwrap(),
        Err(_) => REQUESTS,
    };
    let seed: u64 = rand::rng().random();
    let executed = Arc::new(Executed::default());
    let endpoint = fickle(executed.clone(), seed).await;
    let control = tokio::task::block_in_place(|| Control::start(0));
    control.set(Cluster, static_cluster("app", &[endpoint]));
    control.set(Listener, http::listener("in", "INBOUND", "app", None));
    let proxy = plain(&control);
    proxy.ready().await;
    let to = proxy.listener("in").await;
    let each = total / CLIENTS;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| tokio::spawn(client(to, n * each, each, seed.wrapping_add(n))))
        .collect();
    let mut all = Seen::default();
    for client in clients {
        let seen = client.await.unwrap();
        all.gets += seen.gets;
        all.get_failures += seen.get_failures;
        all.posts += seen.posts;
        all.post_failures += seen.post_failures;
    }
    let closes = executed.closes.load(Ordering::Relaxed);
    let posts = executed.posts.lock().unwrap();
    let twice = posts.values().filter(|count| **count > 1).count();
    println!(
        "seed {seed}: {} GET ({} failed), {} POST ({} failed, {twice} twice), {closes} closes",
        all.gets, all.get_failures, all.posts, all.post_failures
    );
    assert_eq!(all.get_failures, 0, "seed {seed}");
    assert_eq!(twice, 0, "seed {seed}");
    assert!(closes > total / 100, "seed {seed}: the endpoint closed only {closes} connections");
    // What was sent and lost cannot be repeated; what was not sent goes to another connection.
    assert!(all.post_failures <= all.posts / 100, "seed {seed}: {} POSTs", all.post_failures);
    tokio::task::block_in_place(|| control.kill());
}
