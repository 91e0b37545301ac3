//! Child processes that die with their test and leave their output behind when it fails.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running program. Dropping it kills it; a panicking test prints the end of its log.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

const LOG_LINES_SHOWN: usize = 60;

impl Process {
    /// Starts `program`; stdout and stderr go to `folder/NAME.log`.
    pub fn start<S: AsRef<OsStr>>(name: &str, folder: &Path, program: &Path, args: &[S]) -> Self {
        Self::start_with(name, folder, program, args, &[])
    }

    /// As [`Process::start`], with environment variables.
    pub fn start_with<S: AsRef<OsStr>>(
        name: &str,
        folder: &Path,
        program: &Path,
        args: &[S],
        env: &[(&str, &str)],
    ) -> Self {
        let log = folder.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a test's own folder is writable");
        let err = out.try_clone().expect("a file handle can be cloned");
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self { child, name: name.into(), log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit status if the program has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
    }

    /// Kills at once and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the program to end by itself; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < limit, "{} did not end within {limit:?}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.child.id())
    }
}

/// All threads of a process to one core. Needs `taskset`.
pub fn bind(pid: u32, core: &str) {
    run("taskset", &["-a", "-c", "-p", core, &pid.to_string()]);
}

/// The same, and there before all ordinary work: what is measured waits for nobody who measures it.
/// Needs `chrt` and root, too.
pub fn measured_on(pid: u32, core: &str) {
    bind(pid, core);
    run("chrt", &["-a", "-f", "-p", "1", &pid.to_string()]);
}

/// The same for the calling thread, on the cores it has.
pub fn before_others() {
    let own = std::fs::read_link("/proc/thread-self").expect("Linux");
    let thread = own.file_name().and_then(OsStr::to_str).expect("a number").to_owned();
    run("chrt", &["-f", "-p", "1", &thread]);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    assert!(output.is_ok_and(|output| output.status.success()), "{program} {args:?} failed");
}

/// Resident memory of a process in bytes, 0 when it is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    let Ok(file) = File::open(format!("/proc/{pid}/status")) else { return 0 };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        if let Some(rest) = line.strip_prefix("VmRSS:") {
            let kib = rest.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0);
            return kib * 1024;
        }
    }
    0
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("--- end of {}'s log\n{}", self.name, lines[from..].join("\n"));
        }
    }
}
