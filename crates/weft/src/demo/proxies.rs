//! The demo's proxies: child processes of this same program, restarted when they end, gone when
//! the demo is gone.
//!
//! Each child has a pipe as standard input. It ends when the pipe closes, so that even a killed
//! demo leaves nothing behind. Children are their own process group: Ctrl-C reaches the demo
//! alone, which then ends them in order.

use super::certificates::private;
use super::config::labels_of;
use super::layout::{Instance, Layout, Role};
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause before a proxy that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// How long proxies may take to end before they are killed.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// All proxies of a demo.
pub(super) struct Proxies {
    list: Vec<Proxy>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// One proxy as others see it.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) instance: &'static Instance,
    pub(super) log: PathBuf,
    running: Arc<Running>,
}

/// What supervision tells about a proxy.
#[derive(Debug, Default)]
struct Running {
    /// Process id; 0 between two.
    pid: AtomicU32,
    restarts: AtomicU32,
}

impl Proxy {
    pub(super) fn pid(&self) -> u32 {
        self.running.pid.load(Ordering::Relaxed)
    }

    /// How often it ended and was started again.
    pub(super) fn restarts(&self) -> u32 {
        self.running.restarts.load(Ordering::Relaxed)
    }

    /// The end of what it printed.
    pub(super) fn last_words(&self) -> String {
        const LINES: usize = 5;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Proxies {
    /// Starts a proxy for every instance that has one. `token` mints its join token.
    pub(super) fn start(
        layout: &Layout,
        dir: &Path,
        token: impl Fn(&Instance) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let mut proxies =
            Self { list: Vec::new(), stop: CancellationToken::new(), tasks: JoinSet::new() };
        for instance in layout.instances().iter().filter(|i| i.role.has_proxy()) {
            let home = dir.join("proxies").join(instance.name);
            std::fs::create_dir_all(&home)
                .with_context(|| format!("creating {}", home.display()))?;
            let token_file = home.join("token");
            private(&token_file, &token(instance)?)?;
            let launch = Launch { layout: *layout, instance, home, token_file };
            proxies.supervise(launch)?;
        }
        Ok(proxies)
    }

    pub(super) fn list(&self) -> &[Proxy] {
        &self.list
    }

    fn supervise(&mut self, launch: Launch) -> anyhow::Result<()> {
        let running = Arc::<Running>::default();
        let (instance, log) = (launch.instance, launch.log());
        let started = launch.spawn()?;
        running.pid.store(started.child.id().unwrap_or(0), Ordering::Relaxed);
        self.list.push(Proxy { instance, log, running: running.clone() });
        self.tasks.spawn(keep_running(launch, started, running, self.stop.clone()));
        Ok(())
    }

    /// Ends all proxies, orderly if they can, and waits for them.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn keep_running(
    launch: Launch,
    mut started: Started,
    running: Arc<Running>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            _ = started.child.wait() => {}
            () = stop.cancelled() => return end(&mut started.child).await,
        }
        running.pid.store(0, Ordering::Relaxed);
        running.restarts.fetch_add(1, Ordering::Relaxed);
        super::progress(&format!("the proxy of {} ended; starting it again", launch.instance.name));
        started = loop {
            tokio::select! {
                () = tokio::time::sleep(RESTART_PAUSE) => {}
                () = stop.cancelled() => return,
            }
            match launch.spawn() {
                Ok(started) => break started,
                Err(error) => super::progress(&format!("{error:#}")),
            }
        };
        running.pid.store(started.child.id().unwrap_or(0), Ordering::Relaxed);
    }
}

async fn end(child: &mut Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended this instant.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// A running child, and the pipe whose end is its end.
struct Started {
    child: Child,
    _lifeline: ChildStdin,
}

/// How to start one proxy, again and again.
struct Launch {
    layout: Layout,
    instance: &'static Instance,
    home: PathBuf,
    token_file: PathBuf,
}

impl Launch {
    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    fn spawn(&self) -> anyhow::Result<Started> {
        let program = std::env::current_exe().context("finding this program")?;
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.with_context(|| format!("opening {}", self.log().display()))?;
        let mut command = Command::new(program);
        command
            .args(self.arguments())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let name = self.instance.name;
        let mut child = command.spawn().with_context(|| format!("starting the proxy of {name}"))?;
        // Taken out, since waiting for the child would close it.
        let lifeline = child.stdin.take().context("the child has a pipe as input")?;
        Ok(Started { child, _lifeline: lifeline })
    }

    fn arguments(&self) -> Vec<String> {
        let Self { layout, instance, home, token_file } = self;
        let kind = if instance.role == Role::Ingress { "gateway" } else { "sidecar" };
        let labels: Vec<String> =
            labels_of(instance).iter().map(|(name, value)| format!("{name}={value}")).collect();
        vec![
            "proxy".into(),
            kind.into(),
            format!("--xds={}", layout.xds()),
            format!("--name={}", instance.name),
            format!("--namespace={}", instance.namespace),
            format!("--service-account={}", instance.account),
            format!("--workload={}", instance.workload),
            format!("--ip={}", layout.ip(instance)),
            format!("--labels={}", labels.join(",")),
            "--interception=none".into(),
            format!("--token-file={}", token_file.display()),
            format!("--state-dir={}", home.join("state").display()),
            format!("--admin-address={}", layout.admin(instance)),
            "--concurrency=1".into(),
            "--drain-time=0s".into(),
            "--termination-grace=2s".into(),
            "--exit-with-stdin".into(),
        ]
    }
}
