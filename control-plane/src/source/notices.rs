//! The kernel's notices of file changes, brought down to which file to read and whether it is whole.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::sync::mpsc;

use super::files::is_manifest;

/// What a notice comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Closed by its writer, renamed, linked or removed: read it.
    Whole(PathBuf),
    /// Written to, and maybe not for the last time.
    Written(PathBuf),
    /// A directory or a link changed, or notices were lost: look at everything.
    Everything,
}

/// Watches a directory and all below it, links followed. Stops when the watcher is dropped.
pub(super) fn watch(dir: &Path, notices: mpsc::Sender<Notice>) -> notify::Result<RecommendedWatcher> {
    let root = dir.to_owned();
    let lost = Arc::new(AtomicBool::new(false));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let mut list = event.map_or_else(|_| vec![Notice::Everything], |event| classify(&root, &event));
        if lost.swap(false, Ordering::Relaxed) {
            list.push(Notice::Everything);
        }
        for notice in list {
            if notices.try_send(notice).is_err() {
                // The channel is full: whatever is lost, the next notice makes good, or else the slow look.
                lost.store(true, Ordering::Relaxed);
            }
        }
    })?;
    watcher.watch(dir, RecursiveMode::Recursive)?;
    Ok(watcher)
}

fn classify(root: &Path, event: &Event) -> Vec<Notice> {
    if event.need_rescan() {
        return vec![Notice::Everything];
    }
    let written = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        // Reading is no change, and we read.
        EventKind::Access(_) => return Vec::new(),
        EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => true,
        _ => false,
    };
    let one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if is_manifest(root, path) && !path.is_dir() {
            // A link is whole from the start, and nobody closes it.
            let linked = || path.symlink_metadata().is_ok_and(|m| m.is_symlink() || m.nlink() > 1);
            let created = matches!(event.kind, EventKind::Create(_));
            let whole = !written || (created && linked());
            return Some(if whole { Notice::Whole(path.clone()) } else { Notice::Written(path.clone()) });
        }
        // A directory, or what was one; "..data" of a ConfigMap. Editors' temporary files are none of these.
        let gone = !written && path.extension().is_none() && !path.exists();
        (path.is_dir() || gone || name.starts_with(b"..") || path == root).then_some(Notice::Everything)
    };
    event.paths.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use notify::event::{DataChange, RemoveKind, RenameMode};

    use super::*;

    fn notices(kind: EventKind, path: &str) -> Vec<Notice> {
        classify(Path::new("/nowhere/m"), &Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn a_save_is_whole_when_it_is_closed_or_renamed_into_place() {
        let path = "/nowhere/m/a.yaml";
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert_eq!(notices(data, path), [Notice::Written(path.into())]);
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert_eq!(notices(closed, path), [Notice::Whole(path.into())]);
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        assert_eq!(notices(renamed, path), [Notice::Whole(path.into())]);
        assert_eq!(notices(EventKind::Remove(RemoveKind::File), path), [Notice::Whole(path.into())]);
    }

    #[test]
    fn reading_and_editors_temporary_files_are_no_news_but_config_map_links_are() {
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert_eq!(notices(opened, "/nowhere/m/a.yaml"), []);
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert_eq!(notices(data, "/nowhere/m/.a.yaml.swp"), []);
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        assert_eq!(notices(renamed, "/nowhere/m/..data"), [Notice::Everything]);
    }
}
