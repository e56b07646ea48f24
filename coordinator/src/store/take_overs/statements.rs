//! The statements of take-overs, and their rows' way back to a value.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    commit::CommitRef,
    fence::FenceBase,
    id::{Generation, PipelineId, PipelineName, Term},
    key::Key,
    problem::Problem,
    round::{CancelRequest, RetryPolicy},
    takeover::{Chosen, Phase, Prepared, Purpose, TakeOver},
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Adoption, Move, Request, TakeOverApplied, admitted_because, adopted_as, check_admits, check_same, hands_over,
    new_take_over, not_found, stored, writer_of, written_by,
};
use crate::store::{
    Applied, apply,
    audit::{self, Entry, event},
    identity, learnt,
    pipelines::{Lock, find},
    ready,
    rows::{number, unsigned},
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, json, optional_json, text},
};

pub(in crate::store) async fn admit(connection: &mut Session, request: &Request) -> Result<TakeOver, Fail> {
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
    check_admits(&pipeline, (request.ask.purpose, request.ask.seen), active)?;
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

pub(in crate::store) async fn claim(
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

pub(in crate::store) async fn renew(
    connection: &mut Session,
    (id, term, lease): &(Uuid, Term, Duration),
) -> Result<bool, Fail> {
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

pub(in crate::store) async fn get(connection: &mut Session, id: Uuid) -> Result<TakeOver, Fail> {
    let row = sqlx::query("SELECT * FROM take_overs WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map_or_else(|| Err(not_found(id).into()), take_over)
}

pub(in crate::store) async fn apply(connection: &mut Session, change: &Move) -> Result<TakeOverApplied, Fail> {
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

pub(in crate::store) fn take_over(row: &PgRow) -> Result<TakeOver, Fail> {
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
