//! Folders of tests.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// A folder in memory, where there is enough of it, else on the disk: for tests whose many files a disk makes slow, and that a disk proves nothing to. A
/// kill -9 loses nothing that was written either way.
pub fn in_memory() -> TempDir {
    const ENOUGH: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    let free = statvfs(memory).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    let folder = if free > ENOUGH { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary directory")
}
