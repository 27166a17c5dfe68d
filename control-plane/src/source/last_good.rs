//! The last good text of each manifest, kept in the state directory, so that a control plane that starts over a broken
//! file knows what the file meant before. It is asked for nothing else: a file that is whole speaks for itself, and one
//! that was deleted is forgotten.
//!
//! One file for each manifest, named by the manifest's path and no larger than it, in `last-good/`. Its first line is a
//! digest of the rest, so that half a write, or a copy that somebody edited, is no state; neither is what this version
//! cannot read any more.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};

use super::document::{self, Document};

/// Where it lies in the state directory.
const DIRECTORY: &str = "last-good";
/// Hexadecimal digits of a digest that name a file: enough to tell 50,000 apart.
const NAME: usize = 32;

/// The kept texts.
#[derive(Debug)]
pub(super) struct LastGood {
    directory: PathBuf,
    /// A write failed, which was said.
    failed: bool,
}

impl LastGood {
    /// In this state directory, which exists.
    pub(super) fn new(state: &Path) -> Self {
        Self { directory: state.join(DIRECTORY), failed: false }
    }

    /// A manifest was read whole. What it holds is kept when all of it is good; what is broken changes nothing.
    pub(super) fn keep(&mut self, manifest: &Path, text: &str, documents: &[Document]) {
        if documents.iter().any(Document::is_broken) {
            return;
        }
        let kept = if documents.is_empty() { remove(&self.at(manifest)) } else { self.write(manifest, text) };
        self.say(manifest, kept);
    }

    /// What a manifest held when it was last good, if that is known.
    pub(super) fn recall(&self, manifest: &Path) -> Option<Vec<Document>> {
        let kept = fs::read_to_string(self.at(manifest)).ok()?;
        let (digest, text) = kept.split_once('\n')?;
        if digest != sum(text) {
            tracing::warn!(file = %manifest.display(), "its kept last good state is damaged, and not used");
            return None;
        }
        let documents = document::parse(text, |_| None);
        (!documents.iter().any(Document::is_broken)).then_some(documents)
    }

    /// A manifest was deleted.
    pub(super) fn forget(&mut self, manifest: &Path) {
        let removed = remove(&self.at(manifest));
        self.say(manifest, removed);
    }

    /// Forgets all manifests but these.
    pub(super) fn retain<'a>(&mut self, manifests: impl Iterator<Item = &'a PathBuf>) {
        let names: BTreeSet<_> = manifests.map(|manifest| name(manifest)).collect();
        let Ok(kept) = fs::read_dir(&self.directory) else { return };
        for entry in kept.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                let removed = remove(&entry.path());
                self.say(&entry.path(), removed);
            }
        }
    }

    fn at(&self, manifest: &Path) -> PathBuf {
        self.directory.join(name(manifest))
    }

    /// Beside it first, then renamed: a reader sees the old or the new one. Not synced, since a power cut costs no more
    /// than what the digest shows. A restart finds nearly all of them as they are, and writes none.
    fn write(&self, manifest: &Path, text: &str) -> io::Result<()> {
        let path = self.at(manifest);
        let beside = path.with_extension("new");
        let kept = format!("{}\n{text}", sum(text));
        if fs::read(&path).is_ok_and(|old| old == kept.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(&self.directory)?;
        fs::write(&beside, kept)?;
        fs::rename(&beside, &path)
    }

    fn say(&mut self, manifest: &Path, result: io::Result<()>) {
        let failed = result.is_err();
        if let Err(error) = result
            && !self.failed
        {
            let directory = self.directory.display();
            tracing::warn!(file = %manifest.display(), %directory, %error, "cannot keep last good states; after a restart a broken file will be without");
        }
        self.failed = failed;
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sum(text: &str) -> String {
    crate::hub::hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// By the manifest's true path, however the directory was named on the command line.
fn name(manifest: &Path) -> String {
    let directory = manifest.parent().and_then(|parent| fs::canonicalize(parent).ok());
    let path = match (directory, manifest.file_name()) {
        (Some(directory), Some(file)) => directory.join(file),
        _ => manifest.to_owned(),
    };
    let mut name = crate::hub::hex(digest(&SHA256, path.as_os_str().as_encoded_bytes()).as_ref());
    name.truncate(NAME);
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const GOOD: &str = "kind: Namespace\napiVersion: v1\nmetadata: {name: shop}\n";

    fn keep(kept: &mut LastGood, manifest: &Path, text: &str) {
        kept.keep(manifest, text, &document::parse(text, |_| None));
    }

    #[test]
    fn what_was_good_is_recalled_and_what_is_broken_or_deleted_is_not() {
        let state = tempfile::tempdir().unwrap();
        let mut kept = LastGood::new(state.path());
        let manifest = state.path().join("a.yaml");
        assert!(kept.recall(&manifest).is_none());
        keep(&mut kept, &manifest, GOOD);
        keep(&mut kept, &manifest, "kind: [");
        let recalled = LastGood::new(state.path()).recall(&manifest).unwrap();
        assert_eq!(recalled.len(), 1);
        kept.forget(&manifest);
        assert!(kept.recall(&manifest).is_none());
        keep(&mut kept, &manifest, GOOD);
        keep(&mut kept, &manifest, "");
        assert!(kept.recall(&manifest).is_none(), "nothing is a state too");
    }

    #[test]
    fn what_is_kept_already_is_not_written_again() {
        let state = tempfile::tempdir().unwrap();
        let mut kept = LastGood::new(state.path());
        let manifest = state.path().join("a.yaml");
        let written = |kept: &LastGood| fs::metadata(kept.at(&manifest)).unwrap().ino();
        keep(&mut kept, &manifest, GOOD);
        let first = written(&kept);
        let mut restarted = LastGood::new(state.path());
        keep(&mut restarted, &manifest, GOOD);
        assert_eq!(written(&restarted), first);
        keep(&mut restarted, &manifest, &GOOD.replace("shop", "mill"));
        assert_ne!(written(&restarted), first);
    }

    #[test]
    fn a_damaged_state_is_none() {
        let state = tempfile::tempdir().unwrap();
        let mut kept = LastGood::new(state.path());
        let manifest = state.path().join("a.yaml");
        keep(&mut kept, &manifest, GOOD);
        let path = kept.at(&manifest);
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [&whole[..whole.len() - 5], &whole.replace("shop", "shxp"), "", "\n"] {
            fs::write(&path, damaged).unwrap();
            assert!(kept.recall(&manifest).is_none(), "{damaged:?}");
        }
        fs::write(&path, format!("{}\nkind: [", sum("kind: ["))).unwrap();
        assert!(kept.recall(&manifest).is_none(), "a whole copy of what is not good");
    }

    #[test]
    fn only_manifests_that_are_there_are_remembered() {
        let state = tempfile::tempdir().unwrap();
        let mut kept = LastGood::new(state.path());
        let (stays, goes) = (state.path().join("a.yaml"), state.path().join("b.yaml"));
        keep(&mut kept, &stays, GOOD);
        keep(&mut kept, &goes, GOOD);
        fs::write(state.path().join(DIRECTORY).join("stray.new"), "half").unwrap();
        kept.retain(std::iter::once(&stays));
        assert!(kept.recall(&stays).is_some() && kept.recall(&goes).is_none());
        assert_eq!(fs::read_dir(state.path().join(DIRECTORY)).unwrap().count(), 1);
    }
}
