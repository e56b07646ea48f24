//! Small files that must be whole or absent after a crash.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use lockstep_protocol::problem::{Problem, Reason};

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the folder. When it returns the new content survives a power loss.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let mut file = tempfile::Builder::new().prefix(".lockstep-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// As [`replace`], but for what may be lost: after a crash of the machine the file may be old, absent or torn.
pub(crate) fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let mut file = tempfile::Builder::new().prefix(".lockstep-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a folder and all below it; absent is fine. Symlinks are removed, never followed.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The problem of a failed file operation: `NO_SPACE` for a full disk or quota, else `LOCAL_IO`, with path and errno.
pub(crate) fn io_problem(action: &str, path: &Path, error: &io::Error) -> Problem {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::NoSpace,
        _ => Reason::LocalIo,
    };
    let problem = Problem::new(reason, format!("cannot {action} {}: {error}", path.display()))
        .with("path", path.display())
        .with("action", action);
    match error.raw_os_error() {
        Some(errno) => problem.with("errno", errno),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_leaves_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let full = io_problem("write", Path::new("/x"), &io::Error::from_raw_os_error(28));
        assert_eq!((full.reason, full.metadata["errno"].as_str()), (Reason::NoSpace, "28"));
        let broken = io_problem("write", Path::new("/x"), &io::Error::from_raw_os_error(5));
        assert_eq!((broken.reason, broken.metadata["path"].as_str()), (Reason::LocalIo, "/x"));
    }
}
