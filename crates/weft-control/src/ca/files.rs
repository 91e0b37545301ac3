//! Key files: a private folder, private files, written whole or not at all.

use super::CaError;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// No file of ours comes near; what is longer is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Makes a folder that only its owner may enter. An existing one is tightened.
pub(super) fn private_dir(path: &Path) -> Result<(), CaError> {
    let fail = |source| CaError::File { path: path.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(fail)
}

/// Reads a public file; `None` when it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    let fail = |source| CaError::File { path: path.into(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(fail)?;
    Ok(Some(content))
}

/// Reads a key file; refuses one that others may read.
pub(super) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    let Some(content) = read(path)? else { return Ok(None) };
    let metadata =
        std::fs::metadata(path).map_err(|source| CaError::File { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CaError::Exposed { path: path.into(), mode });
    }
    Ok(Some(content))
}

/// Writes a new file whole, never over an existing one: of two processes that start together
/// one wins and the other reads (`false`).
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> Result<bool, CaError> {
    let fail = |source| CaError::File { path: path.into(), source };
    let draft = path.with_extension(format!("draft.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    };
    let linked = write().and_then(|()| std::fs::hard_link(&draft, path));
    // A draft that cannot be removed is harmless: the next start overwrites or ignores it.
    let _ = std::fs::remove_file(&draft);
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
    }
}
