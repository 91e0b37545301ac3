//! An open-loop client: 64 connections take turns, each request starts when it is due.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONNECTIONS: u32 = 64;
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn measure(port: u16, host: &str, per_second: u32, seconds: u32) -> anyhow::Result<()> {
    let latencies = Rc::new(RefCell::new(Vec::new()));
    let request = format!("GET /1024 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let begin = Instant::now();
    let end = begin + WARM_UP + Duration::from_secs(seconds.into());
    // Every connection has its share of the rate, shifted so that the sum is even.
    let interval = Duration::from_secs(1) * CONNECTIONS / per_second;
    let mut tasks = Vec::new();
    for number in 0..CONNECTIONS {
        let latencies = Rc::clone(&latencies);
        let first = begin + interval * number / CONNECTIONS;
        let plan = Plan { measured: begin + WARM_UP, end, first, interval };
        let request = request.clone();
        tasks.push(tokio::task::spawn_local(async move {
            connection(port, request.as_bytes(), plan, &latencies).await
        }));
    }
    for task in tasks {
        task.await??;
    }
    let (p50, p99) = super::percentiles(&mut latencies.take())?;
    println!("{p50:.0} {p99:.0}");
    Ok(())
}

/// When a connection sends.
struct Plan {
    /// Before this requests warm up.
    measured: Instant,
    end: Instant,
    first: Instant,
    interval: Duration,
}

async fn connection(
    port: u16,
    request: &[u8],
    plan: Plan,
    latencies: &RefCell<Vec<Duration>>,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut due = plan.first;
    let mut buf = vec![0; 16 * 1024];
    while due < plan.end {
        // The runtime's timer rounds to milliseconds, which is not the proxy's doing. A request
        // that is late because the one before it came back late counts from when it was due.
        let mut started = due;
        if Instant::now() < due {
            tokio::time::sleep_until(due.into()).await;
            started = Instant::now();
        }
        stream.write_all(request).await?;
        let mut got = 0;
        // The head of the reply, then its 1024 bytes.
        loop {
            let count = stream.read(&mut buf[got..]).await?;
            ensure!(count > 0, "the proxy closed a connection");
            got += count;
            let head = buf[..got].windows(4).position(|window| window == b"\r\n\r\n");
            if head.is_some_and(|at| got >= at + 4 + 1024) {
                break;
            }
        }
        ensure!(buf.starts_with(b"HTTP/1.1 200"), "not answered with 200");
        if due > plan.measured {
            latencies.borrow_mut().push(started.elapsed());
        }
        due += plan.interval;
    }
    Ok(())
}
