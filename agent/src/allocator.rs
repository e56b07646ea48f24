//! How the sidecar's allocator is set up: large buffers go back to the system when they are freed.
//!
//! glibc raises the size from which it maps memory by itself each time such a block is freed, up to 32 MiB. Documents of 100,000 files then leave holes in its heaps that
//! stay resident. A fixed size keeps that from happening; it can only be set by the environment, before the process starts.

use std::{env, os::unix::process::CommandExt, process::Command};

/// Read by glibc, and by nothing else: other allocators ignore it.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";

/// Above the connections' read buffers, which come and go all the time; below what a document of many files takes.
const BYTES: &str = "1048576";

/// Starts this program anew, in the same process, with the variable set, unless somebody set it. To be called first thing in `main`, before there are threads. Where it does not
/// work out the program goes on as it is: it only takes more memory.
pub fn give_memory_back() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only if it failed.
    let _ = command.args(arguments).env(VARIABLE, BYTES).exec();
}
