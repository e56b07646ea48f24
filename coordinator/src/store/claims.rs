//! The claim of a location: a row that dispatch drives until its fence stands or never will.

use std::time::Duration;

use lockstep_protocol::{
    id::{Generation, PipelineId, Term},
    problem::Problem,
};

use super::{
    Caller, ClaimOutcome, ClaimSettled, PipelineRow, PipelineSelector,
    audit::{self, Entry, event},
    pipelines::{any, not_found, pipeline},
    rows::readable,
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, json, text},
};

/// Takes over the claims that nobody drives; each gets a new term.
pub(super) async fn claim_due(
    connection: &mut Session,
    (replica, lease): &(String, Duration),
) -> Result<Vec<PipelineRow>, Fail> {
    let rows = sqlx::query(
        "UPDATE pipelines SET claim_term = claim_term + 1, claim_lease_owner = $1, version = version + 1,
                              claim_lease_until = clock_timestamp() + make_interval(secs => $2), updated_at = clock_timestamp()
         WHERE id IN (
             SELECT id FROM pipelines
             WHERE claim = 'claiming' AND deleted_at IS NULL AND (claim_lease_until IS NULL OR claim_lease_until < clock_timestamp()
                  OR claim_lease_until > clock_timestamp() + interval '25 hours')
             ORDER BY id LIMIT 64 FOR UPDATE SKIP LOCKED)
         RETURNING *",
    )
    .bind(text(replica))
    .bind(lease.as_secs_f64())
    .fetch_all(connection)
    .await
    .settling()?;
    Ok(readable(&rows, pipeline))
}

/// Keeps a claim while its fence is being put.
pub(super) async fn renew_claim(
    connection: &mut Session,
    (id, term, lease): &(PipelineId, Term, Duration),
) -> Result<bool, Fail> {
    let done = sqlx::query(
        "UPDATE pipelines SET claim_lease_until = clock_timestamp() + make_interval(secs => $3)
         WHERE id = $1 AND claim_term = $2 AND claim = 'claiming' AND deleted_at IS NULL",
    )
    .bind(id.uuid())
    .bind(term.as_i64())
    .bind(lease.as_secs_f64())
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

/// What a claim came to, guarded by version and term.
#[derive(Clone, Debug)]
pub(super) struct Settle {
    pub(super) id: PipelineId,
    pub(super) version: u64,
    pub(super) term: Term,
    pub(super) outcome: ClaimOutcome,
    pub(super) caller: Caller,
}

pub(super) async fn settle(connection: &mut Session, settle: &Settle) -> Result<ClaimSettled, Fail> {
    let (claim, generation, problem, after) = match &settle.outcome {
        ClaimOutcome::Owned(generation) => ("owned", *generation, None, None),
        ClaimOutcome::Refused(problem) => ("refused", Generation::NONE, Some(problem), None),
        ClaimOutcome::Again { problem, after } => {
            ("claiming", Generation::NONE, Some(problem), Some(after.as_secs_f64()))
        }
    };
    let mut transaction = connection.begin().await?;
    let row = sqlx::query(
        "UPDATE pipelines SET
             claim = $4, generation = $5, claim_problem = $6, claim_lease_owner = NULL,
             claim_lease_until = clock_timestamp() + make_interval(secs => $7),
             deleted_at = CASE WHEN $4 = 'refused' THEN clock_timestamp() END,
             version = version + 1, updated_at = clock_timestamp()
         WHERE id = $1 AND version = $2 AND claim_term = $3 AND claim = 'claiming' AND deleted_at IS NULL
         RETURNING *",
    )
    .bind(settle.id.uuid())
    .bind(bigint(settle.version))
    .bind(settle.term.as_i64())
    .bind(claim)
    .bind(generation.as_i64())
    .bind(problem.map(json).transpose()?)
    .bind(after)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(ClaimSettled::Moved) };
    let row = pipeline(&row)?;
    let cause = settled_because(&settle.outcome, &row);
    let entry = Entry {
        pipeline: row.id,
        round: None,
        event: event::PIPELINE_CLAIM,
        from: Some("claiming"),
        to: Some(claim),
        cause: &cause,
    };
    audit::write(&mut transaction, &settle.caller, &entry).await?;
    transaction.commit().await.settling()?;
    Ok(ClaimSettled::Stored(row))
}

/// For the audit trail.
pub(super) fn settled_because(outcome: &ClaimOutcome, row: &PipelineRow) -> String {
    match outcome {
        ClaimOutcome::Owned(generation) => format!("fence {generation} stands at {}", row.spec.location),
        ClaimOutcome::Refused(problem) | ClaimOutcome::Again { problem, .. } => problem.to_string(),
    }
}

/// A newer generation has taken a location over.
#[derive(Clone, Debug)]
pub(super) struct FenceOut {
    pub(super) id: PipelineId,
    pub(super) generation: Generation,
    pub(super) problem: Problem,
    pub(super) caller: Caller,
}

/// False: it is fenced already, gone, in another generation, or without a fence: a standby owns nothing that could be taken from it.
pub(super) async fn fence_out(connection: &mut Session, fence: &FenceOut) -> Result<bool, Fail> {
    let done = sqlx::query(
        "WITH fenced AS (
             UPDATE pipelines SET fenced_at = clock_timestamp(), fenced_problem = $3, version = version + 1,
                                  updated_at = clock_timestamp()
             WHERE id = $1 AND generation = $2 AND fence_bytes IS NOT NULL AND fenced_at IS NULL AND deleted_at IS NULL
             RETURNING id
         )
         INSERT INTO audit_events (pipeline_id, event, cause, actor, trace_id)
         SELECT id, 'pipeline_fenced', $4, $5, $6 FROM fenced",
    )
    .bind(fence.id.uuid())
    .bind(fence.generation.as_i64())
    .bind(json(&fence.problem)?)
    .bind(text(&fence.problem.message))
    .bind(text(&fence.caller.actor))
    .bind(&fence.caller.trace_id)
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

/// After a lost answer of a settle: the row as it stands.
pub(super) async fn look(connection: &mut Session, id: &PipelineId) -> Result<PipelineRow, Fail> {
    any(connection, id).await?.ok_or_else(|| not_found(&PipelineSelector::Id(*id)).into())
}
