//! Stand-in.
use crate::{diagnostics::Diagnostic, object::Change};
/// Batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// c
    pub changes: Vec<Change>,
    /// p
    pub problems: Option<Vec<Diagnostic>>,
    /// s
    pub synced: bool,
}
/// Directory.
pub mod directory {
    /// Runs.
    pub async fn run(
        _dir: std::path::PathBuf,
        tx: tokio::sync::mpsc::Sender<super::Batch>,
    ) -> anyhow::Result<()> {
        let _sent = tx.send(super::Batch { synced: true, ..Default::default() }).await;
        std::future::pending().await
    }
}
