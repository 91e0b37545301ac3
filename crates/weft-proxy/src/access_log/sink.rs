//! Targets of access logs and the threads that write them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use weft_telemetry::{Counter, Registry};
use weft_traffic::access_log::LogTarget;

/// Lines that one worker may have waiting for one target.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// From here on the writer does not wait for more.
const BUFFER_BYTES_URGENT: usize = BUFFER_BYTES_MAX / 4;
/// How long the writer lets lines gather, so that a busy proxy writes seldom and much.
const GATHER: Duration = Duration::from_millis(100);
/// Files that one process logs to.
const TARGETS_MAX: usize = 64;
/// How long the end of the process waits for a target to take what is left.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The targets of one process. Cheap to clone.
#[derive(Clone)]
pub struct LogSinks(Arc<Sinks>);

struct Sinks {
    registry: Registry,
    targets: Mutex<HashMap<LogTarget, Arc<Target>>>,
    refused: Counter,
}

/// One target: where workers' buffers and the writer's thread meet.
struct Target {
    kind: LogTarget,
    buffers: Mutex<Vec<Arc<Buffer>>>,
    writer: OnceLock<Thread>,
    /// The writer sleeps until somebody has something.
    idle: AtomicBool,
    /// The writer is not to wait for more.
    urgent: AtomicBool,
    reopen: AtomicBool,
    closing: AtomicBool,
    /// The writer has ended.
    done: Arc<(Mutex<bool>, Condvar)>,
    written: Counter,
    dropped: Counter,
    failed: Counter,
}

/// What one worker has for one target. The lock is held to append or to take, never while writing.
#[derive(Default)]
struct Buffer(Mutex<Batch>);

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// One worker's way to the targets.
pub struct LogWriter {
    sinks: LogSinks,
    open: RefCell<Vec<(Arc<Target>, Arc<Buffer>)>>,
}

impl LogSinks {
    /// Counts into `registry`.
    pub fn new(registry: &Registry) -> LogSinks {
        LogSinks(Arc::new(Sinks {
            registry: registry.clone(),
            targets: Mutex::default(),
            refused: registry.counter(
                "weft_proxy_access_log_refused_total",
                "Lines for more different files than one proxy writes.",
                &[],
            ),
        }))
    }

    /// A worker's own way.
    pub fn writer(&self) -> LogWriter {
        LogWriter { sinks: self.clone(), open: RefCell::default() }
    }

    /// Files are opened again with their next line, whatever happened to the old ones.
    pub fn reopen(&self) {
        for target in lock(&self.0.targets).values() {
            target.reopen.store(true, Ordering::Relaxed);
            target.wake(true);
        }
    }

    /// Writes what is left. A target that takes nothing is given up.
    pub fn close(&self) {
        let targets: Vec<Arc<Target>> = lock(&self.0.targets).drain().map(|(_, one)| one).collect();
        for target in &targets {
            target.closing.store(true, Ordering::Release);
            target.wake(true);
        }
        let deadline = Instant::now() + LAST_WRITE;
        for target in &targets {
            let (done, ended) = &*target.done;
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = ended.wait_timeout_while(lock(done), left, |done| !*done);
        }
    }

    /// None: there are too many already.
    fn target(&self, kind: &LogTarget) -> Option<Arc<Target>> {
        let mut targets = lock(&self.0.targets);
        if let Some(known) = targets.get(kind) {
            return Some(known.clone());
        }
        if targets.len() >= TARGETS_MAX {
            return None;
        }
        let target = Target::start(kind, &self.0.registry)?;
        targets.insert(kind.clone(), target.clone());
        Some(target)
    }
}

impl LogWriter {
    /// Hands a line on, its end included.
    pub fn write(&self, kind: &LogTarget, line: &[u8]) {
        let mut open = self.open.borrow_mut();
        if let Some((target, buffer)) = open.iter().find(|(target, _)| target.kind == *kind) {
            return target.take(buffer, line);
        }
        let Some(target) = self.sinks.target(kind) else { return self.sinks.0.refused.inc() };
        let buffer = Arc::<Buffer>::default();
        lock(&target.buffers).push(buffer.clone());
        target.take(&buffer, line);
        open.push((target, buffer));
    }
}

impl Target {
    fn start(kind: &LogTarget, registry: &Registry) -> Option<Arc<Target>> {
        let name = match kind {
            LogTarget::Stdout => "/dev/stdout",
            LogTarget::Stderr => "/dev/stderr",
            LogTarget::File(path) => path,
            // Nobody hands these on to here.
            LogTarget::Service(_) => return None,
        };
        let counter = |metric, help| registry.counter(metric, help, &[("target", name)]);
        let lost = |reason| {
            registry.counter(
                "weft_proxy_access_log_dropped_total",
                "Access log lines lost: the target did not keep up, or could not be written.",
                &[("target", name), ("reason", reason)],
            )
        };
        let target = Arc::new(Target {
            kind: kind.clone(),
            buffers: Mutex::default(),
            writer: OnceLock::new(),
            idle: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            done: Arc::default(),
            written: counter("weft_proxy_access_log_lines_total", "Access log lines written."),
            dropped: lost("full"),
            failed: lost("error"),
        });
        let own = target.clone();
        let thread = std::thread::Builder::new().name("access-log".into());
        match thread.spawn(move || own.run()) {
            Ok(handle) => {
                let _ = target.writer.set(handle.thread().clone());
                Some(target)
            }
            Err(error) => {
                tracing::error!(target = name, %error, "no thread to write the access log");
                None
            }
        }
    }

    /// Appends a line to a worker's buffer, if there is room.
    fn take(&self, buffer: &Buffer, line: &[u8]) {
        let mut batch = lock(&buffer.0);
        let before = batch.bytes.len();
        if before + line.len() > BUFFER_BYTES_MAX {
            return self.dropped.inc();
        }
        batch.bytes.extend_from_slice(line);
        batch.lines += 1;
        let now = batch.bytes.len();
        drop(batch);
        if before < BUFFER_BYTES_URGENT && now >= BUFFER_BYTES_URGENT {
            self.wake(true);
        } else if before == 0 {
            self.wake(false);
        }
    }

    fn wake(&self, urgent: bool) {
        if urgent {
            self.urgent.store(true, Ordering::Relaxed);
        }
        if (self.idle.swap(false, Ordering::AcqRel) || urgent)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    fn is_empty(&self) -> bool {
        lock(&self.buffers).iter().all(|buffer| lock(&buffer.0).bytes.is_empty())
    }

    /// The writer's thread.
    fn run(&self) {
        let mut output = Output::new(self.kind.clone());
        let mut batch = Batch::default();
        loop {
            // Read before looking: who closes has nothing more to say.
            let closing = self.closing.load(Ordering::Acquire);
            let buffers = lock(&self.buffers).clone();
            let mut wrote = false;
            for buffer in &buffers {
                // What was written gives its memory to what comes next.
                std::mem::swap(&mut *lock(&buffer.0), &mut batch);
                if batch.lines > 0 {
                    self.write(&mut output, &batch);
                    wrote = true;
                }
                batch.bytes.clear();
                batch.lines = 0;
            }
            match (wrote, closing) {
                (true, _) => self.gather(),
                (false, true) => return self.end(),
                (false, false) => self.rest(&buffers),
            }
        }
    }

    /// Nothing more will be written.
    fn end(&self) {
        let (done, ended) = &*self.done;
        *lock(done) = true;
        ended.notify_all();
    }

    fn write(&self, output: &mut Output, batch: &Batch) {
        let reopen = self.reopen.swap(false, Ordering::Relaxed);
        match output.write(&batch.bytes, reopen) {
            Ok(()) => self.written.add(batch.lines),
            Err(error) => {
                self.failed.add(batch.lines);
                tracing::debug!(target = ?self.kind, %error, "access log not written");
            }
        }
    }

    /// Lets lines gather for a while.
    fn gather(&self) {
        let until = Instant::now() + GATHER;
        while !self.urgent.swap(false, Ordering::Relaxed) && !self.closing.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    /// Sleeps until there is something, without the memory of busier times.
    fn rest(&self, buffers: &[Arc<Buffer>]) {
        self.idle.store(true, Ordering::Release);
        if !self.is_empty() || self.closing.load(Ordering::Acquire) {
            self.idle.store(false, Ordering::Relaxed);
            return;
        }
        for buffer in buffers {
            let mut batch = lock(&buffer.0);
            if batch.bytes.is_empty() {
                batch.bytes = Vec::new();
            }
        }
        std::thread::park();
        self.idle.store(false, Ordering::Relaxed);
    }
}

/// What a target's lines are written to.
struct Output {
    kind: LogTarget,
    /// For a file: open, with device and inode as they were.
    file: Option<(File, (u64, u64))>,
}

impl Output {
    fn new(kind: LogTarget) -> Output {
        Output { kind, file: None }
    }

    fn write(&mut self, bytes: &[u8], reopen: bool) -> io::Result<()> {
        let path = match &self.kind {
            LogTarget::Stdout => return whole(&mut io::stdout(), bytes),
            LogTarget::Stderr => return whole(&mut io::stderr(), bytes),
            LogTarget::File(path) => path,
            LogTarget::Service(_) => return Ok(()),
        };
        // Renamed or removed by rotation: the lines belong to the file of that name.
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let now = std::fs::metadata(&**path).ok().map(identity);
        let stale = self.file.as_ref().is_none_or(|(_, opened)| now != Some(*opened));
        if stale || reopen {
            let file = OpenOptions::new().create(true).append(true).open(&**path)?;
            let opened = identity(file.metadata()?);
            self.file = Some((file, opened));
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(bytes),
            None => Ok(()),
        }
    }
}

fn whole(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// What is under these locks is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &std::path::Path) -> LogTarget {
        LogTarget::File(path.to_str().unwrap().into())
    }

    /// Waits for a file to have this text.
    fn wait(path: &std::path::Path, text: &str) {
        let read = || std::fs::read_to_string(path).unwrap_or_default();
        let limit = Instant::now() + Duration::from_secs(60);
        while read() != text {
            let wrong = !text.starts_with(&read()) || Instant::now() > limit;
            assert!(!wrong, "{:?} instead of {text:?}", read());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn lines_come_whole_and_a_rotated_file_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let sinks = LogSinks::new(&Registry::new());
        let (one, two) = (sinks.writer(), sinks.writer());
        one.write(&file(&path), b"a\n");
        wait(&path, "a\n");
        std::fs::rename(&path, &old).unwrap();
        two.write(&file(&path), b"b\n");
        wait(&path, "b\n");
        wait(&old, "a\n");
        std::fs::remove_file(&path).unwrap();
        one.write(&file(&path), b"c\n");
        wait(&path, "c\n");
        one.write(&file(&path), b"d\n");
        sinks.close();
        wait(&path, "c\nd\n");
    }

    #[test]
    fn a_target_that_takes_nothing_costs_bounded_memory_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new();
        let sinks = LogSinks::new(&registry);
        let writer = sinks.writer();
        // A directory cannot be written.
        let line = [b'x'; 1024];
        for _ in 0..4 * BUFFER_BYTES_MAX / line.len() {
            writer.write(&file(dir.path()), &line);
        }
        sinks.close();
        let mut text = Vec::new();
        registry.render_prometheus(&mut text);
        let text = String::from_utf8(text).unwrap();
        let lost: u64 = text
            .lines()
            .filter(|line| line.starts_with("weft_proxy_access_log_dropped_total"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(lost, 4096, "{text}");
    }

    #[test]
    fn there_is_a_bound_on_files() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = LogSinks::new(&Registry::new());
        let writer = sinks.writer();
        for index in 0..TARGETS_MAX + 1 {
            writer.write(&file(&dir.path().join(index.to_string())), b"x\n");
        }
        assert_eq!(sinks.0.refused.get(), 1);
        sinks.close();
    }
}
