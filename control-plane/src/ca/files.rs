//! Files of the state directory: written whole or not at all, never overwritten, keys for the owner alone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rcgen::KeyPair;

use super::CaError;

/// Makes `path` with `content`, unless there is one already: then that one stays and `false` comes back.
///
/// The content is written and synced beside it and then linked to its name, so a reader never sees half a file and
/// of two writers one wins.
///
/// # Errors
/// What the file system says.
pub fn create_once(path: &Path, mode: u32, content: &[u8]) -> io::Result<bool> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // A name that no other process uses, so that nobody links another's half-written file. What a killed process
    // leaves behind stays unused.
    let mut unique = [0; 8];
    aws_lc_rs::rand::fill(&mut unique).map_err(|_| io::Error::other("no random numbers"))?;
    let beside = dir.join(format!(".{name}.{}.new", crate::hub::hex(&unique)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let linked = file
        .write_all(content)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::hard_link(&beside, path));
    std::fs::remove_file(&beside)?;
    match linked {
        Ok(()) => {
            // The name itself must survive a power cut as well.
            File::open(dir)?.sync_all()?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the directory where it is missing.
///
/// # Errors
/// When it cannot be made.
pub fn state_dir(dir: &Path) -> Result<(), CaError> {
    std::fs::create_dir_all(dir).map_err(|source| CaError::File { path: dir.to_owned(), source })
}

/// Reads the ECDSA P-256 key at `path`, and makes one there first where there is none.
///
/// # Errors
/// When it cannot be read or written, is no such key, or others may read it.
pub fn key(path: &Path) -> Result<KeyPair, CaError> {
    let file = |source| CaError::File { path: path.to_owned(), source };
    if !path.exists() {
        let fresh = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        create_once(path, 0o600, fresh.serialize_pem().as_bytes()).map_err(file)?;
    }
    let content = |problem| CaError::Content { path: path.to_owned(), problem };
    let mode = std::fs::metadata(path).map_err(file)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(content(format!("everyone may use this key (mode {:o}): chmod 600 it", mode & 0o777)));
    }
    let pem = std::fs::read_to_string(path).map_err(file)?;
    KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| content(format!("not an ECDSA P-256 key in PKCS#8 PEM: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(create_once(&path, 0o600, b"first").unwrap());
        assert!(!create_once(&path, 0o600, b"second").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let first = key(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(key(&path).unwrap().public_key_raw(), first.public_key_raw());
    }

    #[test]
    fn a_key_that_everyone_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        key(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(key(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}
