//! The short-lived directory of a cluster: socket, log and, if nobody keeps them, the data.
//!
//! A process that is killed, or that holds its cluster in a static, never removes its directory. So each holds a lock
//! on a file beside the directory while its owner lives, and every start sweeps those that nobody holds.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::PostgresError;
use super::account::Account;
use super::process::running_postmaster;

const PREFIX: &str = "lockstep-pg-";

/// Random characters after the prefix.
const RANDOM: usize = 8;

/// Socket addresses hold 107 bytes; the name of the socket takes `/.s.PGSQL.65535` and its lock file `.lock` more.
const LONGEST_SOCKET_DIRECTORY: usize = 85;

#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(crate) fn create(account: &Account) -> Result<Self, PostgresError> {
        let base = std::env::temp_dir();
        let base = base.canonicalize().map_err(PostgresError::io(&base))?;
        let too_long = base.as_os_str().len() + 1 + PREFIX.len() + RANDOM > LONGEST_SOCKET_DIRECTORY;
        let base = if too_long || account.check_traverse(&base, &base).is_err() { PathBuf::from("/tmp") } else { base };
        sweep(&base);
        let scratch = loop {
            let scratch = Self::claim(&base)?;
            // Another start may have swept it between our making the lock file and our locking it.
            if scratch.path.exists() {
                break scratch;
            }
        };
        std::fs::set_permissions(&scratch.path, std::fs::Permissions::from_mode(0o700))
            .map_err(PostgresError::io(&scratch.path))?;
        account.give(&scratch.path)?;
        account.check_reach(&scratch.path)?;
        Ok(scratch)
    }

    fn claim(base: &Path) -> Result<Self, PostgresError> {
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(RANDOM)
            .tempdir_in(base)
            .map_err(PostgresError::io(base))?;
        let lock_path = directory.path().with_extension("lock");
        let lock = File::create(&lock_path).map_err(PostgresError::io(&lock_path))?;
        lock.lock().map_err(PostgresError::io(&lock_path))?;
        Ok(Self { path: directory.keep(), lock_path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path, &self.lock_path);
    }
}

fn remove(directory: &Path, lock_path: &Path) {
    // Postgres' children may still be writing their last after an immediate shutdown: then a file appears while we remove.
    let gone = (0..3).any(|_| match std::fs::remove_dir_all(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    });
    if gone {
        // The lock goes last: as long as it exists, a sweep can find the directory.
        let _ = std::fs::remove_file(lock_path);
    }
}

/// Removes what owners that were killed left in `base`.
fn sweep(base: &Path) {
    let ours = nix::unistd::geteuid().as_raw();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let lock_path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Some(stem) = name.strip_suffix(".lock") else { continue };
        if !entry.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == ours) {
            continue;
        }
        let Ok(lock) = File::open(&lock_path) else { continue };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        let directory = base.join(stem);
        if running_postmaster(&directory.join("data")).is_none() {
            remove(&directory, &lock_path);
        }
    }
}
