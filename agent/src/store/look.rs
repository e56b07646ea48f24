//! What tells one content of a file from another without reading it.

use std::{fs::Metadata, os::unix::fs::MetadataExt, time::UNIX_EPOCH};

/// Seconds since 1970 and nanoseconds.
pub(crate) type Instant = (i64, i64);

/// A file as its metadata shows it: another content has another one, as long as whoever writes doesn't set the clock of a file back. Not the path: under the same
/// name another checkpoint may have another file, and a hard link is the same file under another name. Not the time of the last change of the inode: a new hard link is one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Look {
    /// File system, as long as it is mounted.
    pub device: u64,
    /// File in it.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last write to its content: seconds since 1970 and nanoseconds.
    pub modified: Instant,
    /// When the inode was made, where the file system says: tells a file from an earlier one with the same inode. Seconds since 1970 and nanoseconds.
    pub born: Option<Instant>,
}

impl Look {
    /// From what `stat` of the file itself, never of a symlink to it, gave.
    pub fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            born: born.map(|at| (i64::try_from(at.as_secs()).unwrap_or(i64::MAX), i64::from(at.subsec_nanos()))),
        }
    }
}
