//! Free space of the file system that holds the checkpoints.

use std::path::Path;

use lockstep_protocol::problem::{Problem, Reason};
use nix::sys::statvfs::statvfs;

/// Bytes that an unprivileged process can still write.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, Problem> {
    let stat = statvfs(path).map_err(|errno| {
        Problem::new(Reason::LocalIo, format!("cannot ask {} for its free space: {errno}", path.display()))
            .with("path", path.display())
            .with("errno", errno as i32)
    })?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// `NO_SPACE` if less than `needed` bytes are free.
pub(crate) fn require(path: &Path, needed: u64) -> Result<(), Problem> {
    let free = free_bytes(path)?;
    if needed <= free {
        return Ok(());
    }
    Err(Problem::new(
        Reason::NoSpace,
        format!("{} has {free} bytes free, the checkpoint needs {needed}: make room and try again", path.display()),
    )
    .with("path", path.display())
    .with("needed", needed)
    .with("free", free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_has_is_refused_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        require(folder.path(), 0).unwrap();
        let problem = require(folder.path(), u64::MAX).unwrap_err();
        assert_eq!((problem.reason, problem.metadata["needed"].as_str()), (Reason::NoSpace, "18446744073709551615"));
        assert!(problem.metadata["free"].parse::<u64>().unwrap() > 0);
    }
}
