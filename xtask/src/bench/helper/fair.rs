//! Small calls on one HTTP/2 connection, first alone, then beside a download on the same
//! connection that is read at a steady rate.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;

use super::grpc::{self, Call};

/// Small calls per second, one at a time.
const CALLS: u32 = 500;
/// Read of the download every millisecond: 100 MB/s, which every proxy and this client can bear
/// on one core, so that what is seen is the order of frames and not a full core.
const PART: usize = 100_000;
const MESSAGE: usize = 100;

pub async fn measure(port: u16, host: &str, seconds: u32) -> anyhow::Result<()> {
    let sender = grpc::connect(port).await?;
    // The first calls pay for connections and caches.
    calls(&sender, host, Duration::from_millis(500)).await?;
    let length = Duration::from_secs(seconds.into());
    let mut alone = calls(&sender, host, length).await?;
    let reader = {
        let (sender, host) = (sender.clone(), host.to_owned());
        tokio::task::spawn_local(async move { download(&sender, &host).await })
    };
    let beside = calls(&sender, host, length).await;
    if reader.is_finished() {
        reader.await??;
        anyhow::bail!("the download ended early");
    }
    reader.abort();
    let mut beside = beside?;
    let (alone, beside) = (super::percentiles(&mut alone)?, super::percentiles(&mut beside)?);
    println!("{:.0} {:.0} {:.0} {:.0}", alone.0, alone.1, beside.0, beside.1);
    Ok(())
}

async fn calls(
    sender: &SendRequest<Bytes>,
    host: &str,
    length: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let message = grpc::message(MESSAGE);
    let mut times = Vec::new();
    let mut due = Instant::now();
    let end = due + length;
    while Instant::now() < end {
        tokio::time::sleep_until(due.into()).await;
        let begun = Instant::now();
        grpc::unary(sender, host, &message).await?;
        times.push(begun.elapsed());
        due = (due + Duration::from_secs(1) / CALLS).max(begun);
    }
    Ok(times)
}

/// More than can be read in any run.
const ENDLESS: usize = 1 << 40;

async fn download(sender: &SendRequest<Bytes>, host: &str) -> anyhow::Result<()> {
    let mut call = Call::open(sender, host, &Call::download_path(ENDLESS)).await?;
    call.send.send_data(Bytes::new(), true)?;
    let (_, mut body) = call.answered().await?;
    let mut due = Instant::now();
    loop {
        grpc::read(&mut body, PART).await?;
        due += Duration::from_millis(1);
        tokio::time::sleep_until(due.into()).await;
    }
}
