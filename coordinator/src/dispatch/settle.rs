//! The decision of a push: the stored bytes are put at its key until what stands there is known, then what follows the generation is read
//! (push steps 4 to 6).

use std::sync::Arc;

use bytes::Bytes;
use lockstep_bucket::{DecisionOutcome, put_decision};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::DecisionObject,
    digest::Digest,
    key::Key,
    planted::{self, Bug},
    problem::{Problem, Reason},
    round::{DecisionKnown, Event, Kind, PushState, Round},
};

use super::drive::{Drive, jitter};

/// Which bytes are put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    /// The commit document.
    Commit,
    /// The abort record. Whichever stands in the end, the commit or this, has decided.
    Abort,
}

impl Which {
    const fn points(self) -> [Point; 3] {
        match self {
            Self::Commit => [Point::CommitBeforePut, Point::CommitAfterPut, Point::CommitFenceRead],
            Self::Abort => [Point::AbortBeforePut, Point::AbortAfterPut, Point::AbortFenceRead],
        }
    }
}

/// None: the row holds no such bytes.
pub(super) async fn run(drive: &Drive, round: &Round, which: Which) -> Option<Event> {
    let Kind::Push(push) = &round.kind else { return None };
    let bytes = match which {
        Which::Commit => push.commit_bytes.as_ref()?,
        Which::Abort => push.abort_bytes.as_ref()?,
    };
    let place = match drive.own_place(round).await {
        Ok(place) => place.impatient(),
        Err(problem) => {
            let decision = DecisionKnown::Unknown(problem);
            return Some(Event::Settled { decision, successor: None, jitter: jitter() });
        }
    };
    let key = (round.generation, push.seq);
    let [before_put, after_put, fence_read] = which.points();
    // A careless version: before the commit stood.
    let early =
        if planted::is(Bug::FenceCheckBeforeCommit) { Some(place.successor(round.generation).await) } else { None };
    reached(before_put);
    let outcome = put_decision(place.bucket(), key, Bytes::from(bytes.clone()), round.id).await;
    reached(after_put);
    let decision = known(push, which, outcome);
    if decision == DecisionKnown::CommitStands {
        remember(drive, round, push);
    }
    if let DecisionKnown::Unknown(problem) = &decision {
        tracing::warn!(reason = %problem.reason, "the decision is not known yet: {}", problem.message);
    }
    // After the decision, never before: a fence that comes in between must be seen (push step 6). Also where the decision is unknown, since a
    // base that excludes this round decides even then (F4).
    let successor = match early {
        Some(early) => early,
        None => place.successor(round.generation).await,
    };
    let successor = match successor {
        Ok(successor) => Some(successor),
        Err(problem) => {
            tracing::warn!(reason = %problem.reason, "what follows the generation is not known yet: {}", problem.message);
            None
        }
    };
    reached(fence_read);
    Some(Event::Settled { decision, successor, jitter: jitter() })
}

/// The next push has this commit for its base, and need not read what was just written.
fn remember(drive: &Drive, round: &Round, push: &PushState) {
    let Some(bytes) = push.commit_bytes.as_ref().map(String::as_bytes) else { return };
    let key = Key::Commit(round.generation, push.seq).to_string();
    if let Ok(DecisionObject::Commit(document)) = DecisionObject::parse(&key, bytes) {
        drive.services.known.learn_commit(bytes, Arc::from(document));
    }
}

fn known(push: &PushState, which: Which, outcome: DecisionOutcome) -> DecisionKnown {
    match (outcome, which) {
        (DecisionOutcome::Stands, Which::Commit) => DecisionKnown::CommitStands,
        (DecisionOutcome::Stands, Which::Abort) | (DecisionOutcome::Aborted(_), _) => DecisionKnown::AbortStands,
        (DecisionOutcome::Committed { digest, .. }, _) => {
            let mine = push.commit_bytes.as_ref().map(|bytes| Digest::of(bytes.as_bytes()));
            if mine == Some(digest) {
                return DecisionKnown::CommitStands;
            }
            // S7: bytes are stored before they are PUT, and stored once. If this is ever seen, nothing must be built on it.
            DecisionKnown::Unknown(
                Problem::new(
                    Reason::Integrity,
                    format!(
                        "the decision key holds a commit of this round with digest {digest}, which its row never held"
                    ),
                )
                .with("found", digest)
                .with("expected", mine.map_or_else(|| "none".to_owned(), |mine| mine.to_string())),
            )
        }
        (DecisionOutcome::OtherRound { round }, _) => DecisionKnown::OtherRound(round),
        (DecisionOutcome::Retired, _) => DecisionKnown::Unknown(Problem::new(
            Reason::DatabaseBehind,
            "the decision key is retired already: the database is behind the bucket; resync the pipeline",
        )),
        (DecisionOutcome::Unreadable(problem), _) => DecisionKnown::Unknown(problem),
        (DecisionOutcome::Unknown(error) | DecisionOutcome::Refused(error), _) => {
            DecisionKnown::Unknown(error.problem())
        }
    }
}
