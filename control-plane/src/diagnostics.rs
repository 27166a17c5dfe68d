//! What is wrong with somebody's manifests, said so that they can find it: file, line, object, field, sentence.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use crate::object::ObjectRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Something was not used: a document, an object, a part of one.
    Error,
    /// It was used, but probably not as it was meant.
    Warning,
}

/// What kind of problem it is, in the words of the Gateway API (RouteConditionReason, PolicyConditionReason), which
/// status conditions and Events carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// The object says something that cannot be used.
    #[default]
    Invalid,
    /// A route's parent does not exist or has no such port.
    NoMatchingParent,
    /// A route is attached to a port that speaks something else.
    UnsupportedValue,
    /// What a policy is attached to does not exist.
    TargetNotFound,
    /// Another object has the place.
    Conflicted,
    /// A backend that does not exist, or not with this port.
    BackendNotFound,
    /// A backend in another namespace that no ReferenceGrant opens.
    RefNotPermitted,
    /// A backend that is no Service.
    InvalidKind,
    /// A backend that cannot be reached through the mesh.
    UnsupportedProtocol,
    /// A NetworkPolicy keeps sidecars from each other.
    MeshPortBlocked,
    /// A NetworkPolicy keeps sidecars from the control plane.
    ControlPlaneBlocked,
}

impl Reason {
    /// The word itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::TargetNotFound => "TargetNotFound",
            Self::Conflicted => "Conflicted",
            Self::BackendNotFound => "BackendNotFound",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::InvalidKind => "InvalidKind",
            Self::MeshPortBlocked => "MeshPortBlocked",
            Self::ControlPlaneBlocked => "ControlPlaneBlocked",
            Self::UnsupportedProtocol => "UnsupportedProtocol",
        }
    }

    /// Whether it is of a route's references rather than of the route.
    #[must_use]
    pub const fn is_of_references(self) -> bool {
        matches!(
            self,
            Self::BackendNotFound | Self::RefNotPermitted | Self::InvalidKind | Self::UnsupportedProtocol
        )
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// The file, when objects come from files.
    pub file: Option<PathBuf>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// The object.
    pub object: Option<ObjectRef>,
    /// The field, as a path: `spec.rules[0].backendRefs[1].weight`.
    pub field: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// What kind of problem it is.
    pub reason: Reason,
    /// What is wrong, and what holds instead.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Where an object is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file; all objects of one share its name.
    pub file: Arc<Path>,
    /// The line on which its document begins, from 1.
    pub line: u32,
}

/// What is wrong with one field of an object, before anyone knows where the object is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// What kind of problem it is.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
}

impl FieldError {
    /// The object cannot be used with this.
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            severity: Severity::Error,
            reason: Reason::Invalid,
            message: message.into(),
        }
    }

    /// The object can be used.
    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            severity: Severity::Warning,
            reason: Reason::Invalid,
            message: message.into(),
        }
    }

    /// The same, of another kind than [`Reason::Invalid`].
    #[must_use]
    pub const fn because(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// The same, of an object at a place.
    #[must_use]
    pub fn of(self, object: &ObjectRef, place: Option<&Place>) -> Diagnostic {
        Diagnostic {
            severity: self.severity,
            reason: self.reason,
            file: place.map(|p| p.file.to_path_buf()),
            line: place.map(|p| p.line),
            object: Some(object.clone()),
            field: (!self.field.is_empty()).then_some(self.field),
            message: self.message,
        }
    }
}

/// Logs problems once, when they appear, and once more when all are gone.
#[derive(Debug, Default)]
pub struct Log {
    seen: BTreeSet<Diagnostic>,
}

impl Log {
    /// Takes the whole current list and logs what is new in it; gives how many that were.
    pub fn report(&mut self, current: &[Diagnostic]) -> usize {
        let current: BTreeSet<_> = current.iter().cloned().collect();
        let mut new = 0;
        for problem in current.difference(&self.seen) {
            tracing::warn!("{problem}");
            new += 1;
        }
        if current.is_empty() && !self.seen.is_empty() {
            tracing::info!("all problems with the manifests are solved");
        }
        self.seen = current;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_logged_once_until_it_comes_again() {
        let problem = |message: &str| Diagnostic {
            severity: Severity::Error,
            reason: Reason::Invalid,
            file: None,
            line: None,
            object: None,
            field: None,
            message: message.to_owned(),
        };
        let mut log = Log::default();
        assert_eq!(log.report(&[problem("a"), problem("b")]), 2);
        assert_eq!(log.report(&[problem("a"), problem("b")]), 0);
        assert_eq!(log.report(&[problem("b"), problem("c")]), 1);
        assert_eq!(log.report(&[]), 0);
        assert_eq!(log.report(&[problem("a")]), 1);
    }
}
