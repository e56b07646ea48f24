//! `feldera.pidlock`: the engine holds an fcntl write lock on it for as long as it runs.
//!
//! Such a lock belongs to a *process*: when a process closes any descriptor of the file, its lock is gone, whichever descriptor it was taken with. So the
//! engine's own process must never open the file, and is asked in another way. From outside, a lock of the open-file-description kind is taken: it conflicts
//! with the engine's, belongs to our descriptor alone, and keeps the engine out (it waits a minute for its lock) while a checkpoint is put in place.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use lockstep_protocol::problem::Problem;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};

use super::{EngineCheck, layout::Root};
use crate::store::{durable, engine::engine_running};

/// How to know whether the engine runs.
#[derive(Debug)]
pub(super) enum EngineLock {
    /// By its lock file: it is another process.
    PidLock,
    /// By asking: it may be this process.
    Embedder(EngineCheck),
}

/// While it lives the engine can't start. Nothing to hold where the embedder answers for the engine.
#[derive(Debug)]
pub(super) struct KeptOut {
    lock: Option<File>,
}

impl Drop for KeptOut {
    /// Released by name: closing alone would leave it held for as long as a child that was forked meanwhile keeps its copy of the descriptor.
    fn drop(&mut self) {
        if let Some(file) = &self.lock
            && let Err(errno) = fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)))
        {
            tracing::warn!(%errno, "feldera.pidlock is not released yet: the engine's start waits for the descriptor to close");
        }
    }
}

impl EngineLock {
    /// `ENGINE_RUNNING` if the lock is held, or if that can't be told.
    pub(super) fn refuse_if_running(&self, root: &Root) -> Result<(), Problem> {
        match self {
            Self::Embedder(check) => check.refuse_if_running(root.path()),
            Self::PidLock => {
                let path = root.pidlock();
                refuse_if_ours(root, &path)?;
                match open(&path, false) {
                    Ok(file) => refuse_if_locked(root, &file),
                    // No engine was ever here.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(unknown(root, &error)),
                }
            }
        }
    }

    /// The same, and from then on the engine can't start until the result drops.
    pub(super) fn keep_engine_out(&self, root: &Root) -> Result<KeptOut, Problem> {
        match self {
            Self::Embedder(check) => {
                check.refuse_if_running(root.path())?;
                Ok(KeptOut { lock: None })
            }
            Self::PidLock => {
                let path = root.pidlock();
                refuse_if_ours(root, &path)?;
                durable::create_folder(root.path())?;
                let file = open(&path, true).map_err(|error| unknown(root, &error))?;
                match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                    Ok(_) => Ok(KeptOut { lock: Some(file) }),
                    Err(Errno::EAGAIN | Errno::EACCES) => {
                        refuse_if_locked(root, &file)?;
                        Err(engine_running(root.path(), "its lock was held a moment ago"))
                    }
                    Err(errno) => Err(unknown(root, &errno.into())),
                }
            }
        }
    }
}

/// Like the engine opens it: created empty if missing.
fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    OpenOptions::new().read(true).write(create).create(create).truncate(false).custom_flags(flags.bits()).open(path)
}

fn refuse_if_locked(root: &Root, file: &File) -> Result<(), Problem> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|errno| unknown(root, &errno.into()))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(());
    }
    let pid = lock.l_pid;
    Err(engine_running(root.path(), &format!("process {pid} holds feldera.pidlock")).with("pid", pid))
}

/// A descriptor of a file that this very process has locked must not even be opened: closing it would release the lock. The kernel's list of locks tells
/// without opening it.
fn refuse_if_ours(root: &Root, path: &Path) -> Result<(), Problem> {
    let inode = match path.symlink_metadata() {
        Ok(metadata) => metadata.ino(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unknown(root, &error)),
    };
    let locks = match fs::read_to_string("/proc/locks") {
        Ok(locks) => locks,
        // No such list here: an engine of this process was to be announced by `embedded`.
        Err(_) => return Ok(()),
    };
    if locks.lines().any(|line| is_lock_of(line, std::process::id(), inode)) {
        return Err(engine_running(root.path(), "this process holds feldera.pidlock").with("pid", std::process::id()));
    }
    Ok(())
}

/// `1: POSIX  ADVISORY  WRITE 4711 08:01:1234 0 EOF`. Device numbers are left out of the comparison: some file systems show another one in stat.
fn is_lock_of(line: &str, pid: u32, inode: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    matches!(fields.as_slice(), [_, "POSIX", _, _, owner, file, ..]
        if owner.parse() == Ok(pid) && file.rsplit(':').next().and_then(|inode| inode.parse().ok()) == Some(inode))
}

fn unknown(root: &Root, error: &io::Error) -> Problem {
    let problem = engine_running(root.path(), &format!("its lock feldera.pidlock can't be examined: {error}"));
    match error.raw_os_error() {
        Some(errno) => problem.with("errno", errno),
        None => problem,
    }
}

/// The constants are `int`, the fields `short`; all three values fit.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_let_in_even_while_a_forked_child_still_has_the_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().to_owned());
        let kept_out = EngineLock::PidLock.keep_engine_out(&root).unwrap();
        let inherited = kept_out.lock.as_ref().unwrap().try_clone().unwrap();
        let engine = open(&root.pidlock(), true).unwrap();
        let try_lock = || fcntl(&engine, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK)));
        assert!(try_lock().is_err());
        drop(kept_out);
        try_lock().unwrap();
        drop(inherited);
    }

    #[test]
    fn the_list_of_locks_is_read_right() {
        let ours = "3: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF";
        assert!(is_lock_of(ours, 4711, 1234));
        for (line, pid, inode) in [
            (ours, 4712, 1234),
            (ours, 4711, 123),
            ("3: OFDLCK ADVISORY  WRITE 4711 fe:00:1234 0 EOF", 4711, 1234),
            ("3: -> POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", 4711, 1234),
            ("", 4711, 1234),
        ] {
            assert!(!is_lock_of(line, pid, inode), "{line}");
        }
    }
}
