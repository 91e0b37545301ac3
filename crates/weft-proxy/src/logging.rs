//! Log output of the process and the handle that changes its level while it runs.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

/// Changes the log level.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>);

impl LogLevel {
    /// `debug`, or a filter such as `weft_proxy=debug,info`.
    pub fn set(&self, level: &str) -> Result<(), String> {
        (self.0)(filter(level)?)
    }
}

/// Starts logging to standard error. `None` when the process already logs.
pub fn init(level: &str) -> Result<Option<LogLevel>, String> {
    let (layer, handle) = reload::Layer::new(filter(level)?);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
    let started = tracing_subscriber::registry().with(layer).with(lines).try_init();
    Ok(started.ok().map(|()| {
        LogLevel(Arc::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
    }))
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(level).map_err(|error| {
        format!("log level {level:?}: {error}; use error, warn, info, debug or trace")
    })
}
