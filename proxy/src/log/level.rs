//! The level of the diagnostics, which can be changed while the sidecar runs.
//!
//! It is written as tracing's directives: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or levels for
//! modules, separated by commas: `info,heddle_proxy::carrier=debug`.

use std::fmt;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::{Registry, reload};

/// Longest directive, in bytes.
const MAX_LENGTH: usize = 1_024;

/// Why a text is not a level.
#[derive(Debug, thiserror::Error)]
pub enum BadLevel {
    /// Nothing, or nothing between two commas.
    #[error("a level is empty; write for example `info` or `info,heddle_proxy=debug`")]
    Empty,
    /// Over 1 KiB.
    #[error("the level is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// A word on its own that is no level. tracing would take it for a module, and log all of that one and nothing else.
    #[error("{0:?} is not a level (off, error, warn, info, debug, trace); to log a module, write {0}=debug")]
    Unknown(String),
    /// tracing cannot read it.
    #[error("{directive:?} cannot be read: {reason}")]
    Directive {
        /// The text.
        directive: String,
        /// tracing's words.
        reason: String,
    },
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
        let (layer, handle) = reload::Layer::new(parse(level)?);
        Ok((layer, Self(handle)))
    }

    /// The level that holds.
    ///
    /// # Errors
    /// When logging has ended.
    pub fn show(&self) -> Result<String, BadLevel> {
        Ok(self.0.with_current(ToString::to_string)?)
    }

    /// Replaces the level.
    ///
    /// # Errors
    /// When the text is no level; the one before stays.
    pub fn set(&self, level: &str) -> Result<(), BadLevel> {
        Ok(self.0.reload(parse(level)?)?)
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.show().unwrap_or_default()).finish()
    }
}

fn parse(level: &str) -> Result<EnvFilter, BadLevel> {
    let level = level.trim();
    if level.len() > MAX_LENGTH {
        return Err(BadLevel::TooLong);
    }
    // tracing takes these for nothing at all, and then logs nothing at all.
    if level.split(',').any(|directive| directive.trim().is_empty()) {
        return Err(BadLevel::Empty);
    }
    let word = |directive: &&str| !directive.contains(['=', '[', ']', '{', '}', '"']);
    if let Some(unknown) = level
        .split(',')
        .map(str::trim)
        .filter(word)
        .find(|directive| directive.parse::<LevelFilter>().is_err())
    {
        return Err(BadLevel::Unknown(unknown.to_owned()));
    }
    // Values of fields are compared as they are written: a pattern would run on every event.
    EnvFilter::builder()
        .with_regex(false)
        .parse(level)
        .map_err(|error| BadLevel::Directive { directive: level.to_owned(), reason: error.to_string() })
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
        for bad in
            ["", " ", ",", "info,", "verbose", "info,verbose", "heddle_proxy=loud", &"info,".repeat(1_000)]
        {
            assert!(level.set(bad).is_err(), "{bad:?}");
        }
        assert!(level.set("verbose").unwrap_err().to_string().contains("verbose=debug"));
        assert_eq!(level.show().unwrap(), "info");
        drop(layer);
        assert!(matches!(level.set("debug"), Err(BadLevel::Gone(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_level_or_refused_with_a_reason(text in "[a-z=,:\\[\\]{}\"* 0-5]{0,60}|.{0,60}") {
            match parse(&text) {
                Ok(filter) => proptest::prop_assert!(!filter.to_string().is_empty()),
                Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
