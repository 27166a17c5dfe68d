//! Not written yet.

/// Why a request came to no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendError {
    /// The reason.
    pub reason: crate::reason::Reason,
    /// Whether the application may have seen the request.
    pub sent: Sent,
    /// The cause.
    pub source: String,
}

/// Whether the application may have seen a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Provably not.
    No,
    /// Perhaps.
    Maybe,
}
