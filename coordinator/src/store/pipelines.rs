//! Reading pipelines.

use lockstep_protocol::{
    commit::CommitRef,
    id::{DatabaseId, Fingerprint, Generation, LocalCheckpointId, PipelineId, RoundNo, Seq, Step, Term},
    problem::{Problem, Reason},
    spec::PipelineSpec,
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    ClaimState, DatabaseIdentity, LastCommit, Listed, Loss, Page, PipelineRow, PipelineSelector,
    audit::bad_token,
    identity::{self, this_database},
    rows::{commit_ref, number, parsed, readable, unreadable_row, unsigned},
    session::Session,
    sqlstate::Fail,
    text::{bigint, from_json},
};

/// Whether the row is locked against other writers until the transaction ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lock {
    No,
    ForUpdate,
}

pub(super) fn not_found(selector: &PipelineSelector) -> Problem {
    Problem::new(Reason::PipelineNotFound, format!("no pipeline {selector}")).with("pipeline", selector)
}

/// Pipelines, and the database that they are read in.
macro_rules! select_seen {
    ($rest:literal) => {
        concat!("SELECT p.*, this.* FROM pipelines p CROSS JOIN ", this_database!(), " AS this ", $rest)
    };
}

/// One row of [`select_seen`].
fn seen(row: &PgRow) -> Result<PipelineRow, Fail> {
    Ok(identity::seen_from(&identity::this(row)?, pipeline(row)?))
}

/// The pipeline, unless it was deleted. One that was refused its location is found by its id only, so that whoever created it learns why.
pub(super) async fn find(
    connection: &mut Session,
    selector: &PipelineSelector,
    lock: Lock,
) -> Result<PipelineRow, Fail> {
    let query = match (selector, lock) {
        (PipelineSelector::Id(_), Lock::No) => {
            select_seen!("WHERE p.id = $1 AND (p.deleted_at IS NULL OR p.claim = 'refused')")
        }
        (PipelineSelector::Id(_), Lock::ForUpdate) => {
            select_seen!("WHERE p.id = $1 AND p.deleted_at IS NULL FOR UPDATE OF p")
        }
        (PipelineSelector::Name(_), Lock::No) => select_seen!("WHERE p.name = $1 AND p.deleted_at IS NULL"),
        (PipelineSelector::Name(_), Lock::ForUpdate) => {
            select_seen!("WHERE p.name = $1 AND p.deleted_at IS NULL FOR UPDATE OF p")
        }
    };
    let query = sqlx::query(query);
    let query = match selector {
        PipelineSelector::Id(id) => query.bind(id.uuid()),
        PipelineSelector::Name(name) => query.bind(name.as_str()),
    };
    match query.fetch_optional(connection).await? {
        Some(row) => seen(&row),
        None => Err(not_found(selector).into()),
    }
}

/// Deleted, refused or neither.
pub(super) async fn any(connection: &mut Session, id: &PipelineId) -> Result<Option<PipelineRow>, Fail> {
    let row = sqlx::query("SELECT * FROM pipelines WHERE id = $1").bind(id.uuid()).fetch_optional(connection).await?;
    row.map(|row| pipeline(&row)).transpose()
}

/// By name; deleted and refused ones are left out.
pub(super) async fn list(connection: &mut Session, page: &Page) -> Result<Listed<PipelineRow>, Fail> {
    let after = page.token.as_deref().unwrap_or_default();
    if after.contains('\0') {
        return Err(bad_token(after).into());
    }
    let rows = sqlx::query(select_seen!("WHERE p.deleted_at IS NULL AND p.name > $1 ORDER BY p.name LIMIT $2"))
        .bind(after)
        .bind(page.limit())
        .fetch_all(connection)
        .await?;
    let items = readable(&rows, seen);
    let full = bigint(rows.len() as u64) == page.limit();
    let next = rows.last().filter(|_| full).map(|row| row.try_get("name")).transpose()?;
    Ok(Listed { items, next })
}

fn problem(row: &PgRow, column: &str) -> Result<Option<Problem>, Fail> {
    let value: Option<Value> = row.try_get(column)?;
    value.map(|value| from_json(column, value)).transpose()
}

fn claim(row: &PgRow, id: PipelineId) -> Result<(ClaimState, Option<Problem>), Fail> {
    let claim: String = row.try_get("claim")?;
    let problem = problem(row, "claim_problem")?;
    match (claim.as_str(), problem) {
        ("claiming", problem) => Ok((ClaimState::Claiming, problem)),
        ("owned", _) => Ok((ClaimState::Owned, None)),
        ("standby", _) => Ok((ClaimState::Standby, None)),
        ("refused", Some(problem)) => Ok((ClaimState::Refused(problem), None)),
        (other, _) => {
            Err(Fail::Unreadable(format!("claim {other:?} of pipeline {id} is not readable by this version")))
        }
    }
}

fn last_commit(row: &PgRow) -> Result<Option<LastCommit>, Fail> {
    let Some(commit) = commit_ref(row, "last")? else { return Ok(None) };
    let fingerprint: Option<String> = row.try_get("last_fingerprint")?;
    let local: Option<Vec<Uuid>> = row.try_get("last_local")?;
    Ok(Some(LastCommit {
        commit,
        step: number::<Step>(row.try_get("last_step")?)?,
        fingerprint: fingerprint.as_deref().map(parsed::<Fingerprint>).transpose()?,
        local_checkpoints: local.unwrap_or_default().into_iter().map(LocalCheckpointId::new).collect(),
        at: row.try_get("last_committed_at")?,
    }))
}

/// One row of `pipelines`. One that can't be read says which pipeline it is.
pub(super) fn pipeline(row: &PgRow) -> Result<PipelineRow, Fail> {
    whole_pipeline(row).map_err(|fail| unreadable_row("pipeline", row, "name", &fail))
}

fn whole_pipeline(row: &PgRow) -> Result<PipelineRow, Fail> {
    let id = PipelineId::new(row.try_get("id")?);
    let spec = PipelineSpec::from_value(row.try_get("spec")?)
        .map_err(|problem| Fail::Unreadable(format!("spec of pipeline {id}: {}", problem.message)))?;
    let (claim, claim_problem) = claim(row, id)?;
    let fence_bytes: Option<Vec<u8>> = row.try_get("fence_bytes")?;
    let spec_version: i64 = row.try_get("spec_version")?;
    let timeline: i64 = row.try_get("timeline")?;
    Ok(PipelineRow {
        id,
        spec,
        etag: spec_version.to_string(),
        version: unsigned("version", row.try_get("version")?)?,
        generation: number::<Generation>(row.try_get("generation")?)?,
        claim,
        claim_problem,
        claim_term: number::<Term>(row.try_get("claim_term")?)?,
        fence_bytes: fence_bytes
            .map(|bytes| {
                String::from_utf8(bytes)
                    .map_err(|error| Fail::Unreadable(format!("fence_bytes of pipeline {id}: {error}")))
            })
            .transpose()?,
        fenced: problem(row, "fenced_problem")?,
        behind: problem(row, "behind_problem")?,
        lost: commit_ref(row, "lost")?
            .zip(problem(row, "lost_problem")?)
            .map(|(commit, problem)| Loss { commit, problem }),
        database: DatabaseIdentity {
            database: DatabaseId::new(row.try_get("database_id")?),
            system_identifier: row.try_get("system_identifier")?,
            timeline: u32::try_from(timeline)
                .map_err(|_| Fail::Unreadable(format!("timeline {timeline} of pipeline {id} is out of range")))?,
        },
        last_commit: last_commit(row)?,
        next_round_no: number::<RoundNo>(row.try_get("next_round_no")?)?,
        next_seq: number::<Seq>(row.try_get("next_seq")?)?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        deleted_at: row.try_get("deleted_at")?,
    })
}

/// What is damaged or given up is no base and no answer to a push any more: the next one sends everything, of the same step too.
pub(super) async fn forget_last(connection: &mut Session, id: PipelineId, commit: &CommitRef) -> Result<(), Fail> {
    sqlx::query(
        "UPDATE pipelines SET last_generation = NULL, last_seq = NULL, last_round_id = NULL, last_digest = NULL, last_step = NULL,
                last_fingerprint = NULL, last_local = NULL, last_committed_at = NULL, version = version + 1, updated_at = clock_timestamp()
         WHERE id = $1 AND last_generation = $2 AND last_seq = $3",
    )
    .bind(id.uuid())
    .bind(commit.generation.as_i64())
    .bind(commit.seq.as_i64())
    .execute(connection)
    .await?;
    Ok(())
}
