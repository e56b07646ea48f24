//! What the replica that drives a round needs: claim, renew, release, progress, cancel requests.

use std::time::Duration;

use lockstep_protocol::{
    id::{PipelineId, RoundId, Term},
    problem::{Problem, Reason},
    round::{CancelRequest, check_cancellable},
};
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Caller, HostProgress, RoundRecord,
    audit::{self, Entry, event},
    differences::refuse_elsewhere,
    identity::{self, belongs_here},
    pipelines::{Lock, find},
    rows::{readable, record, select_records},
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, text},
};

/// Rounds that a replica wants to take over.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) replica: String,
    pub(super) lease: Duration,
    pub(super) at_most: u32,
}

fn actor(replica: &str) -> String {
    format!("replica {}", text(replica))
}

/// Oldest first. Rows that another replica is claiming are skipped, not waited for, and those of a pipeline whose row another database wrote are nobody's until a take-over (R13).
///
/// A row that can't be read is claimed too and left to its lease, so that it is not the oldest again at once; who stands behind it is claimed in
/// its place.
pub(super) async fn claim(connection: &mut Session, claim: &Claim) -> Result<Vec<RoundRecord>, Fail> {
    loop {
        let rows = claim_rows(connection, claim).await?;
        let records = readable(&rows, record);
        if !records.is_empty() || rows.is_empty() {
            return Ok(records);
        }
    }
}

/// A lease that ends later than any is given for is nobody's: the flag ends at a day.
async fn claim_rows(connection: &mut Session, claim: &Claim) -> Result<Vec<PgRow>, Fail> {
    sqlx::query(concat!(
        "WITH due AS (
             SELECT due.id, due.lease_owner FROM rounds due
             WHERE due.ended_at IS NULL AND (due.lease_until IS NULL OR due.lease_until < clock_timestamp() OR due.lease_until > clock_timestamp() + interval '25 hours')
               AND ",
        belongs_here!("due"),
        "
             ORDER BY due.created_at LIMIT $3 FOR UPDATE OF due SKIP LOCKED
         ), claimed AS (
             UPDATE rounds r SET term = r.term + 1, version = r.version + 1, lease_owner = $1,
                                 lease_until = clock_timestamp() + make_interval(secs => $2), updated_at = clock_timestamp()
             FROM due WHERE r.id = due.id
             RETURNING r.*
         ), events AS (
             INSERT INTO audit_events (pipeline_id, round_id, event, from_phase, to_phase, cause, actor, trace_id, term, version)
             SELECT claimed.pipeline_id, claimed.id, 'round_claimed', claimed.phase, claimed.phase,
                    CASE WHEN due.lease_owner IS NULL THEN 'nobody drove it' ELSE 'the lease of ' || due.lease_owner || ' expired' END,
                    $4, claimed.trace_id, claimed.term, claimed.version
             FROM claimed JOIN due ON due.id = claimed.id
         ) ",
        select_records!("claimed")
    ))
    .bind(text(&claim.replica))
    .bind(claim.lease.as_secs_f64())
    .bind(i64::from(claim.at_most))
    .bind(actor(&claim.replica))
    .fetch_all(connection)
    .await
    .settling()
}

/// Those of the given rounds whose term is still the given one, with their leases prolonged. None of a pipeline whose row another database wrote: this replica lives on over
/// a replica of the database that was promoted, and drives what only a take-over settles.
pub(super) async fn renew(
    connection: &mut Session,
    (held, lease): &(Vec<(RoundId, Term)>, Duration),
) -> Result<Vec<RoundId>, Fail> {
    let (ids, terms) = columns(held);
    let kept: Vec<Uuid> = sqlx::query_scalar(concat!(
        "UPDATE rounds r SET lease_until = clock_timestamp() + make_interval(secs => $3)
             FROM UNNEST($1::uuid[], $2::bigint[]) AS n (id, term)
             WHERE r.id = n.id AND r.term = n.term AND r.ended_at IS NULL AND ",
        belongs_here!("r"),
        " RETURNING r.id"
    ))
    .bind(ids)
    .bind(terms)
    .bind(lease.as_secs_f64())
    .fetch_all(connection)
    .await
    .settling()?;
    Ok(kept.into_iter().map(RoundId::new).collect())
}

fn columns(held: &[(RoundId, Term)]) -> (Vec<Uuid>, Vec<i64>) {
    held.iter().map(|(id, term)| (id.uuid(), term.as_i64())).unzip()
}

/// Hands rounds back: whoever looks next may claim them at once. The term stays, so what is still under way here keeps its right to
/// write until somebody else has claimed.
pub(super) async fn release(
    connection: &mut Session,
    (held, caller): &(Vec<(RoundId, Term)>, Caller),
) -> Result<(), Fail> {
    let (ids, terms) = columns(held);
    sqlx::query(
        "WITH released AS (
             UPDATE rounds r SET lease_owner = NULL, lease_until = NULL
             FROM UNNEST($1::uuid[], $2::bigint[]) AS n (id, term)
             WHERE r.id = n.id AND r.term = n.term AND r.ended_at IS NULL
             RETURNING r.pipeline_id, r.id, r.phase, r.term, r.version, r.trace_id
         )
         INSERT INTO audit_events (pipeline_id, round_id, event, from_phase, to_phase, cause, actor, trace_id, term, version)
         SELECT pipeline_id, id, 'round_released', phase, phase, 'handed back', $3, trace_id, term, version FROM released",
    )
    .bind(ids)
    .bind(terms)
    .bind(text(&caller.actor))
    .execute(connection)
    .await
    .settling()?;
    Ok(())
}

/// Progress of one round's hosts.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) round: RoundId,
    pub(super) term: Term,
    pub(super) hosts: Vec<HostProgress>,
}

/// False: the term is not current, or the round has ended; nothing was written.
pub(super) async fn save_progress(connection: &mut Session, progress: &Progress) -> Result<bool, Fail> {
    let hosts = &progress.hosts;
    let column = |value: fn(&HostProgress) -> u64| hosts.iter().map(|p| bigint(value(p))).collect::<Vec<_>>();
    let maybe =
        |value: fn(&HostProgress) -> Option<u64>| hosts.iter().map(|p| value(p).map(bigint)).collect::<Vec<_>>();
    let narrow = |value: fn(&HostProgress) -> u32| {
        hosts.iter().map(|p| i32::try_from(value(p)).unwrap_or(i32::MAX)).collect::<Vec<_>>()
    };
    let current: i64 = sqlx::query_scalar(
        "WITH mine AS (SELECT id FROM rounds WHERE id = $1 AND term = $2 AND ended_at IS NULL),
         written AS (
             INSERT INTO progress AS g (round_id, host_idx, attempt, bytes_done, bytes_total, files_done, files_total,
                                       bytes_transferred, bytes_per_second)
             SELECT mine.id, n.* FROM mine,
                 UNNEST($3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
                        $10::bigint[]) AS n
             ON CONFLICT (round_id, host_idx) DO UPDATE SET
                 attempt = excluded.attempt, bytes_done = excluded.bytes_done, bytes_total = excluded.bytes_total,
                 files_done = excluded.files_done, files_total = excluded.files_total,
                 bytes_transferred = excluded.bytes_transferred, bytes_per_second = excluded.bytes_per_second, updated_at = clock_timestamp()
             WHERE g.attempt <= excluded.attempt)
         SELECT count(*) FROM mine",
    )
    .bind(progress.round.uuid())
    .bind(progress.term.as_i64())
    .bind(narrow(|p| p.host_idx))
    .bind(narrow(|p| p.attempt.get()))
    .bind(column(|p| p.bytes_done))
    .bind(maybe(|p| p.bytes_total))
    .bind(column(|p| p.files_done))
    .bind(maybe(|p| p.files_total))
    .bind(column(|p| p.bytes_transferred))
    .bind(column(|p| p.bytes_per_second))
    .fetch_one(connection)
    .await
    .settling()?;
    Ok(current == 1)
}

/// A caller's wish to stop a round.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    pub(super) round: RoundId,
    pub(super) request: CancelRequest,
    pub(super) caller: Caller,
}

pub(super) fn round_not_found(id: RoundId) -> Problem {
    Problem::new(Reason::RoundNotFound, format!("no round {id}")).with("round", id)
}

pub(super) async fn get(connection: &mut Session, id: &RoundId) -> Result<RoundRecord, Fail> {
    let row = sqlx::query(concat!(select_records!("rounds"), "WHERE r.id = $1"))
        .bind(id.uuid())
        .fetch_optional(connection)
        .await?;
    row.map_or_else(|| Err(round_not_found(*id).into()), |row| record(&row))
}

/// Writes the wish beside the round, never the round itself: only who drives it decides. A second wish changes nothing.
pub(super) async fn request_cancel(connection: &mut Session, cancel: &Cancel) -> Result<RoundRecord, Fail> {
    let mut transaction = connection.begin().await?;
    let found = get(&mut transaction, &cancel.round).await?;
    if found.cancel_requested.is_some() {
        return Ok(found);
    }
    check_cancellable(&found.round)?;
    refuse_foreign(&mut transaction, found.round.pipeline).await?;
    let new = sqlx::query(
        "INSERT INTO cancel_requests (round_id, requested_by, cause, trace_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (round_id) DO NOTHING",
    )
    .bind(cancel.round.uuid())
    .bind(text(&cancel.request.by))
    .bind(text(&cancel.request.cause))
    .bind(&cancel.caller.trace_id)
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    if new == 1 {
        let entry = Entry {
            pipeline: found.round.pipeline,
            round: Some(cancel.round),
            event: event::CANCEL_REQUESTED,
            from: Some(found.round.phase.as_str()),
            to: None,
            cause: &cancel.request.cause,
        };
        audit::write(&mut transaction, &cancel.caller, &entry).await?;
    }
    let after = get(&mut transaction, &cancel.round).await?;
    transaction.commit().await.settling()?;
    Ok(after)
}

/// What became of the round is for a take-over to find out: it may be committed.
async fn refuse_foreign(connection: &mut Session, pipeline: PipelineId) -> Result<(), Fail> {
    match find(connection, &pipeline.into(), Lock::No).await {
        Ok(row) => Ok(refuse_elsewhere(&row, &identity::read(connection).await?)?),
        // Deleted since: nobody takes anything over for it.
        Err(Fail::Refused(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

pub(super) async fn pending_cancels(
    connection: &mut Session,
    rounds: &[RoundId],
) -> Result<Vec<(RoundId, CancelRequest)>, Fail> {
    let ids: Vec<Uuid> = rounds.iter().map(|round| round.uuid()).collect();
    let rows = sqlx::query("SELECT round_id, requested_by, cause FROM cancel_requests WHERE round_id = ANY($1)")
        .bind(ids)
        .fetch_all(connection)
        .await?;
    let request = |row: &PgRow| {
        let request = CancelRequest { by: row.try_get("requested_by")?, cause: row.try_get("cause")? };
        Ok((RoundId::new(row.try_get("round_id")?), request))
    };
    rows.iter().map(request).collect()
}
