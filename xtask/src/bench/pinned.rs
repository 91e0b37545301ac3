//! A child process bound to cores, with its CPU time and memory read from `/proc`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Clock ticks per second in `/proc/PID/stat`: 100 on every Linux, whatever the kernel's own rate.
const TICKS_PER_SECOND: u64 = 100;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Killed when dropped.
pub struct Pinned {
    child: Child,
    /// The first process may be a launcher whose child does the work.
    pids: Vec<u32>,
    name: String,
}

impl Pinned {
    /// Starts `program` on `cores` (`1`, `0,1`); its output goes to `log`.
    pub fn start(
        cores: &str,
        program: &Path,
        args: &[String],
        log: &Path,
    ) -> anyhow::Result<Pinned> {
        let output = std::fs::File::create(log)?;
        let child = Command::new("taskset")
            .args(["-c", cores, "sh", "-c"])
            .args([r#"ulimit -n "$(ulimit -Hn)"; exec "$@""#, "sh"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pids = vec![child.id()];
        let name = format!("{} (log: {})", program.display(), log.display());
        Ok(Pinned { child, pids, name })
    }

    /// Waits until `port` answers a request for `host` with status 200.
    pub fn ready(&mut self, port: u16, host: &str) -> anyhow::Result<()> {
        self.wait(port, |port| answers(port, host))
    }

    /// Waits until `port` takes connections.
    pub fn listening(&mut self, port: u16) -> anyhow::Result<()> {
        self.wait(port, |port| TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    fn wait(&mut self, port: u16, good: impl Fn(u16) -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + READY_WITHIN;
        while !good(port) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended: {status}", self.name);
            }
            if Instant::now() > end {
                bail!("{} does not answer on port {port}", self.name);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.pids = tree(self.child.id());
        Ok(())
    }

    /// User and system time so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = 0;
        for pid in &self.pids {
            let stat = format!("/proc/{pid}/stat");
            sum += ticks(stat.as_ref()).with_context(|| format!("{} is gone", self.name))?;
        }
        Ok(Duration::from_millis(sum * 1000 / TICKS_PER_SECOND))
    }

    /// CPU time so far of each thread that has used any, most first.
    pub fn thread_cpu(&self) -> anyhow::Result<Vec<Duration>> {
        let mut threads = Vec::new();
        for pid in &self.pids {
            for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                threads.push(Duration::from_millis(
                    ticks(&entry?.path().join("stat"))? * 1000 / TICKS_PER_SECOND,
                ));
            }
        }
        threads.sort_by(|a, b| b.cmp(a));
        Ok(threads)
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.status("VmRSS:")
    }

    /// Resident memory that no file backs, in bytes: heap and stacks.
    pub fn anonymous(&self) -> anyhow::Result<u64> {
        self.status("RssAnon:")
    }

    fn status(&self, line_name: &str) -> anyhow::Result<u64> {
        let mut kilobytes = 0;
        for pid in &self.pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("{} is gone", self.name))?;
            kilobytes += status
                .lines()
                .find_map(|line| line.strip_prefix(line_name))
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(kilobytes * 1024)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for pid in self.pids.iter().skip(1) {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers(port: u16, host: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = format!("GET /2 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut reply = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut reply).is_ok()
        && reply == *b"HTTP/1.1 200"
}

/// User and system time of a `stat` file.
fn ticks(path: &Path) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(path)?;
    // The command, in parentheses, may hold spaces; the state is field 3.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    Ok(fields.skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum())
}

/// `root` and everything below it.
fn tree(root: u32) -> Vec<u32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        next += 1;
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        pids.extend(children.split_whitespace().filter_map(|text| text.parse::<u32>().ok()));
    }
    pids
}
