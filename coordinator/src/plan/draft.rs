//! A round as admission would make it, for those who want to know before.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_protocol::{
    id::{RoundId, Term},
    round::{Kind, Participant, Phase, PullRequest, PushState, RetryPolicy, Round, WantedCut},
    spec::PullSelector,
};
use uuid::Uuid;

use crate::store::PipelineRow;

/// Without an id, since nobody admitted it.
pub fn round(row: &PipelineRow, kind: Kind, now: DateTime<Utc>, deadline: Duration, retry: RetryPolicy) -> Round {
    let participants =
        row.spec.layout.slots().map(|slot| Participant::waiting(slot.idx(), row.spec.agents.of(slot.idx())));
    Round {
        id: RoundId::new(Uuid::nil()),
        pipeline: row.id,
        pipeline_name: row.spec.name.clone(),
        round_no: row.next_round_no,
        generation: row.generation,
        layout: row.spec.layout,
        location: row.spec.location.clone(),
        version: 0,
        term: Term::NONE,
        phase: match kind {
            Kind::Push(_) => Phase::Planning,
            Kind::Pull(_) => Phase::Resolving,
        },
        deadline: TimeDelta::from_std(deadline).ok().and_then(|d| now.checked_add_signed(d)).unwrap_or(now),
        problem: None,
        cancel: None,
        participants: participants.collect(),
        retry,
        kind,
    }
}

/// The kind of a push round that nobody has planned.
pub fn push(row: &PipelineRow, wanted: WantedCut, force: bool) -> Kind {
    Kind::Push(PushState::asked(row.next_seq, wanted, force, row.last_commit.as_ref().map(|last| last.commit)))
}

/// A standby's pull: never of what only the hosts' own disks hold, and never a fresh start.
pub const fn of_standby(selector: PullSelector) -> PullRequest {
    PullRequest { selector, standby: true, fail_if_none: true, allow_fingerprint: false, discard_local: false }
}
