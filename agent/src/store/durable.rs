//! Changes of a local directory in an order that survives a crash: what was done before a sync is there after a crash, what comes later may be.
//!
//! Every change passes [`crash_point`], so that tests can stop a restore before each single one of them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::problem::{Problem, Reason};
use uuid::Uuid;

use super::local_io::{exists, local};

#[cfg(test)]
pub(crate) mod crash {
    //! Stops the thread's changes after a given number of them.
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets `changes` pass and fails all after them, as a dead process does, until [`never`].
    pub(crate) fn after(changes: u32) {
        LEFT.set(Some(changes));
    }

    pub(crate) fn never() {
        LEFT.set(None);
    }

    pub(super) fn check() -> std::io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(std::io::Error::other("crashed here")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

/// Where a test may let the process die, or the thread stop; nothing in production.
#[inline]
#[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "fails in tests only"))]
fn crash_point() -> io::Result<()> {
    #[cfg(test)]
    crash::check()?;
    reached(Point::StoreBeforeChange);
    Ok(())
}

/// Creates a folder and those above it.
pub(crate) fn create_folder(path: &Path) -> Result<(), Problem> {
    crash_point().and_then(|()| fs::create_dir_all(path)).map_err(|error| local("create folder", path, &error))
}

/// Creates a folder of the agent's own and makes sure that neither it nor the one above is a symlink: what is written there must stay on
/// this disk.
pub(crate) fn own_folder(path: &Path) -> Result<(), Problem> {
    create_folder(path)?;
    for folder in [path.parent(), Some(path)].into_iter().flatten() {
        let meta = fs::symlink_metadata(folder).map_err(|error| local("read", folder, &error))?;
        if !meta.is_dir() {
            return Err(Problem::new(
                Reason::SourceUnsupported,
                format!("{} is a symlink, not a folder: remove it, lockstep makes the folder itself", folder.display()),
            )
            .with("path", folder.display()));
        }
    }
    Ok(())
}

/// Renames; on the same file system one atomic step.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Problem> {
    crash_point()
        .and_then(|()| fs::rename(from, to))
        .map_err(|error| local(&format!("rename {} to", from.display()), to, &error).with("from", from.display()))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Problem> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| local("sync folder", path, &error))
}

/// Replaces `path` by a file with these bytes, as a whole or not at all. `by_way_of` is a folder on the same file system that nobody looks into.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], by_way_of: &Path) -> Result<(), Problem> {
    create_folder(by_way_of)?;
    let draft = by_way_of.join(format!("{}.draft", Uuid::new_v4()));
    let written = File::create_new(&draft)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(|error| local("write", &draft, &error))
        .and_then(|()| rename(&draft, path));
    if written.is_err() {
        // Best effort: a full disk should not keep the draft too.
        let _ = fs::remove_file(&draft);
    }
    written?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes a file; it may be gone already.
pub(crate) fn remove_file(path: &Path) -> Result<(), Problem> {
    match crash_point().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Removes a file, symlink or folder with all that is in it; it may be gone already.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Problem> {
    let removed = crash_point().and_then(|()| {
        if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    });
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Where things go that must vanish in one step: a rename into it, then removal at leisure.
#[derive(Clone, Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
}

impl Trash {
    pub(crate) const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Takes a name away, atomically and durably; frees the space as far as it can. Does nothing if nothing has that name.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), Problem> {
        if !exists(path)? {
            return Ok(());
        }
        create_folder(&self.folder)?;
        let away = self.folder.join(Uuid::new_v4().to_string());
        rename(path, &away)?;
        if let Some(parent) = path.parent() {
            sync_folder(parent)?;
        }
        if let Err(problem) = remove_tree(&away) {
            tracing::warn!(path = %away.display(), %problem, "can't empty the trash, the next start will try again");
        }
        Ok(())
    }

    /// Removes what a crash or a failure left.
    pub(crate) fn empty(&self) -> Result<(), Problem> {
        remove_tree(&self.folder)
    }
}
