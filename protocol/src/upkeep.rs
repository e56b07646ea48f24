//! Upkeep of a location: a pin set or taken away, a checkpoint retired, garbage collected. Each is a row that one replica at a time drives, and that ends
//! as [`decide`] says.
//!
//! Nothing of what was found or planned is stored, but for exact bytes: whoever goes on after a crash looks again, and finds what is left. So a step may
//! be repeated at any time, and several replicas at once do no harm (G4).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    commit::CommitRef,
    id::{Generation, PipelineId, PipelineName, Term},
    location::Location,
    problem::{Problem, Retryable},
    round::RetryPolicy,
};

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Put a pin.
    Pin {
        /// What it keeps.
        commit: CommitRef,
        /// Where.
        key: String,
        /// Exactly these bytes.
        bytes: String,
    },
    /// Take pins away.
    Unpin {
        /// Keys of pins; each is used once, so nobody else's can stand there.
        keys: Vec<String>,
        /// What stood there, in the same order, for whoever asks again when they are gone. Rows of older versions have none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        documents: Vec<String>,
    },
    /// Retire one checkpoint now, whatever the pipeline's retention says.
    Retire {
        /// Which.
        commit: CommitRef,
    },
    /// Retire what retention permits, sweep what was retired, delete what nothing reaches.
    Collect,
}

impl Work {
    /// As rows and audit events carry it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Unpin { .. } => "unpin",
            Self::Retire { .. } => "retire",
            Self::Collect => "collect",
        }
    }

    /// Which commit it is about.
    pub const fn commit(&self) -> Option<CommitRef> {
        match self {
            Self::Pin { commit, .. } | Self::Retire { commit } => Some(*commit),
            Self::Unpin { .. } | Self::Collect => None,
        }
    }
}

/// Where a piece of upkeep stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Admitted: it is driven, or will be. Remains until its outcome is known. Next: `Done`, `Failed`.
    Waiting,
    /// What was asked for is so. Terminal.
    Done,
    /// It was given up; what it has done so far stays done, and asking again goes on. Terminal.
    Failed,
}

impl Phase {
    /// As rows and audit events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Waiting, Self::Done, Self::Failed].into_iter().find(|phase| phase.as_str() == text)
    }

    /// Nothing changes any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What was done so far. What a replica did right before it died may be missing, or be counted twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Checkpoints whose tombstone is known to stand since.
    pub retired: u64,
    /// Checkpoints whose commit object is gone since.
    pub swept: u64,
    /// Objects deleted, documents included.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Multipart uploads aborted.
    pub uploads: u64,
    /// Objects and uploads that the store would not let go of: a later collection tries again.
    pub put_off: u64,
}

/// One piece of upkeep, as a row holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upkeep {
    /// Drawn at admission.
    pub id: Uuid,
    /// Whose location.
    pub pipeline: PipelineId,
    /// Its name at that time.
    pub pipeline_name: PipelineName,
    /// Frozen at admission.
    pub location: Location,
    /// Of the location, that the pipeline's row held at admission.
    pub generation: Generation,
    /// What for.
    pub work: Work,
    /// Rises by one with each stored change.
    pub version: u64,
    /// Of the replica that drives it.
    pub term: Term,
    /// Where it stands.
    pub phase: Phase,
    /// What was done.
    pub tally: Tally,
    /// Why it failed, or why something was put off; while it waits, what went wrong last.
    pub problem: Option<Problem>,
    /// Tries without a known outcome.
    pub tries: u32,
    /// Not before this.
    pub retry_at: Option<DateTime<Utc>>,
    /// How tries follow each other.
    pub retry: RetryPolicy,
    /// Admission, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// End, by the database's clock.
    pub ended_at: Option<DateTime<Utc>>,
}

/// What came of one try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is done; the problem says why something was put off.
    Done(Option<Problem>),
    /// It did not come to its end.
    Stopped {
        /// Why.
        problem: Problem,
        /// Random in 0..=1000, for the back-off's jitter.
        jitter: u32,
    },
}

/// What becomes of the row. What may pass by itself is tried again; a pin for ever, since its PUT may have landed whatever is known.
pub fn decide(before: &Upkeep, outcome: Outcome, tally: Tally, now: DateTime<Utc>) -> Upkeep {
    let mut next = Upkeep { tally, ..before.clone() };
    if before.phase.is_terminal() {
        return next;
    }
    match outcome {
        Outcome::Done(problem) => {
            next.phase = Phase::Done;
            next.problem = problem;
            next.retry_at = None;
        }
        Outcome::Stopped { problem, jitter } => {
            next.tries = before.tries.saturating_add(1);
            let may_pass = problem.retryable() == Retryable::Yes;
            let insists = matches!(before.work, Work::Pin { .. }) || next.tries < before.retry.max_attempts;
            if may_pass && insists {
                next.retry_at = Some(crate::round::later(now, before.retry.delay(next.tries, jitter)));
            } else {
                next.phase = Phase::Failed;
                next.retry_at = None;
            }
            next.problem = Some(problem);
        }
    }
    next
}
