//! Upkeep of locations as rows: admitted, claimed by one replica at a time, ended by a guarded write. What is retired is marked in `retirements`.

use std::{sync::Arc, time::Duration};

use chrono::SubsecRound;
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    id::{PipelineId, PipelineName, RequestId, Term},
    problem::{Problem, Reason, Retryable},
    round::RetryPolicy,
    upkeep::{Phase, Tally, Upkeep, Work},
};
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Caller, Change, ClaimState, PipelineRow, PipelineSelector, Store, StoreError,
    admit::refuse_fenced,
    audit::{self, Entry, event},
    changes::Reach,
    differences::refuse_behind,
    identity::{belongs_here, written_here},
    look_and_apply,
    pipelines::{Lock, find},
    retirements,
    rows::{number, readable, unsigned},
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, json, optional_json, text},
};
use crate::chance;

/// Rows that ended so long ago are removed.
pub(super) const KEPT_DAYS: i64 = 30;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdmitUpkeep {
    /// Whose location.
    pub pipeline: PipelineSelector,
    /// What for.
    pub work: Work,
    /// Idempotency key. None: each call is a new request.
    pub request_id: Option<RequestId>,
    /// Collections: one that was admitted less than this ago answers for this one.
    pub at_least_apart: Option<Duration>,
    /// Frozen in the row.
    pub retry: RetryPolicy,
}

/// The same with the id it will have: a call that is repeated after a lost answer finds its own row.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) ask: AdmitUpkeep,
    pub(super) id: Uuid,
    pub(super) caller: Caller,
}

/// One guarded write.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) before: Upkeep,
    pub(super) next: Upkeep,
    pub(super) caller: Caller,
}

/// What became of a guarded write to a piece of upkeep.
#[expect(clippy::large_enum_variant, reason = "returned once and taken apart at once, never kept in numbers")]
#[derive(Clone, PartialEq, Debug)]
pub enum UpkeepApplied {
    /// Written; with its new version.
    Stored(Upkeep),
    /// Somebody else has moved it: nothing was written.
    Moved,
}

impl Store {
    /// Admits upkeep of the pipeline's own location. A collection that is under way already is the answer to another one. `FENCED`, `NOT_OWNER`,
    /// `CHECKPOINT_NOT_FOUND` for a checkpoint that is being retired.
    pub async fn admit_upkeep(&self, ask: AdmitUpkeep, caller: &Caller) -> Result<Upkeep, StoreError> {
        let request = Request { ask, id: chance::id(), caller: caller.clone() };
        let admitted = settle_twice(|| self.database.admit_upkeep(request.clone())).await?;
        self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
        Ok(admitted)
    }

    /// Takes over up to `at_most` pieces of upkeep that nobody drives; each gets a new term.
    pub async fn claim_upkeep(&self, replica: &str, lease: Duration, at_most: u32) -> Result<Vec<Upkeep>, StoreError> {
        self.database.claim_upkeep(replica.to_owned(), lease, at_most).await
    }

    /// Prolongs the lease and stores what was done so far. False: the term is not current any more, or it has ended.
    pub async fn renew_upkeep(&self, id: Uuid, term: Term, lease: Duration, tally: Tally) -> Result<bool, StoreError> {
        self.database.renew_upkeep(id, term, lease, tally).await
    }

    /// Lets go of it, for others to claim at once.
    pub async fn release_upkeep(&self, id: Uuid, term: Term, tally: Tally) -> Result<bool, StoreError> {
        self.renew_upkeep(id, term, Duration::ZERO, tally).await
    }

    /// Stores what became of exactly this version. A lost answer is looked up.
    pub async fn apply_upkeep(
        &self,
        before: &Upkeep,
        next: &Upkeep,
        caller: &Caller,
    ) -> Result<UpkeepApplied, StoreError> {
        let change = Arc::new(Move { before: before.clone(), next: next.clone(), caller: caller.clone() });
        let applied = match self.database.apply_upkeep(Arc::clone(&change)).await {
            Err(StoreError::UnknownOutcome(problem)) => {
                let look = || self.look_at_upkeep(&change);
                let again = || self.database.apply_upkeep(Arc::clone(&change));
                look_and_apply(problem, look, again, |applied| *applied == UpkeepApplied::Moved).await?
            }
            applied => applied?,
        };
        if matches!(applied, UpkeepApplied::Stored(_)) {
            self.hints.tell(Change::Pipeline(before.pipeline), Reach::Everywhere);
        }
        Ok(applied)
    }

    /// What became of a write whose answer was lost; none: it was not made.
    async fn look_at_upkeep(&self, change: &Move) -> Result<Option<UpkeepApplied>, StoreError> {
        let (before, found) = (&change.before, self.database.get_upkeep(change.before.id).await?);
        Ok(if found.term != before.term {
            Some(UpkeepApplied::Moved)
        } else if found.version == before.version {
            None
        } else {
            // Nobody else writes under this term.
            Some(UpkeepApplied::Stored(found))
        })
    }

    /// One piece of upkeep, in whatever phase.
    pub async fn get_upkeep(&self, id: Uuid) -> Result<Upkeep, StoreError> {
        self.database.get_upkeep(id).await
    }

    /// What was admitted under this request id, in whatever phase; none: nothing was, or it ended long ago.
    pub async fn asked_upkeep(
        &self,
        pipeline: PipelineId,
        request_id: RequestId,
    ) -> Result<Option<Upkeep>, StoreError> {
        self.database.asked_upkeep(pipeline, request_id).await
    }

    /// The newest collection of a pipeline, in whatever phase; none within the last 30 days.
    pub async fn last_collection(&self, pipeline: PipelineId) -> Result<Option<Upkeep>, StoreError> {
        self.database.last_collection(pipeline).await
    }

    /// Pipelines that own their location and were not collected for so long, those that wait longest first.
    pub async fn due_collections(&self, every: Duration, at_most: u32) -> Result<Vec<PipelineId>, StoreError> {
        self.database.due_collections(every, at_most).await
    }
}

/// Only the owner of a location may write into it, and only while its database knows all of it.
pub(super) fn check_owns(pipeline: &PipelineRow) -> Result<(), Problem> {
    refuse_behind(pipeline)?;
    refuse_fenced(pipeline)?;
    let name = &pipeline.spec.name;
    let (why, retryable) = match pipeline.claim {
        ClaimState::Owned => return Ok(()),
        ClaimState::Claiming => ("still claims its location: wait until it owns it", Retryable::Yes),
        ClaimState::Standby | ClaimState::Refused(_) => {
            ("owns no location: only the owner keeps, retires and deletes what is there", Retryable::AfterFix)
        }
    };
    Err(Problem::new(Reason::NotOwner, format!("pipeline {name} {why}"))
        .with("pipeline", name)
        .with("location", &pipeline.spec.location)
        .with("claim", pipeline.claim.as_str())
        .retry(retryable))
}

/// `CHECKPOINT_NOT_FOUND`: it is marked already.
pub(super) fn retired_already(commit: &CommitRef) -> Problem {
    Problem::new(
        Reason::CheckpointNotFound,
        format!("checkpoint {} ({}-{}) is retired", commit.round, commit.generation, commit.seq),
    )
    .with("checkpoint", commit.round)
    .with("generation", commit.generation)
    .with("seq", commit.seq)
}

pub(super) fn not_found(id: Uuid) -> Problem {
    Problem::new(Reason::RoundNotFound, format!("no upkeep {id}")).with("upkeep", id)
}

/// For the audit trail.
pub(super) fn admitted_because(upkeep: &Upkeep) -> String {
    let of = |commit: &CommitRef| format!("checkpoint {} ({}-{})", commit.round, commit.generation, commit.seq);
    match &upkeep.work {
        Work::Pin { commit, key, .. } => format!("{of}, by {key}", of = of(commit)),
        Work::Unpin { keys, .. } => keys.join(", "),
        Work::Retire { commit } => of(commit),
        Work::Collect => format!("garbage of {}", upkeep.location),
    }
}

/// For the audit trail.
pub(super) fn ended_because(upkeep: &Upkeep) -> String {
    let Tally { retired, swept, objects, bytes, uploads, put_off } = upkeep.tally;
    let done = match upkeep.work {
        Work::Collect => format!(
            "{}: {retired} checkpoints retired, {swept} swept, {objects} objects of {bytes} bytes and {uploads} uploads deleted, {put_off} put off",
            upkeep.work.as_str()
        ),
        _ => admitted_because(upkeep),
    };
    upkeep.problem.as_ref().map_or_else(|| done.clone(), |problem| format!("{done}; {problem}"))
}

pub(super) async fn admit(connection: &mut Session, request: &Request) -> Result<Upkeep, Fail> {
    let Request { ask, id, caller } = request;
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &ask.pipeline, Lock::ForUpdate).await?;
    let collects = ask.work == Work::Collect;
    let known = sqlx::query(
        "SELECT * FROM upkeep WHERE id = $1 OR (pipeline_id = $2 AND request_id = $3)
            OR (pipeline_id = $2 AND $4 AND kind = 'collect'
                AND (ended_at IS NULL OR created_at > clock_timestamp() - make_interval(secs => $5)))
         ORDER BY id = $1 DESC, request_id = $3 DESC NULLS LAST, created_at DESC LIMIT 1",
    )
    .bind(id)
    .bind(pipeline.id.uuid())
    .bind(ask.request_id.map(|id| id.uuid()))
    .bind(collects)
    .bind(ask.at_least_apart.unwrap_or_default().as_secs_f64())
    .fetch_optional(&mut *transaction)
    .await?;
    if let Some(known) = known {
        return upkeep(&known);
    }
    check_owns(&pipeline)?;
    let commit = ask.work.commit();
    if let Some(commit) = &commit
        && retirements::is_marked(&mut transaction, pipeline.id, commit).await?
    {
        return Err(retired_already(commit).into());
    }
    sqlx::query(
        "DELETE FROM upkeep WHERE pipeline_id = $1 AND ended_at < clock_timestamp() - make_interval(days => $2)",
    )
    .bind(pipeline.id.uuid())
    .bind(i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX))
    .execute(&mut *transaction)
    .await?;
    let row = sqlx::query(
        "INSERT INTO upkeep (id, pipeline_id, pipeline_name, kind, work, location, generation, commit_generation, commit_seq, phase, tally,
                             retry, request_id, actor, trace_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'waiting', $10, $11, $12, $13, $14) RETURNING *",
    )
    .bind(id)
    .bind(pipeline.id.uuid())
    .bind(pipeline.spec.name.as_str())
    .bind(ask.work.as_str())
    .bind(json(&ask.work)?)
    .bind(json(&pipeline.spec.location)?)
    .bind(pipeline.generation.as_i64())
    .bind(commit.map(|commit| commit.generation.as_i64()))
    .bind(commit.map(|commit| commit.seq.as_i64()))
    .bind(json(&Tally::default())?)
    .bind(json(&ask.retry)?)
    .bind(ask.request_id.map(|id| id.uuid()))
    .bind(text(&caller.actor))
    .bind(&caller.trace_id)
    .fetch_one(&mut *transaction)
    .await?;
    let admitted = upkeep(&row)?;
    let cause = admitted_because(&admitted);
    let entry = Entry {
        pipeline: admitted.pipeline,
        round: commit.map(|commit| commit.round),
        event: event::UPKEEP_ADMITTED,
        from: None,
        to: Some(admitted.work.as_str()),
        cause: &cause,
    };
    audit::write(&mut transaction, caller, &entry).await?;
    transaction.commit().await.settling()?;
    reached(Point::UpkeepStored);
    Ok(admitted)
}

pub(super) async fn claim(
    connection: &mut Session,
    (replica, lease, at_most): &(String, Duration, u32),
) -> Result<Vec<Upkeep>, Fail> {
    let rows = sqlx::query(
        concat!(
            "UPDATE upkeep SET term = term + 1, version = version + 1, lease_owner = $1,
                               lease_until = clock_timestamp() + make_interval(secs => $2), updated_at = clock_timestamp()
             WHERE id IN (SELECT due.id FROM upkeep due
                          WHERE due.ended_at IS NULL AND (due.lease_until IS NULL OR due.lease_until < clock_timestamp()) AND ",
            belongs_here!("due"),
            "
                          ORDER BY due.created_at LIMIT $3 FOR UPDATE OF due SKIP LOCKED)
             RETURNING *"
        ),
    )
    .bind(text(replica))
    .bind(lease.as_secs_f64())
    .bind(i64::from(*at_most))
    .fetch_all(connection)
    .await
    .settling()?;
    Ok(readable(&rows, upkeep))
}

pub(super) async fn renew(
    connection: &mut Session,
    (id, term, lease, tally): &(Uuid, Term, Duration, Tally),
) -> Result<bool, Fail> {
    let done = sqlx::query(concat!(
        "UPDATE upkeep SET lease_until = clock_timestamp() + make_interval(secs => $3), tally = $4
             WHERE id = $1 AND term = $2 AND ended_at IS NULL AND ",
        belongs_here!("upkeep")
    ))
    .bind(id)
    .bind(term.as_i64())
    .bind(lease.as_secs_f64())
    .bind(json(tally)?)
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn get(connection: &mut Session, id: Uuid) -> Result<Upkeep, Fail> {
    let row = sqlx::query("SELECT * FROM upkeep WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map_or_else(|| Err(not_found(id).into()), upkeep)
}

pub(super) async fn asked(
    connection: &mut Session,
    (pipeline, request_id): &(PipelineId, RequestId),
) -> Result<Option<Upkeep>, Fail> {
    let row = sqlx::query("SELECT * FROM upkeep WHERE pipeline_id = $1 AND request_id = $2")
        .bind(pipeline.uuid())
        .bind(request_id.uuid())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(upkeep).transpose()
}

pub(super) async fn last_collection(connection: &mut Session, pipeline: PipelineId) -> Result<Option<Upkeep>, Fail> {
    let row = sqlx::query(
        "SELECT * FROM upkeep WHERE pipeline_id = $1 AND kind = 'collect' ORDER BY created_at DESC, id LIMIT 1",
    )
    .bind(pipeline.uuid())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(upkeep).transpose()
}

pub(super) async fn due(connection: &mut Session, (every, at_most): &(Duration, u32)) -> Result<Vec<PipelineId>, Fail> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        concat!("SELECT p.id FROM pipelines p
         LEFT JOIN LATERAL (SELECT u.ended_at, u.created_at FROM upkeep u WHERE u.pipeline_id = p.id AND u.kind = 'collect'
                            ORDER BY u.created_at DESC LIMIT 1) AS last ON true
         WHERE p.deleted_at IS NULL AND p.claim = 'owned' AND p.fenced_at IS NULL AND p.behind_at IS NULL
           AND (last.created_at IS NULL OR last.ended_at IS NOT NULL)
           AND coalesce(last.created_at, p.created_at) < clock_timestamp() - make_interval(secs => $1) AND ", written_here!("p"), "
         ORDER BY coalesce(last.created_at, p.created_at) LIMIT $2"),
    )
    .bind(every.as_secs_f64())
    .bind(i64::from(*at_most))
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(PipelineId::new).collect())
}

pub(super) async fn apply(connection: &mut Session, change: &Move) -> Result<UpkeepApplied, Fail> {
    let next = &change.next;
    let mut transaction = connection.begin().await?;
    let moved = sqlx::query(
        concat!("UPDATE upkeep SET
             version = version + 1, phase = $4, tally = $5, problem = $6, tries = $7, retry_at = $8, updated_at = clock_timestamp(),
             ended_at = CASE WHEN $9 THEN clock_timestamp() END,
             lease_owner = CASE WHEN $9 THEN NULL ELSE lease_owner END,
             lease_until = CASE WHEN $9 THEN NULL ELSE lease_until END
         WHERE id = $1 AND version = $2 AND term = $3 AND ended_at IS NULL AND ", belongs_here!("upkeep"), "
         RETURNING *"),
    )
    .bind(next.id)
    .bind(bigint(change.before.version))
    .bind(change.before.term.as_i64())
    .bind(next.phase.as_str())
    .bind(json(&next.tally)?)
    .bind(optional_json(next.problem.as_ref())?)
    .bind(i32::try_from(next.tries).unwrap_or(i32::MAX))
    .bind(next.retry_at.map(|at| at.trunc_subsecs(6)))
    .bind(next.phase.is_terminal())
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(moved) = moved else { return Ok(UpkeepApplied::Moved) };
    let stored = upkeep(&moved)?;
    if stored.phase.is_terminal() {
        let cause = ended_because(&stored);
        let entry = Entry {
            pipeline: stored.pipeline,
            round: stored.work.commit().map(|commit| commit.round),
            event: event::UPKEEP_ENDED,
            from: Some(stored.work.as_str()),
            to: Some(stored.phase.as_str()),
            cause: &cause,
        };
        audit::write(&mut transaction, &change.caller, &entry).await?;
    }
    transaction.commit().await.settling()?;
    Ok(UpkeepApplied::Stored(stored))
}

fn upkeep(row: &PgRow) -> Result<Upkeep, Fail> {
    let id: Uuid = row.try_get("id")?;
    let unreadable = |what: &str| Fail::Unreadable(format!("{what} of upkeep {id} is not readable by this version"));
    let (phase, name): (String, String) = (row.try_get("phase")?, row.try_get("pipeline_name")?);
    let (tries, problem): (i32, Option<serde_json::Value>) = (row.try_get("tries")?, row.try_get("problem")?);
    Ok(Upkeep {
        id,
        pipeline: PipelineId::new(row.try_get("pipeline_id")?),
        pipeline_name: PipelineName::new(name).map_err(|_| unreadable("pipeline_name"))?,
        location: from_json("location", row.try_get("location")?)?,
        generation: number(row.try_get("generation")?)?,
        work: from_json("work", row.try_get("work")?)?,
        version: unsigned("version", row.try_get("version")?)?,
        term: number(row.try_get("term")?)?,
        phase: Phase::parse(&phase).ok_or_else(|| unreadable("phase"))?,
        tally: from_json("tally", row.try_get("tally")?)?,
        problem: problem.map(|problem| from_json("problem", problem)).transpose()?,
        tries: tries.unsigned_abs(),
        retry_at: row.try_get("retry_at")?,
        retry: from_json("retry", row.try_get("retry")?)?,
        created_at: row.try_get("created_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}
