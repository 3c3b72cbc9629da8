//! Files that hold a secret: private keys, profiles.
//!
//! Invariants
//! - A file is made with mode 0600 and appears whole, or not at all.
//! - One that its group or others may read is refused, with the command that mends it.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use hidb::{Error, ErrorCode, Result};

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("{what} {} failed: {error}", path.display()))
}

/// Writes a file that only its owner can read, in place of one that is there.
///
/// # Errors
/// `Io`.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_os_string();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = Path::new(&beside);
    let written = (|| {
        // Left behind by a process of the same number that was killed.
        let _ = fs::remove_file(beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(beside, path)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(beside);
        failed("writing", path, &error)
    })
}

/// Reads a file that only its owner can read.
///
/// # Errors
/// `Io`; `PermissionDenied` when its group or others may read or write it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut file = fs::File::open(path).map_err(|error| failed("reading", path, &error))?;
    let metadata = file.metadata().map_err(|error| failed("reading", path, &error))?;
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(Error::new(
            ErrorCode::PermissionDenied,
            format!(
                "{path} holds a secret, and others may open it (mode {mode:04o}): chmod 600 {path}",
                path = path.display()
            ),
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| failed("reading", path, &error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_written_for_their_owner_and_refused_when_others_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap(), b"new");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!(error.code, ErrorCode::PermissionDenied);
            assert!(error.message.contains("chmod 600"), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
