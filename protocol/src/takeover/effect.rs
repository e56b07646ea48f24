//! What shall happen outside, derived from the stored take-over alone: a replica that goes on after a crash finds the same.

use chrono::{DateTime, Utc};

use super::{Phase, TakeOver, to_pull};
use crate::{
    commit::CommitRef,
    id::Generation,
    planted::{self, Bug},
};

/// Something to carry out. Idempotent; its result comes back as an event.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Activate: pull the newest checkpoint, or the chosen one, by a standby's pull round.
    WarmPull,
    /// List the fences; for the highest above 1 run [`crate::finish`].
    Survey,
    /// Create-only PUT of the stored bytes, then [`super::judge_fence`]. Before the fence of generation 1: `lockstep.json`.
    PutFence(Generation),
    /// Run [`crate::finish`] for this generation.
    FinishBase(Generation),
    /// In one transaction, under the pipeline's row lock: settle every open round ([`super::settle`]), set the row's generation, seq 1, the base's commit as its last, no
    /// fence, and store `Adopted`.
    Adopt,
    /// Activate: pull exactly this commit into every host.
    Pull(CommitRef),
}

/// What the stored take-over wants to happen now.
pub fn effects(take_over: &TakeOver, now: DateTime<Utc>) -> Vec<Effect> {
    if take_over.retry_at.is_some_and(|at| at > now) {
        return Vec::new();
    }
    match (take_over.phase, take_over.generation()) {
        (Phase::Warming, _) => vec![Effect::WarmPull],
        (Phase::Preparing, _) => vec![Effect::Survey],
        (Phase::Fencing, Some(generation)) if planted::is(Bug::TakerListsBeforeItsFence) => {
            vec![Effect::FinishBase(generation), Effect::PutFence(generation)]
        }
        (Phase::Fencing, Some(generation)) => vec![Effect::PutFence(generation)],
        (Phase::Basing, Some(generation)) => vec![Effect::FinishBase(generation)],
        (Phase::Adopting, _) => vec![Effect::Adopt],
        (Phase::Pulling, _) => to_pull(take_over).map(Effect::Pull).into_iter().collect(),
        (Phase::Fencing | Phase::Basing, None) | (Phase::Done | Phase::Failed | Phase::Cancelled, _) => Vec::new(),
    }
}

/// When [`effects`] may change without any event.
pub fn next_wake(take_over: &TakeOver) -> Option<DateTime<Utc>> {
    take_over.retry_at.filter(|_| !take_over.phase.is_terminal())
}
