//! Not written yet.

/// What retries may be spent.
#[derive(Debug, Default)]
pub struct Budget;
