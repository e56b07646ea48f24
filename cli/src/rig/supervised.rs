//! The child's side of [`super::process`].

use std::io::Read as _;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

/// Set in the environment of children.
pub(super) const SUPERVISED: &str = "LOCKSTEP_SUPERVISED";

/// What an orderly end may take once the supervisor is gone.
const GRACE: Duration = Duration::from_secs(5);

/// In a child of a rig: ends this process when the one that started it has ended. Elsewhere: nothing.
pub(crate) fn end_with_the_supervisor() {
    if std::env::var_os(SUPERVISED).is_none() {
        return;
    }
    let watch = || {
        // Nothing is ever written: this returns when the pipe's other end is gone.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = raise(Signal::SIGTERM);
        std::thread::sleep(GRACE);
        std::process::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("supervisor-watch".to_owned()).spawn(watch) {
        eprintln!("warning: this process will outlive its supervisor: {error}");
    }
}
