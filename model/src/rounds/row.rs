//! The database's row of a round and those who drive it, as `coordinator/src/store` and `coordinator/src/dispatch` treat them.
//!
//! Versions only rise and are only compared for being the same, so what a driver remembers of one is whether it is the row's still.

use lockstep_protocol::planted::{self, Bug};

use super::book::{Answer, Page};

/// One round in the database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Row {
    pub(super) page: Page,
    pub(super) term: u8,
    /// Somebody's wish, beside the round.
    pub(super) cancel_requested: bool,
}

/// How a driver's copy relates to the row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Copy {
    /// The row has this version.
    Current,
    /// The row has moved; the driver does not know.
    Stale,
    /// A write found the row moved, or its outcome is unknown (R6): the driver reads the row again before anything else.
    Reload,
}

/// A replica that drives a round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Driver<T> {
    pub(super) round: u8,
    pub(super) term: u8,
    pub(super) page: Page,
    pub(super) copy: Copy,
    pub(super) task: T,
}

/// A statement whose answer was lost and that is executed later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct LateWrite {
    pub(super) round: u8,
    pub(super) term: u8,
    pub(super) current: bool,
    pub(super) answer: Stored,
}

/// What a write stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Stored {
    pub(super) next: Page,
    pub(super) fence_pipeline: bool,
}

impl From<Answer> for Stored {
    fn from(answer: Answer) -> Self {
        Self { next: answer.next, fence_pipeline: answer.fence_pipeline }
    }
}

/// `WHERE id = .. AND version = .. AND term = .. AND ended_at IS NULL`, as `store/apply.rs` has it.
pub(super) fn guard(row: &Row, ended: bool, term: u8, version_is_current: bool) -> bool {
    let version = version_is_current || planted::is(Bug::NoVersionInWhere) || planted::is(Bug::NoGuardInWhere);
    let term = term == row.term || planted::is(Bug::NoTermInWhere) || planted::is(Bug::NoGuardInWhere);
    version && term && !ended
}
