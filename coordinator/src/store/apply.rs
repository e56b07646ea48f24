//! One decision, one statement: the guarded row, the participants that changed, the audit trail and what the pipeline learns of it
//! stand or fall together (S4, S6).

use lockstep_protocol::{
    id::{Fingerprint, LocalCheckpointId},
    round::{Decision, Kind, Participant, Phase, Round},
};
use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::{
    Applied, Caller,
    audit::TransitionColumns,
    identity::belongs_here,
    ready::{WordOf, nobody_told},
    retirements,
    rows::{as_stored, record, rest_of, select_records, source_columns},
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, json, optional_json, text},
};

/// What a write was decided on and what was decided.
pub(super) struct Change {
    pub(super) before: Round,
    pub(super) decision: Decision,
    pub(super) caller: Caller,
    /// A base has decided: it may be written also where another database wrote the pipeline's row (R13).
    pub(super) settles: bool,
}

/// `moved` is the guard; everything else hangs on its row, and nothing happens without it.
const APPLY: &str = concat!(
    "
WITH moved AS (
    UPDATE rounds SET
        version = version + 1, phase = $4, problem = $5, problem_reason = $6, cancelled_by = $7, cancel_cause = $8,
        step = $9, fingerprint = $10, commit_bytes = coalesce($11, commit_bytes), abort_bytes = coalesce($12, abort_bytes),
        commit_digest = $13, state = coalesce($14, state), source = $15, source_location = $16,
        source_generation = $17, source_seq = $18, source_round_id = $19, source_digest = $20,
        updated_at = clock_timestamp(),
        ended_at = CASE WHEN $21 THEN clock_timestamp() END,
        lease_owner = CASE WHEN $21 THEN NULL ELSE lease_owner END,
        lease_until = CASE WHEN $21 THEN NULL ELSE lease_until END
    WHERE id = $1 AND version = $2 AND term = $3 AND ended_at IS NULL AND ($46 OR ",
    belongs_here!("rounds"),
    ")
    RETURNING id, pipeline_id, generation, seq, version, term
), hosts AS (
    UPDATE participants p SET
        phase = n.phase, attempt = n.attempt, incarnation = n.incarnation, local_checkpoint = n.local_checkpoint,
        files = n.files, bytes = n.bytes, bytes_uploaded = n.bytes_uploaded, part = n.part, retry_at = n.retry_at,
        problem_reason = n.problem_reason, problem = n.problem, updated_at = clock_timestamp()
    FROM moved, UNNEST($22::int[], $23::text[], $24::int[], $25::uuid[], $26::uuid[], $27::bigint[], $28::bigint[], $29::bigint[],
                       $30::jsonb[], $31::timestamptz[], $32::text[], $33::jsonb[])
         AS n (host_idx, phase, attempt, incarnation, local_checkpoint, files, bytes, bytes_uploaded, part, retry_at,
               problem_reason, problem)
    WHERE p.round_id = moved.id AND p.host_idx = n.host_idx
), events AS (
    INSERT INTO audit_events (pipeline_id, round_id, host_idx, event, from_phase, to_phase, cause, actor, trace_id, term, version)
    SELECT moved.pipeline_id, moved.id, n.host_idx, n.event, n.from_phase, n.to_phase, n.cause, $39, $40, moved.term, moved.version
    FROM moved, UNNEST($34::int[], $35::text[], $36::text[], $37::text[], $38::text[]) WITH ORDINALITY
         AS n (host_idx, event, from_phase, to_phase, cause, place)
    ORDER BY n.place
), fenced AS (
    UPDATE pipelines p SET fenced_at = clock_timestamp(), fenced_problem = $5, version = p.version + 1, updated_at = clock_timestamp()
    FROM moved
    WHERE $41 AND p.id = moved.pipeline_id AND p.generation = moved.generation AND p.fenced_at IS NULL
    RETURNING p.id
), fenced_event AS (
    INSERT INTO audit_events (pipeline_id, round_id, event, cause, actor, trace_id)
    SELECT fenced.id, $1, 'pipeline_fenced', $42, $39, $40 FROM fenced
), committed AS (
    UPDATE pipelines p SET
        last_generation = moved.generation, last_seq = moved.seq, last_round_id = moved.id, last_digest = $13, last_step = $9,
        last_fingerprint = $10, last_local = $43, last_committed_at = clock_timestamp(),
        version = p.version + 1, updated_at = clock_timestamp()
    FROM moved
    WHERE $13 IS NOT NULL AND $9 IS NOT NULL AND p.id = moved.pipeline_id
      AND (p.last_generation IS NULL OR (p.last_generation, p.last_seq) < (moved.generation, moved.seq))
), taken_back AS (
    DELETE FROM ready_words w USING moved WHERE $44 AND w.pipeline_id = moved.pipeline_id
), given AS (
    INSERT INTO ready_words AS w (pipeline_id, round_id, role, term, hosts)
    SELECT moved.pipeline_id, moved.id, CASE WHEN p.claim = 'owned' THEN 'active' ELSE 'standby' END, moved.term, $45
    FROM moved JOIN pipelines p ON p.id = moved.pipeline_id WHERE $45 IS NOT NULL
    ON CONFLICT (pipeline_id) DO UPDATE SET
        round_id = excluded.round_id, role = excluded.role, version = w.version + 1, term = excluded.term, hosts = excluded.hosts,
        tries = 0, retry_at = NULL, lease_until = NULL, told_at = NULL, updated_at = clock_timestamp()
)
SELECT count(*) FROM moved"
);

/// Participants that differ, as columns for one UNNEST.
#[derive(Default)]
struct ParticipantColumns {
    host_idx: Vec<i32>,
    phase: Vec<&'static str>,
    attempt: Vec<i32>,
    incarnation: Vec<Option<Uuid>>,
    local_checkpoint: Vec<Option<Uuid>>,
    files: Vec<Option<i64>>,
    bytes: Vec<Option<i64>>,
    bytes_uploaded: Vec<Option<i64>>,
    part: Vec<Option<Value>>,
    retry_at: Vec<Option<chrono::DateTime<chrono::Utc>>>,
    problem_reason: Vec<Option<&'static str>>,
    problem: Vec<Option<Value>>,
}

impl ParticipantColumns {
    fn push(&mut self, participant: &Participant) -> Result<(), Fail> {
        let part = participant.part.as_ref();
        self.host_idx.push(i32::try_from(participant.host_idx).unwrap_or(i32::MAX));
        self.phase.push(participant.phase.as_str());
        self.attempt.push(i32::try_from(participant.attempt.get()).unwrap_or(i32::MAX));
        self.incarnation.push(participant.incarnation.map(|id| id.uuid()));
        self.local_checkpoint.push(participant.local_checkpoint.map(|id| id.uuid()));
        self.files.push(part.map(|part| bigint(part.files)));
        self.bytes.push(part.map(|part| bigint(part.bytes)));
        self.bytes_uploaded.push(part.map(|part| bigint(part.bytes_uploaded)));
        self.part.push(optional_json(part)?);
        self.retry_at.push(participant.retry_at);
        self.problem_reason.push(participant.problem.as_ref().map(|problem| problem.reason.as_str()));
        self.problem.push(optional_json(participant.problem.as_ref())?);
        Ok(())
    }
}

fn new_bytes<'b>(before: Option<&String>, next: Option<&'b String>) -> Option<&'b [u8]> {
    next.filter(|next| Some(*next) != before).map(|next| next.as_bytes())
}

/// Decision bytes that are to be stored now: (commit, abort).
fn decision_bytes<'b>(before: &Kind, next: &'b Kind) -> (Option<&'b [u8]>, Option<&'b [u8]>) {
    match (before, next) {
        (Kind::Push(before), Kind::Push(next)) => (
            new_bytes(before.commit_bytes.as_ref(), next.commit_bytes.as_ref()),
            new_bytes(before.abort_bytes.as_ref(), next.abort_bytes.as_ref()),
        ),
        _ => (None, None),
    }
}

/// A pull's source is stored under the pipeline's row lock, the same under which commits are marked as retired (G1, R8), and so is the word that its end gives: its role is
/// what the pipeline is, and an activation that ends at the same time changes that.
pub(super) async fn apply_settling(connection: &mut Session, change: &Change) -> Result<Applied, Fail> {
    let source = retirements::new_source(&change.before, &change.decision.next);
    if source.is_none() && WordOf::of(&change.before, &change.decision.next) != WordOf::Gives {
        return apply(connection, change).await;
    }
    let mut transaction = connection.begin().await?;
    // Whatever became of the pipeline: a stale writer of a round that it had once is told that the round has moved.
    sqlx::query("SELECT 1 FROM pipelines WHERE id = $1 FOR UPDATE")
        .bind(change.before.pipeline.uuid())
        .execute(&mut *transaction)
        .await?;
    if let Some(source) = source
        && retirements::is_marked(&mut transaction, change.before.pipeline, &source).await?
    {
        let before = &change.before;
        let current: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM rounds WHERE id = $1 AND version = $2 AND term = $3 AND ended_at IS NULL)",
        )
        .bind(before.id.uuid())
        .bind(bigint(before.version))
        .bind(before.term.as_i64())
        .fetch_one(&mut *transaction)
        .await?;
        return Ok(if current { Applied::SourceRetired(source) } else { Applied::Moved });
    }
    let applied = apply(&mut transaction, change).await?;
    transaction.commit().await.settling()?;
    Ok(applied)
}

pub(super) async fn apply(connection: &mut Session, change: &Change) -> Result<Applied, Fail> {
    let Change { before, decision, caller, settles } = change;
    let next = &decision.next;
    let mut hosts = ParticipantColumns::default();
    for (host_idx, participant) in next.participants.iter().enumerate() {
        if before.participants.get(host_idx) != Some(participant) {
            hosts.push(participant)?;
        }
    }
    let rest = (before.kind != next.kind).then(|| rest_of(&next.kind)).transpose()?;
    let (commit_bytes, abort_bytes) = decision_bytes(&before.kind, &next.kind);
    let source = source_columns(&next.kind);
    let committed = match &next.kind {
        Kind::Push(push) if next.phase == Phase::Committed => push.committed,
        _ => None,
    };
    let local: Vec<Uuid> =
        next.participants.iter().filter_map(|p| p.local_checkpoint).map(LocalCheckpointId::uuid).collect();
    let events = TransitionColumns::of(&decision.transitions);
    let word = WordOf::of(before, next);
    let owed = (word == WordOf::Gives).then(|| json(&nobody_told(next))).transpose()?;
    let fenced_because = next.problem.as_ref().map_or_else(String::new, |problem| text(&problem.message));
    let moved: i64 = sqlx::query_scalar(APPLY)
        .bind(before.id.uuid())
        .bind(bigint(before.version))
        .bind(before.term.as_i64())
        .bind(next.phase.as_str())
        .bind(optional_json(next.problem.as_ref())?)
        .bind(next.problem.as_ref().map(|problem| problem.reason.as_str()))
        .bind(next.cancel.as_ref().map(|cancel| text(&cancel.by)))
        .bind(next.cancel.as_ref().map(|cancel| text(&cancel.cause)))
        .bind(source.step.map(|step| step.as_i64()))
        .bind(source.fingerprint.as_ref().map(Fingerprint::to_string))
        .bind(commit_bytes)
        .bind(abort_bytes)
        .bind(committed.map(|commit| commit.digest.to_string()))
        .bind(rest)
        .bind(source.source)
        .bind(source.location)
        .bind(source.commit.map(|commit| commit.generation.as_i64()))
        .bind(source.commit.map(|commit| commit.seq.as_i64()))
        .bind(source.commit.map(|commit| commit.round.uuid()))
        .bind(source.commit.map(|commit| commit.digest.to_string()))
        .bind(next.phase.is_terminal())
        .bind(hosts.host_idx)
        .bind(hosts.phase)
        .bind(hosts.attempt)
        .bind(hosts.incarnation)
        .bind(hosts.local_checkpoint)
        .bind(hosts.files)
        .bind(hosts.bytes)
        .bind(hosts.bytes_uploaded)
        .bind(hosts.part)
        .bind(hosts.retry_at)
        .bind(hosts.problem_reason)
        .bind(hosts.problem)
        .bind(events.hosts)
        .bind(events.events)
        .bind(events.from)
        .bind(events.to)
        .bind(events.causes)
        .bind(text(&caller.actor))
        .bind(&caller.trace_id)
        .bind(decision.fence_pipeline)
        .bind(fenced_because)
        .bind(local)
        .bind(word == WordOf::TakesBack)
        .bind(owed)
        .bind(settles)
        .fetch_one(connection)
        .await
        .settling()?;
    Ok(if moved == 1 { Applied::Stored(stored(before, decision)) } else { Applied::Moved })
}

pub(super) fn stored(before: &Round, decision: &Decision) -> Round {
    let mut next = as_stored(decision.next.clone());
    next.version = before.version.saturating_add(1);
    next
}

/// After a lost answer: what became of the write (R6). Waits for a transaction that is still under way, by the row's lock.
///
/// None: not written. A copy of the statement that is still on its way can't do harm: whoever writes next raises the version.
pub(super) async fn look(connection: &mut Session, change: &Change) -> Result<Option<Applied>, Fail> {
    let mut transaction = connection.begin().await?;
    let id = change.before.id.uuid();
    sqlx::query("SELECT 1 FROM rounds WHERE id = $1 FOR UPDATE").bind(id).execute(&mut *transaction).await?;
    let row = sqlx::query(concat!(select_records!("rounds"), "WHERE r.id = $1"))
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let Some(row) = row else { return Ok(Some(Applied::Moved)) };
    // The lease and the request may have changed meanwhile, the round's own value tells.
    let found = record(&row)?.round;
    if found == stored(&change.before, &change.decision) {
        return Ok(Some(Applied::Stored(found)));
    }
    let unmoved = found.version == change.before.version && found.term == change.before.term;
    let term: i64 = row.try_get("term")?;
    tracing::debug!(round.id = %change.before.id, found.version, term, unmoved, "looked after a lost answer");
    Ok(if unmoved { None } else { Some(Applied::Moved) })
}
