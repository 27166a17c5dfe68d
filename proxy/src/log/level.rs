//! The level of the diagnostics, which can be changed while the sidecar runs. How it is written: [`heddle_api::log`].

use std::fmt;

use heddle_api::log::{self, BadLevel};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::{Registry, reload};

/// Why the level stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Unchanged {
    /// The text is none.
    #[error(transparent)]
    Bad(#[from] BadLevel),
    /// Logging has ended.
    #[error("the level cannot be changed any more: {0}")]
    Gone(#[from] reload::Error),
}

/// Shows and changes the level; cheap to clone.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// The filter for the subscriber, and the handle that changes it.
    ///
    /// # Errors
    /// When the text is no level.
    pub fn new(level: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Self), BadLevel> {
        let (layer, handle) = reload::Layer::new(log::filter(level)?);
        Ok((layer, Self(handle)))
    }

    /// The level that holds.
    ///
    /// # Errors
    /// When logging has ended.
    pub fn show(&self) -> Result<String, reload::Error> {
        self.0.with_current(ToString::to_string)
    }

    /// Replaces the level.
    ///
    /// # Errors
    /// When the text is no level; the one before stays.
    pub fn set(&self, level: &str) -> Result<(), Unchanged> {
        Ok(self.0.reload(log::filter(level)?)?)
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.show().unwrap_or_default()).finish()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_new_level_holds_for_the_next_event() {
        let (layer, level) = LogLevel::new("warn").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            assert!(!tracing::enabled!(tracing::Level::INFO));
            level.set("info,heddle_proxy=debug").unwrap();
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            assert!(!tracing::enabled!(target: "h2", tracing::Level::DEBUG));
            assert_eq!(level.show().unwrap(), "heddle_proxy=debug,info");
        });
    }

    #[test]
    fn what_is_no_level_is_refused_and_the_one_before_stays() {
        let (layer, level) = LogLevel::new("info").unwrap();
        assert!(level.set("verbose").unwrap_err().to_string().contains("verbose=debug"));
        assert_eq!(level.show().unwrap(), "info");
        drop(layer);
        assert!(matches!(level.set("debug"), Err(Unchanged::Gone(_))));
    }
}
