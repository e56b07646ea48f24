//! What the end of a warm pull means for its activation. Nothing was put yet: what can't pass by itself ends it.

use super::Chosen;
use crate::{
    commit::CommitRef,
    id::RoundId,
    problem::{Problem, Reason, Retryable},
};

/// Which `CHECKPOINT_NOT_FOUND` a pull ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotFound {
    /// The checkpoint that it had chosen was retired by its owner meanwhile: the next pull chooses another one.
    Retired(RoundId),
    /// No place that was looked in has any.
    Nowhere,
}

impl NotFound {
    /// None: it ended otherwise. Whoever had chosen a checkpoint names it; whoever found none can't, and says in its place what was looked for.
    pub fn of(problem: &Problem) -> Option<Self> {
        if problem.reason != Reason::CheckpointNotFound {
            return None;
        }
        let named = problem.metadata.get("checkpoint").and_then(|id| id.parse().ok());
        Some(named.map_or(Self::Nowhere, Self::Retired))
    }
}

/// How a warm pull ended, for its activation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warmth {
    /// Every host has it; none: neither the location nor the read location has any checkpoint, and that is proven.
    Warmed(Option<CommitRef>),
    /// It is pulled again.
    Again(Problem),
    /// The bucket has lost it: an operator has to choose another one.
    Damaged(Problem),
    /// It ends the activation.
    Refused(Problem),
}

impl Warmth {
    /// `chosen`: the operator wants that one and no other.
    pub fn of(pulled: Result<Option<CommitRef>, Problem>, chosen: Option<Chosen>) -> Self {
        let problem = match pulled {
            Ok(commit) => return Self::Warmed(commit),
            Err(problem) => problem,
        };
        match NotFound::of(&problem) {
            Some(NotFound::Retired(_)) => Self::Again(problem),
            Some(NotFound::Nowhere) if chosen.is_none() => Self::Warmed(None),
            _ if is_damage(problem.reason) => Self::Damaged(problem),
            _ if problem.retryable() == Retryable::Yes => Self::Again(problem),
            _ => Self::Refused(problem),
        }
    }
}

/// What the bucket has lost, as far as a pull can tell: after all attempts of one, other bytes than a digest says are no accident of the way.
pub const fn is_damage(reason: Reason) -> bool {
    matches!(reason, Reason::CheckpointDamaged | Reason::ManifestInvalid | Reason::Integrity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        id::{Generation, Seq, Step},
    };

    const ROUND: &str = "01a224d6-77f0-74d3-8fb3-cce7bd579288";

    fn problem(reason: Reason) -> Problem {
        Problem::new(reason, "text")
    }

    fn nowhere() -> Problem {
        problem(Reason::CheckpointNotFound).with("selector", "latest").with("looked_in", "location s3://acme/orders")
    }

    fn retired() -> Problem {
        problem(Reason::CheckpointNotFound).with("checkpoint", ROUND).with("location", "s3://acme/orders")
    }

    fn end(problem: &Problem, chosen: Option<Chosen>) -> Warmth {
        Warmth::of(Err(problem.clone()), chosen)
    }

    #[test]
    fn a_checkpoint_that_was_retired_while_it_was_pulled_is_not_the_same_as_none() {
        assert_eq!(NotFound::of(&retired()), Some(NotFound::Retired(ROUND.parse().unwrap())));
        assert_eq!(NotFound::of(&nowhere()), Some(NotFound::Nowhere));
        assert_eq!(NotFound::of(&problem(Reason::CheckpointDamaged).with("checkpoint", ROUND)), None);

        let chosen = Some(Chosen::Step(Step::new(4).unwrap()));
        assert_eq!(end(&retired(), None), Warmth::Again(retired()));
        assert_eq!(end(&retired(), chosen), Warmth::Again(retired()), "the next pull says that there is none");
        assert_eq!(end(&nowhere(), None), Warmth::Warmed(None), "an empty location is activated");
        assert_eq!(end(&nowhere(), chosen), Warmth::Refused(nowhere()), "what was chosen is not there");
    }

    #[test]
    fn damage_asks_for_a_choice_what_may_pass_is_pulled_again_and_the_rest_ends_it() {
        let commit = CommitRef {
            generation: Generation::FIRST,
            seq: Seq::FIRST,
            round: ROUND.parse().unwrap(),
            digest: Digest::of(b"commit"),
        };
        assert_eq!(Warmth::of(Ok(Some(commit)), None), Warmth::Warmed(Some(commit)));
        for reason in [Reason::CheckpointDamaged, Reason::ManifestInvalid, Reason::Integrity] {
            assert_eq!(end(&problem(reason), None), Warmth::Damaged(problem(reason)), "{reason}");
        }
        for reason in [Reason::StoreUnavailable, Reason::AgentUnreachable, Reason::Superseded] {
            assert_eq!(end(&problem(reason), None), Warmth::Again(problem(reason)), "{reason}");
        }
        for reason in [Reason::LayoutMismatch, Reason::StoreDenied, Reason::Fenced] {
            assert_eq!(end(&problem(reason), None), Warmth::Refused(problem(reason)), "{reason}");
        }
    }
}
