//! What may happen to a take-over, and how the answers to its PUT are judged.

use crate::{
    commit::CommitRef,
    fence::{Fence, FenceBase},
    planted::{self, Bug},
    problem::Problem,
    round::CancelRequest,
};

/// Something that happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Activate: the warm pull is done; none: the location holds nothing, proven.
    Warmed(Option<CommitRef>),
    /// The highest fence and that its base stands (finished on the way, F3); none: proven that there is no fence.
    Surveyed {
        /// The highest fence.
        highest: Option<Fence>,
    },
    /// It can't be done: nothing was put, and the store is unsuitable or the warm pull failed for good; or, before the last pull was done, a newer fence stands (`FENCED`) or
    /// what it pulls is damaged or gone (`CHECKPOINT_DAMAGED`, `CHECKPOINT_NOT_FOUND`).
    Refused(Problem),
    /// What stands at the key of the prepared fence.
    Fenced(FenceKnown),
    /// The base of the prepared generation that stands, whoever wrote it.
    BaseStands(FenceBase),
    /// The transaction that adopts the generation.
    Adopted,
    /// Activate: every host has this commit.
    Pulled(CommitRef),
    /// Whatever the phase tries is not known, or failed in a way that may pass.
    Unknown {
        /// What went wrong.
        problem: Problem,
        /// Random in 0..=1000, for the back-off's jitter.
        jitter: u32,
    },
    /// Somebody asked to stop.
    CancelRequested(CancelRequest),
}

/// What is known of a fence's key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FenceKnown {
    /// Exactly the prepared bytes stand.
    Mine,
    /// Another fence does: the prepared one never will.
    Lost(Box<Fence>),
}

/// What a create-only PUT was answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PutAnswer {
    /// It was absent and holds the bytes now.
    Created,
    /// Something stands there: maybe what an earlier try wrote.
    Exists,
    /// No answer, or none that says what happened. It may land later.
    Unknown,
}

/// Judges a fence's PUT by what was read at its key *after* the answer; nothing needs to be read after [`PutAnswer::Created`]. `Ok(None)`: not known,
/// the same bytes are put again. An error: what stands there is no fence.
pub fn judge_fence(
    key: &str,
    mine: &[u8],
    answer: PutAnswer,
    found: Option<&[u8]>,
) -> Result<Option<FenceKnown>, Problem> {
    match (answer, found) {
        (PutAnswer::Created, _) => Ok(Some(FenceKnown::Mine)),
        (_, None) => Ok(None),
        // Two take-overs never write the same bytes, and the own earlier try is answered "exists".
        (PutAnswer::Unknown, Some(found)) if found == mine => Ok(Some(FenceKnown::Mine)),
        (PutAnswer::Exists, Some(found)) if found == mine && !planted::is(Bug::ExistingFenceIsLost) => {
            Ok(Some(FenceKnown::Mine))
        }
        (_, Some(found)) => Fence::parse(key, found).map(|other| Some(FenceKnown::Lost(Box::new(other)))),
    }
}
