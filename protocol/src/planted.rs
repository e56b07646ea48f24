//! Bugs that tests plant, one at a time, to show that the model check and the simulation catch them.
//!
//! Each stands at the place where a careless version of the production code would differ, as `planted::is(Bug::…)`. The switch belongs to the
//! thread that sets it and exists in builds with debug assertions only: elsewhere [`is`] is a constant false, and no process can be told to plant one.

/// One way to get the protocol wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {}

impl Bug {
    /// Every one of them, for the test that shows how each is caught.
    pub const ALL: [Self; 0] = [];
}

#[cfg(debug_assertions)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with that bug.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug for this thread, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(debug_assertions)]
pub use switch::{is, plant};

/// Never, in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub const fn is(_: Bug) -> bool {
    false
}
