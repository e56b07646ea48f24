//! Free space of the file system that holds the checkpoints.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use lockstep_protocol::problem::{Problem, Reason};
use nix::sys::statvfs::{Statvfs, statvfs};

/// A transfer leaves this much of the file system to the engine: a hundredth of it, between 64 MiB and 1 GiB, of small ones a twentieth.
fn reserve(file_system: u64) -> u64 {
    (file_system / 100).clamp(64 << 20, 1 << 30).min(file_system / 20)
}

fn ask(path: &Path) -> Result<Statvfs, Problem> {
    statvfs(path).map_err(|errno| {
        Problem::new(Reason::LocalIo, format!("cannot ask {} for its free space: {errno}", path.display()))
            .with("path", path.display())
            .with("errno", errno as i32)
    })
}

/// Bytes that an unprivileged process can still write.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, Problem> {
    ask(path).map(|stat| free(&stat))
}

fn free(stat: &Statvfs) -> u64 {
    stat.blocks_available().saturating_mul(stat.fragment_size())
}

/// What a transfer is still going to take of a file system.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    block: u64,
    reserve: u64,
    left: AtomicU64,
}

impl Claim {
    /// On the file system that `path` is on; of nothing yet. Blocks.
    pub(crate) fn on(path: &Path) -> Result<Self, Problem> {
        let stat = ask(path)?;
        Ok(Self {
            path: path.to_owned(),
            block: stat.fragment_size().max(1),
            reserve: reserve(stat.blocks().saturating_mul(stat.fragment_size())),
            left: AtomicU64::new(0),
        })
    }

    /// What a file takes: whole blocks.
    fn blocks(&self, size: u64) -> u64 {
        size.div_ceil(self.block).saturating_mul(self.block)
    }

    /// A file of this size is going to be written.
    pub(crate) fn add(&self, size: u64) {
        let more = self.blocks(size);
        // Never fails: the function always gives a value.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_add(more)));
    }

    /// So many bytes are written, or reserved for a file.
    pub(crate) fn took(&self, bytes: u64) {
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
    }

    /// A whole file is written, or its space reserved.
    pub(crate) fn took_file(&self, size: u64) {
        self.took(self.blocks(size));
    }

    /// `NO_SPACE` if what is left to write does not fit beside the reserve. Blocks.
    pub(crate) fn require(&self) -> Result<(), Problem> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        let free = free_bytes(&self.path)?;
        let needed = left.saturating_add(self.reserve);
        if needed <= free {
            return Ok(());
        }
        Err(Problem::new(
            Reason::NoSpace,
            format!(
                "{} has {free} bytes free, the checkpoint needs {left} more and {} stay free: make room and try again",
                self.path.display(),
                self.reserve
            ),
        )
        .with("path", self.path.display())
        .with("needed", needed)
        .with("free", free))
    }

    /// Adds to a write's `NO_SPACE` what is missing. Blocks.
    pub(crate) fn explain(&self, mut problem: Problem) -> Problem {
        if problem.reason != Reason::NoSpace || problem.metadata.contains_key("free") {
            return problem;
        }
        let needed = self.left.load(Ordering::Relaxed).saturating_add(self.reserve);
        problem = problem.with("needed", needed);
        let Ok(stat) = ask(&self.path) else { return problem };
        if stat.files_available() == 0 {
            problem.message.push_str(": the file system has no room for one more file, however small");
            problem = problem.with("free_files", 0);
        }
        problem.with("free", free(&stat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_has_is_refused_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::on(folder.path()).unwrap();
        claim.require().unwrap();
        claim.add(1 << 62);
        let problem = claim.require().unwrap_err();
        assert_eq!(problem.reason, Reason::NoSpace);
        assert!(problem.metadata["needed"].parse::<u64>().unwrap() > 1 << 62);
        assert!(problem.metadata["free"].parse::<u64>().unwrap() > 0);
        claim.took_file(1 << 62);
        claim.require().unwrap();
    }

    #[test]
    fn small_files_take_whole_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::on(folder.path()).unwrap();
        (0..10).for_each(|_| claim.add(1));
        assert_eq!(claim.left.load(Ordering::Relaxed), 10 * claim.block);
    }

    #[test]
    fn the_reserve_fits_the_file_system() {
        let mib = 1 << 20;
        let cases = [(100 * mib, 5 * mib), (2048 * mib, 64 * mib), (50_000 * mib, 500 * mib), (1 << 42, 1024 * mib)];
        for (file_system, expected) in cases {
            assert_eq!(reserve(file_system), expected, "{file_system}");
        }
    }

    #[test]
    fn a_full_disk_tells_how_much_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::on(folder.path()).unwrap();
        let full = claim.explain(Problem::new(Reason::NoSpace, "full"));
        assert!(full.metadata["free"].parse::<u64>().is_ok() && full.metadata["needed"].parse::<u64>().is_ok());
        let other = claim.explain(Problem::new(Reason::LocalIo, "broken"));
        assert!(other.metadata.is_empty());
    }
}
