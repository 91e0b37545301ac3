//! Access logs: lines that requests and connections leave behind.
//!
//! What a line says is `weft-traffic`'s (`access_log`, `format`); what is noted of a request on its
//! way is `http/log.rs`; here lines go to where they are wanted, and never hold a request up: a
//! worker appends to a bounded buffer of its own, a thread per target writes, and what finds no room
//! is counted and gone. What services take goes by `crate::outbox`.

mod sink;

pub use sink::{LogSinks, LogWriter};

use std::rc::Rc;
use std::sync::LazyLock;

use weft_traffic::access_log::LogTarget;

use crate::worker::Worker;

/// Hands a line on to where it is wanted.
pub(crate) fn hand_on(worker: &Rc<Worker>, target: &LogTarget, line: &[u8]) {
    match target {
        LogTarget::Service(collector) => worker.outbox.add(worker, collector, line),
        LogTarget::Stdout | LogTarget::Stderr | LogTarget::File(_) => {
            worker.logs.write(target, line);
        }
    }
}

/// This host's name, for `%HOSTNAME%`.
pub(crate) fn hostname() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    });
    &NAME
}

/// Reads the environment, for `%ENVIRONMENT(X)%`.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
