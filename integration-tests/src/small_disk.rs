//! A small file system of its own: a disk that is soon full. Takes root, as in CI.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted tmpfs, unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where nobody may mount: said, and a failure for root.
    pub fn mount(at: &Path, mib: usize) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return None;
        }
        let size = format!("size={mib}m");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "lockstep-test"]).arg(at).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot mount a tmpfs on {}", at.display());
        Some(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: an agent of a failed test may still have files open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes all that is left on a disk, as its engine or whoever else writes there may. The place is free again once the file is removed.
pub fn fill(file: &Path) {
    let mut left = fs::File::create(file).expect("a file can be made");
    let full = loop {
        if let Err(error) = left.write_all(&[1; 64 << 10]) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{}: {full}", file.display());
}
