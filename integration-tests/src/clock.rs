//! Another clock for a process: what it is told of the time of day is shifted, its timers are not.

use std::path::{Path, PathBuf};

/// Debian's package puts it below the folder of the architecture.
const LIBRARIES: &str = "/usr/lib";

/// `libfaketime`, as `scripts/ensure-faketime.sh` has found or installed it.
pub fn library() -> String {
    let named = std::env::var_os("LOCKSTEP_FAKETIME").map(PathBuf::from);
    let folders = std::fs::read_dir(LIBRARIES).into_iter().flatten().flatten();
    let installed = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = named.into_iter().chain(installed).find(|path| Path::exists(path));
    let found = found.unwrap_or_else(|| panic!("no libfaketime: run scripts/ensure-faketime.sh"));
    found.display().to_string()
}

/// The environment of a process whose clock is off by so much, as `FAKETIME` has it: `+1d`.
pub const fn shifted<'e>(by: &'e str, library: &'e str) -> [(&'static str, &'e str); 3] {
    [("LD_PRELOAD", library), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
}
