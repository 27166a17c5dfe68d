//! What is counted for each backend beside its requests: retries and ejections.

use super::Counter;

/// A handle on one backend's counters.
#[derive(Debug)]
pub struct BackendSeries {
    pub(super) backend: Box<str>,
    pub(super) retries_succeeded: Counter,
    pub(super) retries_failed: Counter,
    pub(super) budget_exhausted: Counter,
    pub(super) ejections: Counter,
}

impl BackendSeries {
    pub(super) fn new(backend: &str) -> Self {
        Self {
            backend: backend.into(),
            retries_succeeded: Counter::default(),
            retries_failed: Counter::default(),
            budget_exhausted: Counter::default(),
            ejections: Counter::default(),
        }
    }

    /// A try after the first ended; `succeeded` when the client got its answer.
    pub fn retry(&self, succeeded: bool) {
        if succeeded { &self.retries_succeeded } else { &self.retries_failed }.add(1);
    }

    /// A failure could have been tried again, but the budget was spent.
    pub fn budget_exhausted(&self) {
        self.budget_exhausted.add(1);
    }

    /// One of its endpoints was put out of balancing.
    pub fn ejection(&self) {
        self.ejections.add(1);
    }
}
