//! The manifests under a directory: which there are, and what is in them.
//!
//! Names that begin with a dot are not manifests, nor are directories of such names looked into: editors' swap files,
//! and the data directories of a mounted ConfigMap, whose visible names are links into them and are followed.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Files beyond these are not read.
const MAX_FILES: usize = 50_000;
/// Directories deeper than this are not read.
const MAX_DEPTH: usize = 16;
/// A file that changed this shortly before it was read may change again without its times showing it.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);

/// What tells two versions of a file apart without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: SystemTime,
    inode: u64,
    device: u64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        Ok(Self {
            length: metadata.len(),
            modified: metadata.modified()?,
            inode: metadata.ino(),
            device: metadata.dev(),
        })
    }

    /// Whether an equal stamp later on means equal content.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        now.duration_since(self.modified).is_ok_and(|age| age > CLOCK_GRAIN)
    }
}

/// What is under a directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The manifests.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// What could not be looked into: whatever was known below it is still to be believed.
    pub blind: Vec<(PathBuf, String)>,
}

/// Whether a path below `root` is a manifest by its name.
pub(super) fn is_manifest(root: &Path, path: &Path) -> bool {
    let Ok(inner) = path.strip_prefix(root) else { return false };
    let visible = |part: Component<'_>| !part.as_os_str().as_encoded_bytes().starts_with(b".");
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    inner.components().all(visible) && matches!(extension, "yaml" | "yml")
}

/// Lists the manifests under `root`.
///
/// # Errors
/// When `root` itself cannot be read.
pub(super) fn list(root: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let canonical = fs::canonicalize(root)?;
    walk(root, &mut vec![canonical], &mut listing)?;
    Ok(listing)
}

/// `chain`: the true names of the directories above, so that a link to one of them ends the walk.
fn walk(directory: &Path, chain: &mut Vec<PathBuf>, listing: &mut Listing) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Follows links; one that leads nowhere is as good as absent.
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                listing.blind.push((path, error.to_string()));
                continue;
            }
        };
        if metadata.is_dir() {
            let inner = fs::canonicalize(&path).and_then(|canonical| {
                if chain.contains(&canonical) {
                    return Ok(());
                }
                if chain.len() >= MAX_DEPTH {
                    return Err(io::Error::other(format!("more than {MAX_DEPTH} directories deep")));
                }
                chain.push(canonical);
                let walked = walk(&path, chain, listing);
                chain.pop();
                walked
            });
            if let Err(error) = inner {
                listing.blind.push((path, error.to_string()));
            }
        } else if metadata.is_file() && is_manifest(directory, &path) {
            if listing.files.len() >= MAX_FILES {
                listing.blind.push((directory.to_owned(), format!("there are more than {MAX_FILES} files")));
                return Ok(());
            }
            listing.files.insert(path, Stamp::of(&metadata)?);
        }
    }
    Ok(())
}

/// Reads a manifest.
///
/// # Errors
/// When it is too large, not text, or cannot be read; `NotFound` when it is not there.
pub(super) fn read(path: &Path) -> io::Result<(String, Stamp)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "is not a file"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    let text = String::from_utf8(fs::read(path)?).map_err(|error| {
        io::Error::other(format!("it is not UTF-8 text after byte {}", error.utf8_error().valid_up_to()))
    })?;
    Ok((text, Stamp::of(&metadata)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_known_by_its_name() {
        let root = Path::new("/m");
        for (path, expected) in [
            ("/m/a.yaml", true),
            ("/m/x/b.yml", true),
            ("/m/.a.yaml", false),
            ("/m/..data/a.yaml", false),
            ("/m/a.yaml~", false),
            ("/m/a.json", false),
            ("/other/a.yaml", false),
        ] {
            assert_eq!(is_manifest(root, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn links_are_followed_and_a_circle_of_them_ends() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("..1")).unwrap();
        fs::write(at("..1/a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        std::os::unix::fs::symlink(root.path(), at("sub/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling.yaml")).unwrap();
        let listing = list(root.path()).unwrap();
        assert_eq!(listing.files.keys().collect::<Vec<_>>(), [&at("a.yaml")]);
        assert!(listing.blind.is_empty());
    }
}
