//! Take-overs of locations as rows: admitted, claimed by one replica at a time, moved by guarded writes, and adopted in one transaction that
//! settles the pipeline's open round and gives its row the new generation (F4).

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    fence::{FenceBase, Writer},
    id::{Generation, PipelineId, PipelineName, RequestId, Term},
    key::Key,
    problem::{Problem, Reason},
    round::{self, CancelRequest, RetryPolicy, Round},
    takeover::{self, Chosen, Decision, Phase, Prepared, Purpose, TakeOver},
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Applied, Caller, Change, ClaimState, LastCommit, PipelineRow, PipelineSelector, Store, StoreError, apply,
    audit::{self, Entry, event},
    changes::Reach,
    fail_back::is_no_standby,
    identity,
    learnt::{self, Learnt},
    look_and_apply,
    pipelines::{Lock, find},
    ready,
    rows::{number, unsigned},
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    text::{as_read, bigint, from_json, json, optional_json, text},
};
use crate::chance;

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
        check_admits(pipeline, purpose, active.map(|active| active.id)).map_err(StoreError::Problem)
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

/// Why a pipeline can't take over now.
pub(super) fn check_admits(pipeline: &PipelineRow, purpose: Purpose, active: Option<Uuid>) -> Result<(), Problem> {
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

pub(super) async fn admit(connection: &mut Session, request: &Request) -> Result<TakeOver, Fail> {
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &request.ask.pipeline, Lock::ForUpdate).await?;
    let known = sqlx::query("SELECT * FROM take_overs WHERE id = $1 OR (pipeline_id = $2 AND request_id = $3)")
        .bind(request.id)
        .bind(pipeline.id.uuid())
        .bind(request.ask.request_id.map(|id| id.uuid()))
        .fetch_optional(&mut *transaction)
        .await?;
    if let Some(known) = known {
        let known = take_over(&known)?;
        check_same(&request.ask, &known)?;
        return Ok(known);
    }
    let active: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM take_overs WHERE pipeline_id = $1 AND ended_at IS NULL")
            .bind(pipeline.id.uuid())
            .fetch_optional(&mut *transaction)
            .await?;
    check_admits(&pipeline, request.ask.purpose, active)?;
    let new = new_take_over(&pipeline, request, writer_of(&identity::read(&mut transaction).await?));
    let row = sqlx::query(
        "INSERT INTO take_overs (id, pipeline_id, pipeline_name, purpose, holds, location, writer, phase, retry, request_id, actor, trace_id,
                                 chosen)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
    )
    .bind(new.id)
    .bind(new.pipeline.uuid())
    .bind(new.pipeline_name.as_str())
    .bind(new.purpose.as_str())
    .bind(new.holds.as_i64())
    .bind(json(&new.location)?)
    .bind(json(&new.writer)?)
    .bind(new.phase.as_str())
    .bind(json(&new.retry)?)
    .bind(request.ask.request_id.map(|id| id.uuid()))
    .bind(text(&request.caller.actor))
    .bind(&request.caller.trace_id)
    .bind(optional_json(new.chosen.as_ref())?)
    .fetch_one(&mut *transaction)
    .await?;
    let cause = admitted_because(&new);
    let entry = Entry {
        pipeline: new.pipeline,
        round: None,
        event: event::TAKE_OVER_ADMITTED,
        from: None,
        to: Some(new.phase.as_str()),
        cause: &cause,
    };
    audit::write(&mut transaction, &request.caller, &entry).await?;
    reached(Point::TakeOverBeforeCommit);
    transaction.commit().await.settling()?;
    reached(Point::TakeOverStored);
    take_over(&row)
}

pub(super) async fn claim(
    connection: &mut Session,
    (replica, lease): &(String, Duration),
) -> Result<Vec<TakeOver>, Fail> {
    let rows = sqlx::query(
        "UPDATE take_overs SET term = term + 1, version = version + 1, lease_owner = $1,
                               lease_until = clock_timestamp() + make_interval(secs => $2), updated_at = clock_timestamp()
         WHERE id IN (SELECT id FROM take_overs WHERE ended_at IS NULL AND (lease_until IS NULL OR lease_until < clock_timestamp())
                      ORDER BY created_at LIMIT 64 FOR UPDATE SKIP LOCKED)
         RETURNING *",
    )
    .bind(text(replica))
    .bind(lease.as_secs_f64())
    .fetch_all(connection)
    .await
    .settling()?;
    rows.iter().map(take_over).collect()
}

pub(super) async fn renew(connection: &mut Session, (id, term, lease): &(Uuid, Term, Duration)) -> Result<bool, Fail> {
    let done = sqlx::query(
        "UPDATE take_overs SET lease_until = clock_timestamp() + make_interval(secs => $3)
         WHERE id = $1 AND term = $2 AND ended_at IS NULL",
    )
    .bind(id)
    .bind(term.as_i64())
    .bind(lease.as_secs_f64())
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn get(connection: &mut Session, id: Uuid) -> Result<TakeOver, Fail> {
    let row = sqlx::query("SELECT * FROM take_overs WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map_or_else(|| Err(not_found(id).into()), take_over)
}

pub(super) async fn apply(connection: &mut Session, change: &Move) -> Result<TakeOverApplied, Fail> {
    let next = &change.decision.next;
    let mut transaction = connection.begin().await?;
    if let Some(adoption) = &change.adoption
        && !adopt(&mut transaction, change, adoption).await?
    {
        return Ok(TakeOverApplied::Moved);
    }
    let moved = sqlx::query(
        "UPDATE take_overs SET
             version = version + 1, phase = $4, generation = $5, fence_bytes = coalesce(fence_bytes, $6),
             base_bytes = coalesce(base_bytes, $7), problem = $8, cancel = $9, tries = $10, retry_at = $11,
             updated_at = clock_timestamp(), ended_at = CASE WHEN $12 THEN clock_timestamp() END,
             lease_owner = CASE WHEN $12 THEN NULL ELSE lease_owner END,
             lease_until = CASE WHEN $12 THEN NULL ELSE lease_until END, warm = coalesce(warm, $13)
         WHERE id = $1 AND version = $2 AND term = $3 AND ended_at IS NULL",
    )
    .bind(next.id)
    .bind(bigint(change.before.version))
    .bind(change.before.term.as_i64())
    .bind(next.phase.as_str())
    .bind(next.generation().map(|generation| generation.as_i64()))
    .bind(next.fence.as_ref().map(|fence| fence.bytes.as_bytes()))
    .bind(next.base.as_ref().map(FenceBase::encode))
    .bind(optional_json(next.problem.as_ref())?)
    .bind(optional_json(next.cancel.as_ref())?)
    .bind(i32::try_from(next.tries).unwrap_or(i32::MAX))
    .bind(next.retry_at)
    .bind(next.phase.is_terminal())
    .bind(optional_json(next.warm.as_ref())?)
    .execute(&mut *transaction)
    .await?;
    if moved.rows_affected() != 1 {
        return Ok(TakeOverApplied::Moved);
    }
    if hands_over(change) {
        sqlx::query(
            "UPDATE pipelines SET claim = 'owned', version = version + 1, updated_at = clock_timestamp()
             WHERE id = $1 AND claim = 'standby' AND generation = $2",
        )
        .bind(next.pipeline.uuid())
        .bind(next.generation().map(|generation| generation.as_i64()))
        .execute(&mut *transaction)
        .await?;
    }
    ready::activate(&mut transaction, change).await?;
    if change.decision.fence_pipeline {
        sqlx::query(
            "UPDATE pipelines SET fenced_at = clock_timestamp(), fenced_problem = $3, version = version + 1, updated_at = clock_timestamp()
             WHERE id = $1 AND generation = $2 AND fence_bytes IS NOT NULL AND fenced_at IS NULL",
        )
        .bind(next.pipeline.uuid())
        .bind(next.holds.as_i64())
        .bind(optional_json(next.problem.as_ref())?)
        .execute(&mut *transaction)
        .await?;
    }
    for transition in &change.decision.transitions {
        let entry = Entry {
            pipeline: next.pipeline,
            round: None,
            event: event::TAKE_OVER_PHASE,
            from: Some(transition.from),
            to: Some(transition.to),
            cause: &transition.cause,
        };
        audit::write(&mut transaction, &change.caller, &entry).await?;
    }
    if change.adoption.is_some() {
        reached(Point::AdoptedBeforeCommit);
    } else if hands_over(change) {
        reached(Point::HandedOverBeforeCommit);
    }
    transaction.commit().await.settling()?;
    Ok(TakeOverApplied::Stored(stored(change)))
}

/// The pipeline is no standby any more.
pub(super) fn hands_over(change: &Move) -> bool {
    takeover::hands_over(change.before.phase, change.decision.next.phase)
}

/// What the pipeline's row says once the generation is its own. Fenced for a standby whose hosts don't have the base yet it stays one: nothing is pushed before.
pub(super) fn adopted_as(next: &TakeOver) -> ClaimState {
    if next.phase == Phase::Pulling { ClaimState::Standby } else { ClaimState::Owned }
}

/// False: the pipeline's open round is not the one that was settled.
async fn adopt(connection: &mut Session, change: &Move, adoption: &Adoption) -> Result<bool, Fail> {
    let next = &change.decision.next;
    let (Some(fence), id) = (&next.fence, next.pipeline.uuid()) else { return Ok(false) };
    // Admission takes the same lock, so no round comes between.
    let pipeline = find(connection, &next.pipeline.into(), Lock::ForUpdate).await?;
    let open: Option<Uuid> = sqlx::query_scalar("SELECT id FROM rounds WHERE pipeline_id = $1 AND ended_at IS NULL")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    if open != adoption.round.as_ref().map(|(round, _)| round.id.uuid()) {
        return Ok(false);
    }
    if let Some((before, decision)) = &adoption.round {
        let settled = apply::Change {
            before: before.clone(),
            decision: decision.clone(),
            caller: change.caller.clone(),
            settles: true,
        };
        if !matches!(apply::apply(connection, &settled).await?, Applied::Stored(_)) {
            return Ok(false);
        }
    }
    for known_again in &adoption.learnt {
        if let Some(round) = learnt::round_of(&pipeline, next, known_again) {
            let trace_id = known_again.document.trace_id.as_ref();
            learnt::insert(connection, &pipeline, &round, trace_id, &change.caller).await?;
        }
    }
    let identity = match written_by(next) {
        Some(identity) => identity,
        None => identity::read(connection).await?,
    };
    let last = adoption.last.as_ref();
    let local: Option<Vec<Uuid>> = last.map(|last| last.local_checkpoints.iter().map(|id| id.uuid()).collect());
    sqlx::query(
        "UPDATE pipelines SET
             claim = $15, claim_problem = NULL, generation = $2, fence_bytes = $3, fenced_at = NULL, fenced_problem = NULL, behind_at = NULL, behind_problem = NULL,
             next_seq = 1, next_round_no = $16,
             last_generation = $4, last_seq = $5, last_round_id = $6, last_digest = $7, last_step = $8, last_fingerprint = $9,
             last_local = $10, last_committed_at = $11, database_id = $12, system_identifier = $13, timeline = $14,
             version = version + 1, updated_at = clock_timestamp()
         WHERE id = $1",
    )
    .bind(id)
    .bind(fence.generation.as_i64())
    .bind(fence.bytes.as_bytes())
    .bind(last.map(|last| last.commit.generation.as_i64()))
    .bind(last.map(|last| last.commit.seq.as_i64()))
    .bind(last.map(|last| last.commit.round.uuid()))
    .bind(last.map(|last| last.commit.digest.to_string()))
    .bind(last.map(|last| last.step.as_i64()))
    .bind(last.and_then(|last| last.fingerprint).map(|fingerprint| fingerprint.to_string()))
    .bind(local)
    .bind(last.map(|last| last.at))
    .bind(identity.database.uuid())
    .bind(&identity.system_identifier)
    .bind(i64::from(identity.timeline))
    .bind(adopted_as(next).as_str())
    .bind(learnt::next_round_no(&pipeline, &adoption.learnt).as_i64())
    .execute(connection)
    .await?;
    Ok(true)
}

fn bytes(row: &PgRow, column: &str) -> Result<Option<Vec<u8>>, Fail> {
    Ok(row.try_get(column)?)
}

fn optional<T: serde::de::DeserializeOwned>(row: &PgRow, column: &str) -> Result<Option<T>, Fail> {
    row.try_get::<Option<Value>, _>(column)?.map(|value| from_json(column, value)).transpose()
}

fn required<T: serde::de::DeserializeOwned>(row: &PgRow, column: &str) -> Result<T, Fail> {
    from_json(column, row.try_get(column)?)
}

pub(super) fn take_over(row: &PgRow) -> Result<TakeOver, Fail> {
    let id: Uuid = row.try_get("id")?;
    let unreadable = |what: &str| Fail::Unreadable(format!("{what} of take-over {id} is not readable by this version"));
    let phase: String = row.try_get("phase")?;
    let purpose: String = row.try_get("purpose")?;
    let generation = row.try_get::<Option<i64>, _>("generation")?.map(number::<Generation>).transpose()?;
    let fence = match (generation, bytes(row, "fence_bytes")?) {
        (Some(generation), Some(bytes)) => {
            let bytes = String::from_utf8(bytes).map_err(|_| unreadable("fence_bytes"))?;
            Some(Prepared { generation, bytes })
        }
        _ => None,
    };
    let base = match (generation, bytes(row, "base_bytes")?) {
        (Some(generation), Some(bytes)) => Some(
            FenceBase::parse(&Key::FenceBase(generation).to_string(), &bytes).map_err(|_| unreadable("base_bytes"))?,
        ),
        _ => None,
    };
    let (name, tries): (String, i32) = (row.try_get("pipeline_name")?, row.try_get("tries")?);
    Ok(TakeOver {
        id,
        pipeline: PipelineId::new(row.try_get("pipeline_id")?),
        pipeline_name: PipelineName::new(name).map_err(|_| unreadable("pipeline_name"))?,
        writer: required(row, "writer")?,
        location: required(row, "location")?,
        purpose: Purpose::parse(&purpose).ok_or_else(|| unreadable("purpose"))?,
        holds: number(row.try_get("holds")?)?,
        version: unsigned("version", row.try_get("version")?)?,
        term: number(row.try_get("term")?)?,
        phase: Phase::parse(&phase).ok_or_else(|| unreadable("phase"))?,
        chosen: optional::<Chosen>(row, "chosen")?,
        warm: optional::<CommitRef>(row, "warm")?,
        fence,
        base,
        problem: optional::<Problem>(row, "problem")?,
        cancel: optional::<CancelRequest>(row, "cancel")?,
        tries: tries.unsigned_abs(),
        retry_at: row.try_get::<Option<DateTime<Utc>>, _>("retry_at")?,
        retry: required::<RetryPolicy>(row, "retry")?,
    })
}
