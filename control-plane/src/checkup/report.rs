//! Findings, said.

use std::fmt;

use serde::Serialize;

use super::{Finding, Level};

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they are said.
    pub findings: Vec<Finding>,
}

/// As programs read it.
#[derive(Serialize)]
struct Written<'a> {
    errors: usize,
    warnings: usize,
    findings: &'a [Finding],
}

impl Report {
    /// How many of a level there are.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// As JSON, with a line for each field.
    ///
    /// # Errors
    /// None: it is texts and numbers.
    pub fn json(&self) -> serde_json::Result<String> {
        let written = Written {
            errors: self.count(Level::Error),
            warnings: self.count(Level::Warning),
            findings: &self.findings,
        };
        serde_json::to_string_pretty(&written)
    }
}

/// As people read it: one paragraph for each finding, the cure on a line of its own.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Warning => "warning",
                Level::Error => "ERROR",
            };
            writeln!(f, "{level:<8}{:<17}{}", finding.check, finding.message)?;
            if let Some(fix) = &finding.fix {
                writeln!(f, "{:<25}-> {fix}", "")?;
            }
        }
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let [errors, warnings] = [Level::Error, Level::Warning].map(|level| self.count(level));
        write!(f, "{}, {}", plural(errors, "error"), plural(warnings, "warning"))
    }
}
