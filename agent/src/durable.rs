//! Small files that must be whole or absent after a crash.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::problem::{Problem, Reason};

/// Of files that are being written and have no name of their own yet.
const DRAFT: &str = ".lockstep-";

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the folder. When it returns the new content survives a power loss.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let mut file = tempfile::Builder::new().prefix(DRAFT).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    reached(Point::StateBeforeRename);
    file.persist(path).map_err(|error| error.error)?;
    reached(Point::StateRenamed);
    sync_folder(folder)
}

/// As [`replace`], but for what may be lost: after a crash of the machine the file may be old, absent or torn.
pub(crate) fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let mut file = tempfile::Builder::new().prefix(DRAFT).tempfile_in(folder)?;
    file.write_all(bytes)?;
    reached(Point::DigestsBeforeRename);
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Removes what processes left here that died while they replaced a file. Nobody else may be at it.
pub(crate) fn clear_drafts(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_draft = entry.file_name().to_str().is_some_and(|name| name.starts_with(DRAFT));
        if is_draft && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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
    fn what_was_never_renamed_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["orders.json", "digests", ".lockstep-Ab12", ".lockstep"];
        names.iter().for_each(|name| fs::write(folder.path().join(name), b"x").unwrap());
        fs::create_dir(folder.path().join(".lockstep-folder")).unwrap();
        clear_drafts(folder.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".lockstep", ".lockstep-folder", "digests", "orders.json"]);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let full = io_problem("write", Path::new("/x"), &io::Error::from_raw_os_error(28));
        assert_eq!((full.reason, full.metadata["errno"].as_str()), (Reason::NoSpace, "28"));
        let broken = io_problem("write", Path::new("/x"), &io::Error::from_raw_os_error(5));
        assert_eq!((broken.reason, broken.metadata["path"].as_str()), (Reason::LocalIo, "/x"));
    }
}
