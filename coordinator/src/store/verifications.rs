//! What verifications found: kept for ever, and where something is broken the bytes of the mark that dispatch puts into the bucket. What is damaged is no base from the
//! moment on that it is known here; the bucket's mark tells everybody else.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    damage::DamageMark,
    id::{PipelineId, RoundId},
    problem::{Problem, Reason},
    verification::Scope,
};
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Caller, Change, PipelineRow, Store, StoreError,
    audit::{self, Entry, event},
    changes::Reach,
    identity::belongs_here,
    pipelines::{Lock, find, forget_last},
    rows::{number, parsed, readable, unsigned},
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, json, optional_json, text},
};
use crate::chance;

/// So many problems of one verification are kept.
const MOST_PROBLEMS: usize = 100;

/// Marks that are put at once.
const MARKS: i64 = 16;

/// What a reading found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// In whose location.
    pub pipeline: PipelineId,
    /// What was read.
    pub commit: CommitRef,
    /// How much of it.
    pub scope: Scope,
    /// Read within the daily budget.
    pub rolling: bool,
    /// Of files, that were re-read.
    pub bytes: u64,
    /// What does not hold; none: intact.
    pub problems: Vec<Problem>,
    /// When reading began, by the database's clock.
    pub started_at: DateTime<Utc>,
}

/// The same with the id it will have: a call that is repeated after a lost answer finds its own row.
#[derive(Clone, Debug)]
pub(super) struct Keep {
    pub(super) id: Uuid,
    pub(super) finding: Finding,
    pub(super) caller: Caller,
}

/// A finding as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verification {
    /// Drawn for this reading.
    pub id: Uuid,
    /// What was found.
    pub finding: Finding,
    /// Exact bytes of the mark that is to stand; none: intact, or not ours to mark.
    pub mark: Option<String>,
    /// When a mark was known to stand.
    pub marked_at: Option<DateTime<Utc>>,
    /// Why it does not stand yet.
    pub mark_problem: Option<Problem>,
    /// Who asked, or the replica.
    pub actor: String,
    /// When the result was known.
    pub ended_at: DateTime<Utc>,
}

impl Verification {
    /// Whether dispatch has a mark to put.
    pub const fn owes_mark(&self) -> bool {
        self.mark.is_some() && self.marked_at.is_none()
    }
}

/// What became of a mark.
#[derive(Clone, Debug)]
pub(super) struct SettleMark {
    pub(super) id: Uuid,
    /// None: one stands.
    pub(super) problem: Option<Problem>,
    pub(super) after: Duration,
    pub(super) caller: Caller,
}

/// Which verifications are looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerificationsOf {
    /// In whose location.
    pub pipeline: PipelineId,
    /// Of which checkpoints.
    pub checkpoints: Vec<RoundId>,
    /// Those that read this much only; none: any.
    pub scope: Option<Scope>,
}

impl Store {
    /// Keeps what a verification found. A damaged checkpoint is no base from here on; where the pipeline owns its location, the mark is owed.
    pub async fn keep_verification(&self, finding: Finding, caller: &Caller) -> Result<Verification, StoreError> {
        let pipeline = finding.pipeline;
        let keep = Keep { id: chance::id(), finding, caller: caller.clone() };
        let kept = settle_twice(|| self.database.keep_verification(keep.clone())).await?;
        self.hints.tell(Change::Pipeline(pipeline), Reach::Everywhere);
        if kept.owes_mark() {
            self.hints.tell(Change::ClaimWaits, Reach::Everywhere);
        }
        Ok(kept)
    }

    /// Takes marks that are owed; no other replica puts them until the lease is over.
    pub async fn owed_marks(&self, lease: Duration) -> Result<Vec<Verification>, StoreError> {
        self.database.owed_marks(lease).await
    }

    /// A mark stands (none), or why not yet; then it is owed again after a while. False: it was settled before.
    pub async fn settle_mark(
        &self,
        verification: &Verification,
        problem: Option<Problem>,
        after: Duration,
        caller: &Caller,
    ) -> Result<bool, StoreError> {
        let settle = SettleMark { id: verification.id, problem, after, caller: caller.clone() };
        let settled = self.database.settle_mark(settle).await?;
        self.hints.tell(Change::Pipeline(verification.finding.pipeline), Reach::Everywhere);
        Ok(settled)
    }

    /// One of them.
    pub async fn get_verification(&self, id: Uuid) -> Result<Verification, StoreError> {
        self.database.get_verification(id).await
    }

    /// The newest of each checkpoint that has any.
    pub async fn verifications(&self, of: VerificationsOf) -> Result<Vec<Verification>, StoreError> {
        self.database.verifications(of).await
    }
}

/// As it will stand.
pub(super) fn new_verification(keep: &Keep, pipeline: &PipelineRow, now: DateTime<Utc>) -> Verification {
    let mut finding = keep.finding.clone();
    finding.problems.truncate(MOST_PROBLEMS);
    // Only the owner writes into a location.
    let damaged = !finding.problems.is_empty();
    let mark = (damaged && pipeline.is_owner()).then(|| {
        let mark = DamageMark::new(pipeline.id, finding.commit, &keep.finding.problems, now);
        // Bytes that are no UTF-8 can't come from JSON.
        String::from_utf8(mark.encode()).unwrap_or_default()
    });
    let actor = text(&keep.caller.actor);
    Verification { id: keep.id, finding, mark, marked_at: None, mark_problem: None, actor, ended_at: now }
}

/// For the audit trail; none: a reading within the budget that found nothing is no event.
pub(super) fn found_because(finding: &Finding) -> Option<String> {
    let CommitRef { generation, seq, round, .. } = finding.commit;
    let what = match finding.scope {
        Scope::All => format!("{} bytes re-read", finding.bytes),
        Scope::Structure => "structure looked at".to_owned(),
    };
    match finding.problems.first() {
        Some(first) => Some(format!(
            "checkpoint {round} ({generation}-{seq}), {what}: {} places are broken; {first}",
            finding.problems.len()
        )),
        None if finding.rolling => None,
        None => Some(format!("checkpoint {round} ({generation}-{seq}), {what}: every digest agrees")),
    }
}

pub(super) fn outcome(finding: &Finding) -> &'static str {
    if finding.problems.is_empty() { "intact" } else { "damaged" }
}

pub(super) fn marked_because(commit: &CommitRef) -> String {
    format!("{} stands: checkpoint {} is neither latest nor a base", DamageMark::key_of(commit), commit.round)
}

pub(super) fn not_found(id: Uuid) -> Problem {
    Problem::new(Reason::CheckpointNotFound, format!("no verification {id}")).with("verification", id)
}

pub(super) async fn keep(connection: &mut Session, keep: &Keep) -> Result<Verification, Fail> {
    let finding = &keep.finding;
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &finding.pipeline.into(), Lock::ForUpdate).await?;
    let known = sqlx::query("SELECT * FROM verifications WHERE id = $1")
        .bind(keep.id)
        .fetch_optional(&mut *transaction)
        .await?;
    if let Some(known) = known {
        return verification(&known);
    }
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut *transaction).await?;
    let new = new_verification(keep, &pipeline, now);
    let row = sqlx::query(
        "INSERT INTO verifications (id, pipeline_id, generation, seq, checkpoint_id, digest, scope, rolling, outcome, bytes, problems, mark_bytes,
                                    actor, trace_id, started_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING *",
    )
    .bind(new.id)
    .bind(finding.pipeline.uuid())
    .bind(finding.commit.generation.as_i64())
    .bind(finding.commit.seq.as_i64())
    .bind(finding.commit.round.uuid())
    .bind(finding.commit.digest.to_string())
    .bind(finding.scope.as_str())
    .bind(finding.rolling)
    .bind(outcome(finding))
    .bind(bigint(finding.bytes))
    .bind(json(&new.finding.problems)?)
    .bind(new.mark.as_ref().map(|mark| mark.as_bytes()))
    .bind(&new.actor)
    .bind(&keep.caller.trace_id)
    .bind(finding.started_at)
    .bind(new.ended_at)
    .fetch_one(&mut *transaction)
    .await?;
    if !finding.problems.is_empty() {
        forget_last(&mut transaction, finding.pipeline, &finding.commit).await?;
    }
    if let Some(cause) = found_because(finding) {
        let entry = Entry {
            pipeline: finding.pipeline,
            round: None,
            event: event::CHECKPOINT_VERIFIED,
            from: None,
            to: Some(outcome(finding)),
            cause: &cause,
        };
        audit::write(&mut transaction, &keep.caller, &entry).await?;
    }
    let kept = verification(&row)?;
    transaction.commit().await.settling()?;
    Ok(kept)
}

pub(super) async fn owed(connection: &mut Session, lease: &Duration) -> Result<Vec<Verification>, Fail> {
    let rows = sqlx::query(
        concat!(
            "UPDATE verifications SET mark_lease = clock_timestamp() + make_interval(secs => $1)
             WHERE id IN (SELECT owed.id FROM verifications owed WHERE owed.mark_bytes IS NOT NULL AND owed.marked_at IS NULL
                            AND (owed.mark_lease IS NULL OR owed.mark_lease < clock_timestamp()) AND ",
            belongs_here!("owed"),
            "
                          ORDER BY owed.ended_at LIMIT $2 FOR UPDATE OF owed SKIP LOCKED)
             RETURNING *"
        ),
    )
    .bind(lease.as_secs_f64())
    .bind(MARKS)
    .fetch_all(connection)
    .await
    .settling()?;
    Ok(readable(&rows, verification))
}

pub(super) async fn settle(connection: &mut Session, settle: &SettleMark) -> Result<bool, Fail> {
    let mut transaction = connection.begin().await?;
    let row = sqlx::query(
        "UPDATE verifications SET marked_at = CASE WHEN $2::jsonb IS NULL THEN clock_timestamp() END, mark_problem = $2,
                                  mark_lease = clock_timestamp() + make_interval(secs => $3)
         WHERE id = $1 AND mark_bytes IS NOT NULL AND marked_at IS NULL RETURNING *",
    )
    .bind(settle.id)
    .bind(optional_json(settle.problem.as_ref())?)
    .bind(settle.after.as_secs_f64())
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let now = verification(&row)?;
    if settle.problem.is_none() {
        let cause = marked_because(&now.finding.commit);
        let entry = Entry {
            pipeline: now.finding.pipeline,
            round: None,
            event: event::CHECKPOINT_MARKED,
            from: None,
            to: Some("damaged"),
            cause: &cause,
        };
        audit::write(&mut transaction, &settle.caller, &entry).await?;
    }
    transaction.commit().await.settling()?;
    Ok(true)
}

pub(super) async fn get(connection: &mut Session, id: Uuid) -> Result<Verification, Fail> {
    let row = sqlx::query("SELECT * FROM verifications WHERE id = $1").bind(id).fetch_optional(connection).await?;
    row.as_ref().map_or_else(|| Err(not_found(id).into()), verification)
}

pub(super) async fn newest(connection: &mut Session, of: &VerificationsOf) -> Result<Vec<Verification>, Fail> {
    let checkpoints: Vec<Uuid> = of.checkpoints.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query(
        "SELECT DISTINCT ON (checkpoint_id) * FROM verifications
         WHERE pipeline_id = $1 AND checkpoint_id = ANY($2) AND ($3::text IS NULL OR scope = $3)
         ORDER BY checkpoint_id, ended_at DESC",
    )
    .bind(of.pipeline.uuid())
    .bind(checkpoints)
    .bind(of.scope.map(Scope::as_str))
    .fetch_all(connection)
    .await?;
    Ok(readable(&rows, verification))
}

fn verification(row: &PgRow) -> Result<Verification, Fail> {
    let id: Uuid = row.try_get("id")?;
    let (scope, digest): (String, String) = (row.try_get("scope")?, row.try_get("digest")?);
    let scope = match scope.as_str() {
        "all" => Scope::All,
        "structure" => Scope::Structure,
        _ => return Err(Fail::Unreadable(format!("scope {scope:?} of verification {id} is not readable"))),
    };
    let mark: Option<Vec<u8>> = row.try_get("mark_bytes")?;
    let mark_problem: Option<serde_json::Value> = row.try_get("mark_problem")?;
    Ok(Verification {
        id,
        finding: Finding {
            pipeline: PipelineId::new(row.try_get("pipeline_id")?),
            commit: CommitRef {
                generation: number(row.try_get("generation")?)?,
                seq: number(row.try_get("seq")?)?,
                round: RoundId::new(row.try_get("checkpoint_id")?),
                digest: parsed(&digest)?,
            },
            scope,
            rolling: row.try_get("rolling")?,
            bytes: unsigned("bytes", row.try_get("bytes")?)?,
            problems: from_json("problems", row.try_get("problems")?)?,
            started_at: row.try_get("started_at")?,
        },
        mark: mark
            .map(|bytes| String::from_utf8(bytes).map_err(|error| Fail::Unreadable(format!("mark of {id}: {error}"))))
            .transpose()?,
        marked_at: row.try_get("marked_at")?,
        mark_problem: mark_problem.map(|problem| from_json("mark_problem", problem)).transpose()?,
        actor: row.try_get("actor")?,
        ended_at: row.try_get("ended_at")?,
    })
}
