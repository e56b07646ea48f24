//! Take-overs of locations as rows: admitted, claimed by one replica at a time, moved by guarded writes, and adopted in one transaction that
//! settles the pipeline's open round and gives its row the new generation (F4).

use std::{sync::Arc, time::Duration};

use chrono::SubsecRound;
use lockstep_protocol::{
    fence::Writer,
    id::{Generation, RequestId, Term},
    problem::{Problem, Reason},
    round::{self, RetryPolicy, Round},
    takeover::{self, Chosen, Decision, Phase, Purpose, TakeOver},
};
use uuid::Uuid;

use super::{
    Caller, Change, ClaimState, LastCommit, PipelineRow, PipelineSelector, Store, StoreError, changes::Reach,
    fail_back::is_no_standby, learnt::Learnt, look_and_apply, settle_twice, text::as_read,
};
use crate::chance;

mod statements;

pub(super) use statements::{admit, apply, claim, get, renew, take_over};

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdmitTakeOver {
    /// Who takes its location over.
    pub pipeline: PipelineSelector,
    /// What for: [`Purpose::TakeOver`], or [`Purpose::Activate`] of a standby, or [`Purpose::Resync`].
    pub purpose: Purpose,
    /// An activation's: what to go on from instead of exactly the base.
    pub chosen: Option<Chosen>,
    /// Idempotency key. None: each call is a new request.
    pub request_id: Option<RequestId>,
    /// The generation that who asks goes by. `TAKE_OVER_IN_PROGRESS` if it has moved: somebody has taken over since. None: any.
    pub seen: Option<Generation>,
    /// Frozen in the row.
    pub retry: RetryPolicy,
}

/// The same with the id it will have: a call that is repeated after a lost answer finds its own row.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) ask: AdmitTakeOver,
    pub(super) id: Uuid,
    pub(super) caller: Caller,
}

/// What belongs into the transaction in which a pipeline's row takes its new generation.
#[derive(Clone, PartialEq, Debug)]
pub struct Adoption {
    /// The pipeline's open round as it was read, and what becomes of it; none: it had none.
    pub round: Option<(Round, round::Decision)>,
    /// The commit that the base names, as the newest that is known to stand.
    pub last: Option<LastCommit>,
    /// A resync's: commits that count, whose rounds the database may not know.
    pub learnt: Vec<Learnt>,
}

/// One guarded write.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) before: TakeOver,
    pub(super) decision: Decision,
    pub(super) adoption: Option<Adoption>,
    pub(super) caller: Caller,
}

/// What became of a guarded write to a take-over.
#[expect(clippy::large_enum_variant, reason = "returned once and taken apart at once, never kept in numbers")]
#[derive(Clone, PartialEq, Debug)]
pub enum TakeOverApplied {
    /// Written; with its new version.
    Stored(TakeOver),
    /// Somebody else has moved it, or its pipeline's round: nothing was written.
    Moved,
}

impl Store {
    /// Admits a take-over of the pipeline's own location. `TAKE_OVER_IN_PROGRESS` while another one of this pipeline is driven, `NOT_OWNER` while it still claims
    /// its location, `LOCATION_OWNED` where what is no standby shall be activated.
    pub async fn admit_take_over(&self, ask: AdmitTakeOver, caller: &Caller) -> Result<TakeOver, StoreError> {
        let request = Request { ask, id: chance::id(), caller: caller.clone() };
        let admitted = settle_twice(|| self.database.admit_take_over(request.clone())).await?;
        self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
        Ok(admitted)
    }

    /// What admission would refuse now.
    pub async fn check_take_over(&self, pipeline: &PipelineRow, purpose: Purpose) -> Result<(), StoreError> {
        let active = match self.database.newest_take_over(pipeline.id.into(), None).await {
            Ok(newest) => Some(newest).filter(|newest| !newest.phase.is_terminal()),
            Err(error) if error.problem().reason == Reason::RoundNotFound => None,
            Err(error) => return Err(error),
        };
        check_admits(pipeline, (purpose, None), active.map(|active| active.id)).map_err(StoreError::Problem)
    }

    /// Takes over take-overs that nobody drives; each gets a new term.
    pub async fn claim_take_overs(&self, replica: &str, lease: Duration) -> Result<Vec<TakeOver>, StoreError> {
        self.database.claim_take_overs(replica.to_owned(), lease).await
    }

    /// False: the term is not current any more, or it has ended.
    pub async fn renew_take_over(&self, id: Uuid, term: Term, lease: Duration) -> Result<bool, StoreError> {
        self.database.renew_take_over(id, term, lease).await
    }

    /// Stores a decision on exactly the take-over it was taken on; `adoption` with the one that adopts. A lost answer is looked up.
    pub async fn apply_take_over(
        &self,
        before: &TakeOver,
        decision: &Decision,
        adoption: Option<Adoption>,
        caller: &Caller,
    ) -> Result<TakeOverApplied, StoreError> {
        let change =
            Arc::new(Move { before: before.clone(), decision: decision.clone(), adoption, caller: caller.clone() });
        let applied = match self.database.apply_take_over(Arc::clone(&change)).await {
            Err(StoreError::UnknownOutcome(problem)) => {
                let look = || self.look_at_take_over(&change);
                let again = || self.database.apply_take_over(Arc::clone(&change));
                look_and_apply(problem, look, again, |applied| *applied == TakeOverApplied::Moved).await?
            }
            applied => applied?,
        };
        if matches!(applied, TakeOverApplied::Stored(_)) {
            self.hints.tell(Change::Pipeline(before.pipeline), Reach::Everywhere);
            if decision.next.phase.is_terminal() {
                // Hosts of a standby that is active now are to be told.
                self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
            }
        }
        Ok(applied)
    }

    /// What became of a write whose answer was lost; none: it was not made.
    async fn look_at_take_over(&self, change: &Move) -> Result<Option<TakeOverApplied>, StoreError> {
        let (before, found) = (&change.before, self.database.get_take_over(change.before.id).await?);
        Ok(if found == stored(change) {
            Some(TakeOverApplied::Stored(found))
        } else if found.version == before.version && found.term == before.term {
            None
        } else {
            Some(TakeOverApplied::Moved)
        })
    }

    /// One take-over, in whatever phase.
    pub async fn get_take_over(&self, id: Uuid) -> Result<TakeOver, StoreError> {
        self.database.get_take_over(id).await
    }
}

/// What a row says after a write.
pub(super) fn stored(change: &Move) -> TakeOver {
    let mut next = change.decision.next.clone();
    next.version = change.before.version.saturating_add(1);
    next.retry_at = next.retry_at.map(|at| at.trunc_subsecs(6));
    next.problem = next.problem.map(as_read);
    next.cancel = next.cancel.map(as_read);
    next
}

/// Why a pipeline can't take over now, for this purpose and at this generation.
pub(super) fn check_admits(
    pipeline: &PipelineRow,
    (purpose, seen): (Purpose, Option<Generation>),
    active: Option<Uuid>,
) -> Result<(), Problem> {
    let name = &pipeline.spec.name;
    if let Some(active) = active {
        return Err(Problem::new(
            Reason::TakeOverInProgress,
            format!(
                "pipeline {name} takes {} over already, as take-over {active}: wait for it",
                pipeline.spec.location
            ),
        )
        .with("pipeline", name)
        .with("take_over", active));
    }
    if let Some(seen) = seen.filter(|&seen| seen != pipeline.generation) {
        return Err(Problem::new(
            Reason::TakeOverInProgress,
            format!("pipeline {name} has generation {} by now, not {seen}: look at it again", pipeline.generation),
        )
        .with("pipeline", name)
        .with("generation", pipeline.generation)
        .with("requested", seen));
    }
    if purpose == Purpose::Activate && pipeline.claim != ClaimState::Standby {
        return Err(is_no_standby(pipeline));
    }
    if pipeline.claim == ClaimState::Claiming {
        return Err(Problem::new(
            Reason::NotOwner,
            format!("pipeline {name} still claims its location: wait until it owns it"),
        )
        .with("pipeline", name)
        .with("location", &pipeline.spec.location)
        .retry(lockstep_protocol::problem::Retryable::Yes));
    }
    Ok(())
}

/// A take-over as it is admitted.
pub(super) fn new_take_over(pipeline: &PipelineRow, request: &Request, writer: Writer) -> TakeOver {
    TakeOver {
        id: request.id,
        pipeline: pipeline.id,
        pipeline_name: pipeline.spec.name.clone(),
        writer,
        location: pipeline.spec.location.clone(),
        purpose: request.ask.purpose,
        holds: pipeline.generation,
        version: 1,
        term: Term::NONE,
        phase: request.ask.purpose.first_phase(),
        chosen: request.ask.chosen,
        warm: None,
        fence: None,
        base: None,
        problem: None,
        cancel: None,
        tries: 0,
        retry_at: None,
        retry: request.ask.retry,
    }
}

pub(super) fn admitted_because(take_over: &TakeOver) -> String {
    let what = match take_over.purpose {
        Purpose::Activate => "activation",
        Purpose::Resync => "resync as take-over",
        Purpose::Claim | Purpose::TakeOver | Purpose::Release => "take-over",
    };
    let chosen =
        take_over.chosen.map_or_else(String::new, |chosen| format!(", to go on from {} as asked", chosen.selector()));
    format!("{what} {} of {}, from generation {}{chosen}", take_over.id, take_over.location, take_over.holds)
}

/// S14: the same request id means the same take-over.
pub(super) fn check_same(ask: &AdmitTakeOver, known: &TakeOver) -> Result<(), Problem> {
    if ask.purpose == known.purpose && ask.chosen == known.chosen {
        return Ok(());
    }
    let chosen = |chosen: Option<Chosen>| chosen.map_or_else(String::new, |chosen| format!(" {}", chosen.selector()));
    let (asked, admitted) = (chosen(ask.chosen), chosen(known.chosen));
    let (purpose, known_purpose) = (ask.purpose.as_str(), known.purpose.as_str());
    Err(Problem::new(
        Reason::RequestIdReused,
        format!(
            "this request id asked for {known_purpose}{admitted} as take-over {}, now for {purpose}{asked}: use a new request id",
            known.id
        ),
    )
    .with("take_over", known.id)
    .with("known", format!("{known_purpose}{admitted}"))
    .with("requested", format!("{purpose}{asked}")))
}

pub(super) fn not_found(id: Uuid) -> Problem {
    Problem::new(Reason::RoundNotFound, format!("no take-over {id}")).with("take_over", id)
}

/// This database as a fence names it.
pub(super) fn writer_of(identity: &super::DatabaseIdentity) -> Writer {
    Writer::Database {
        database: identity.database,
        system_identifier: identity.system_identifier.clone(),
        timeline: identity.timeline,
    }
}

/// The database whose row the pipeline's is once it is adopted: the one that the fence names. A take-over that a backup holds half done may have been finished, and built on, by
/// the database that was lost, so that another one has to follow (R13).
pub(super) fn written_by(take_over: &TakeOver) -> Option<super::DatabaseIdentity> {
    match &take_over.writer {
        Writer::Database { database, system_identifier, timeline } => Some(super::DatabaseIdentity {
            database: *database,
            system_identifier: system_identifier.clone(),
            timeline: *timeline,
        }),
        Writer::Direct => None,
    }
}

/// The pipeline is no standby any more.
pub(super) fn hands_over(change: &Move) -> bool {
    takeover::hands_over(change.before.phase, change.decision.next.phase)
}

/// What the pipeline's row says once the generation is its own. Fenced for a standby whose hosts don't have the base yet it stays one: nothing is pushed before.
pub(super) fn adopted_as(next: &TakeOver) -> ClaimState {
    if next.phase == Phase::Pulling { ClaimState::Standby } else { ClaimState::Owned }
}
