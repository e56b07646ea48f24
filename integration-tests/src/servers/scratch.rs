//! A folder that goes with this process, however that ends.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Removes the folder once its standard input ends, which it does when whoever holds the other end is gone. Children that were killed at the
/// same moment may still write their last: then it is tried again.
const JANITOR: &str = r#"cat; n=0; until rm -rf -- "$1" || [ $n -ge 100 ]; do n=$((n + 1)); done"#;

/// A temporary folder. A static is never dropped and a killed process drops nothing, so a small process of its own removes it.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    janitor: Child,
}

impl Scratch {
    /// A new empty folder.
    pub fn new(name: &str) -> Self {
        let prefix = format!("lockstep-{name}-");
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder can be made");
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "janitor"]).arg(folder.path());
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: ctrl-C of a test run must not end it before it has cleaned up.
        let janitor = janitor.process_group(0).spawn().expect("sh can be started");
        Self { folder, janitor }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}
