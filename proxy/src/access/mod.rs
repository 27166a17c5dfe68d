//! Not written yet.

/// Who may call.
#[derive(Debug, Default)]
pub struct AccessRules;
