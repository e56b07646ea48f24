//! What was met on the way through a world: that it is closed says little if nothing happens in it.

use std::sync::atomic::{AtomicU32, Ordering};

/// One bit an outcome, shared by the threads of an exploration.
#[derive(Debug, Default)]
pub(super) struct Met(AtomicU32);

impl Met {
    pub(super) fn has(&self, bit: u32) -> bool {
        self.0.load(Ordering::Relaxed) & bit != 0
    }

    /// Written rarely, so that threads don't fight over it.
    pub(super) fn add(&self, bits: u32) {
        if self.0.load(Ordering::Relaxed) & bits != bits {
            self.0.fetch_or(bits, Ordering::Relaxed);
        }
    }
}
