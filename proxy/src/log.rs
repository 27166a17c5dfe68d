//! What the sidecar says: diagnostics on standard error, the access log on standard output.
//!
//! Both go through a bounded queue to a thread of their own ([`lines`]), so that a slow pipe delays no request; what
//! finds no room is dropped and counted. The level of the diagnostics can be changed while it runs ([`level`]).

pub mod access;
pub mod level;
pub mod lines;

use std::io;
use std::time::Duration;

use heddle_api::log::BadLevel;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use self::access::{AccessLogger, Entry};
pub use self::level::LogLevel;
use self::lines::Lines;

/// How long the end of the process waits for lines that are still queued.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error(transparent)]
    Level(#[from] BadLevel),
    /// A writer's thread could not be started.
    #[error("no thread for writing logs: {0}")]
    Thread(#[from] io::Error),
    /// Something in this process set a subscriber before.
    #[error("logging was set up before: {0}")]
    Again(#[from] tracing_subscriber::util::TryInitError),
}

/// The process's logs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The level of the diagnostics.
    pub level: LogLevel,
    /// One line per request.
    pub access: AccessLogger,
    diagnostics: Lines,
}

impl Logs {
    /// Begins logging for the whole process, at this level (see [`heddle_api::log`] for how it is written). Hold the guard until
    /// the process ends.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn start(level: &str) -> Result<(Self, FlushGuard), LogError> {
        let (filter, level) = LogLevel::new(level)?;
        let diagnostics = Lines::start("log", io::stderr())?;
        let access = AccessLogger::new(Lines::start("access-log", io::stdout())?);
        let format = tracing_subscriber::fmt::layer().with_writer(diagnostics.clone());
        tracing_subscriber::registry().with(filter).with(format).try_init()?;
        let logs = Self { level, access, diagnostics };
        Ok((logs.clone(), FlushGuard(logs)))
    }

    /// Logs that reach no output, and the filter that the level belongs to.
    #[cfg(test)]
    pub(crate) fn for_tests(
        level: &str,
    ) -> (tracing_subscriber::reload::Layer<tracing_subscriber::EnvFilter, tracing_subscriber::Registry>, Self)
    {
        let (filter, level) = LogLevel::new(level).expect("a level");
        let lines = Lines::start("test", io::sink()).expect("a thread");
        (filter, Self { level, access: AccessLogger::new(lines.clone()), diagnostics: lines })
    }

    /// Lines of diagnostics that found no room so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.diagnostics.dropped()
    }
}

/// When dropped, waits for lines that are queued: a second for each log at most.
#[derive(Debug)]
#[must_use = "lines that are queued when the process ends are lost without it"]
pub struct FlushGuard(Logs);

impl Drop for FlushGuard {
    fn drop(&mut self) {
        self.0.access.flush(FLUSH_TIME);
        self.0.diagnostics.flush(FLUSH_TIME);
    }
}
