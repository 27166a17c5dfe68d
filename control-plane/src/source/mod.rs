//! Where objects come from. A source sends batches; nothing after it can tell one source from another.

mod catalog;
pub mod directory;
mod document;
mod files;
mod kept;
pub mod kubernetes;
mod last_good;
mod notices;

use self::kubernetes::ledger::Notes;
use crate::{diagnostics::Diagnostic, object::Change};

/// A transaction: what changed since the last one.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// In no particular order; an object appears at most once as [`Change::Upsert`] or [`Change::Remove`].
    pub changes: Vec<Change>,
    /// The whole current list of what is wrong at the source, when it changed.
    pub problems: Option<Vec<Diagnostic>>,
    /// The first complete listing is in, with this batch or an earlier one.
    pub synced: bool,
    /// To be entered once the batch was applied.
    pub notes: Notes,
}

/// The objects of a text, all of which must be good.
#[cfg(test)]
pub(crate) fn objects(text: &str) -> Vec<crate::object::Object> {
    let good = |parsed: document::Parsed| match parsed.outcome {
        Ok(object) => object,
        Err(broken) => panic!("{:#?}", broken.errors),
    };
    document::parse_all(text).into_iter().map(good).collect()
}
