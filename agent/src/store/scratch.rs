//! Folders that belong to one living process: a lock tells them from what a dead one left behind.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use lockstep_protocol::problem::Problem;
use uuid::Uuid;

use super::local_io::local;

/// Serialises making and sweeping, so that nobody sweeps a folder whose lock isn't taken yet.
const GUARD: &str = ".guard";
const LOCK_SUFFIX: &str = ".lock";

/// A folder of our own below some base. Gone when this drops, or with the next [`sweep`] if the process dies first.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    lock_path: PathBuf,
    /// Released by the kernel whatever way the process ends.
    _lock: File,
}

impl Scratch {
    /// Makes an empty one.
    pub(crate) fn create(base: &Path) -> Result<Self, Problem> {
        fs::create_dir_all(base).map_err(|error| local("create folder", base, &error))?;
        let _guard = guard(base)?;
        let id = Uuid::new_v4().to_string();
        let lock_path = base.join(format!("{id}{LOCK_SUFFIX}"));
        let lock = File::options()
            .write(true)
            .create_new(true)
            .open(&lock_path)
            .map_err(|error| local("create", &lock_path, &error))?;
        lock.try_lock().map_err(|error| local("lock", &lock_path, &error.into()))?;
        let folder = base.join(id);
        fs::create_dir(&folder).map_err(|error| local("create folder", &folder, &error))?;
        Ok(Self { folder, lock_path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The folder may have been renamed away, which is how a written checkpoint is published.
        if let Err(error) = fs::remove_dir_all(&self.folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.folder.display(), %error, "can't remove scratch folder, the next start will");
            return;
        }
        if let Err(error) = fs::remove_file(&self.lock_path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.lock_path.display(), %error, "can't remove lock file, the next start will");
        }
    }
}

/// Removes the folders of processes that are no more.
pub(crate) fn sweep(base: &Path) -> Result<(), Problem> {
    if !super::local_io::exists(base)? {
        return Ok(());
    }
    let _guard = guard(base)?;
    let listing = fs::read_dir(base).map_err(|error| local("list", base, &error))?;
    for entry in listing {
        let entry = entry.map_err(|error| local("list", base, &error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let id = name.strip_suffix(LOCK_SUFFIX).unwrap_or(name);
        if Uuid::try_parse(id).is_err() {
            continue;
        }
        let (folder, lock_path) = (base.join(id), base.join(format!("{id}{LOCK_SUFFIX}")));
        if alive(&lock_path)? {
            continue;
        }
        for removed in [fs::remove_dir_all(&folder), fs::remove_file(&lock_path)] {
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(local("remove", &folder, &error));
            }
        }
        tracing::debug!(path = %folder.display(), "removed what a dead process left");
    }
    Ok(())
}

fn alive(lock_path: &Path) -> Result<bool, Problem> {
    match File::open(lock_path) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(local("lock", lock_path, &error)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(local("open", lock_path, &error)),
    }
}

fn guard(base: &Path) -> Result<File, Problem> {
    let path = base.join(GUARD);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| local("open", &path, &error))?;
    file.lock().map_err(|error| local("lock", &path, &error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_spares_the_living_and_removes_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let living = Scratch::create(dir.path()).unwrap();
        fs::write(living.path().join("x"), "x").unwrap();
        // A dead process leaves a folder whose lock nobody holds, or, where its lock file is lost, a folder alone.
        let (dead, bare) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        for folder in [&dead, &bare] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("y"), "y").unwrap();
        }
        fs::write(dir.path().join(format!("{dead}.lock")), "").unwrap();

        sweep(dir.path()).unwrap();

        assert!(living.path().join("x").exists());
        let left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left.len(), 3, "guard, lock and folder of the living one: {left:?}");
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the guard stays");
    }

    #[test]
    fn sweeping_where_nothing_ever_was_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        sweep(&dir.path().join("none")).unwrap();
        assert!(!dir.path().join("none").exists());
    }
}
