//! How the level of a program's diagnostics is written, for the sidecar that obeys it and for whoever hands it one.
//!
//! It is written as tracing's directives: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or levels for
//! modules, separated by commas: `info,heddle_proxy::carrier=debug`.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// Longest directive, in bytes.
const MAX_LENGTH: usize = 1_024;

/// Why a text is not a level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// Reads a level.
///
/// # Errors
/// When the text is none.
pub fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
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
    use super::*;

    #[test]
    fn what_is_no_level_is_refused_with_what_to_write() {
        for bad in
            ["", " ", ",", "info,", "verbose", "info,verbose", "heddle_proxy=loud", &"info,".repeat(1_000)]
        {
            assert!(filter(bad).is_err(), "{bad:?}");
        }
        let word = filter("warning").unwrap_err().to_string();
        assert!(word.contains("(off, error, warn, info, debug, trace)") && word.contains("warning=debug"));
        for good in ["warn", "off", "INFO", "info,heddle_proxy::carrier=debug", "h2[poll{stream=1}]=trace"] {
            assert!(filter(good).is_ok(), "{good:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_level_or_refused_with_a_reason(text in "[a-z=,:\\[\\]{}\"* 0-5]{0,60}|.{0,60}") {
            match filter(&text) {
                Ok(filter) => proptest::prop_assert!(!filter.to_string().is_empty()),
                Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
