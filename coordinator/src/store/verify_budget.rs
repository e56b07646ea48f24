//! How much may be re-read now, and what is being re-read: one row that one replica at a time works on, and whose turn it is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::{
    commit::CommitRef,
    id::PipelineId,
    problem::Problem,
    verification::{Allowance, Position},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Store, StoreError,
    identity::written_here,
    rows::unsigned,
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, optional_json, text},
};

/// A checkpoint that is being re-read, step by step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnderWay {
    /// In whose location.
    pub pipeline: PipelineId,
    /// Which.
    pub commit: CommitRef,
    /// Where to go on.
    pub position: Position,
    /// Of files, read so far.
    pub bytes: u64,
    /// Found so far.
    pub problems: Vec<Problem>,
    /// When reading began.
    pub started_at: DateTime<Utc>,
}

/// The row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyBudget {
    /// None: nothing was ever read.
    pub allowance: Option<Allowance>,
    /// None: something is to be chosen.
    pub under_way: Option<UnderWay>,
    /// Every write names the one it read.
    pub version: u64,
}

#[derive(Clone, Debug)]
pub(super) struct SaveBudget {
    pub(super) budget: VerifyBudget,
    pub(super) lease: Duration,
}

impl Store {
    /// Takes the budget; none: another replica has it.
    pub async fn claim_verify_budget(
        &self,
        replica: &str,
        lease: Duration,
    ) -> Result<Option<VerifyBudget>, StoreError> {
        self.database.claim_verify_budget(replica.to_owned(), lease).await
    }

    /// Prolongs the lease while a step reads; with no time at all lets go of it. False: another replica has the budget.
    pub async fn renew_verify_budget(&self, replica: &str, lease: Duration) -> Result<bool, StoreError> {
        self.database.renew_verify_budget(replica.to_owned(), lease).await
    }

    /// What a step has changed; the lease begins anew. None: somebody else has the budget now.
    pub async fn save_verify_budget(
        &self,
        budget: &VerifyBudget,
        lease: Duration,
    ) -> Result<Option<VerifyBudget>, StoreError> {
        let save = SaveBudget { budget: budget.clone(), lease };
        let saved = self.database.save_verify_budget(save).await?;
        Ok(saved.then(|| VerifyBudget { version: budget.version.saturating_add(1), ..budget.clone() }))
    }

    /// The pipeline whose last turn is longest ago, of those that own their location and are neither fenced nor behind; this is its turn now.
    pub async fn verify_turn(&self) -> Result<Option<PipelineId>, StoreError> {
        self.database.verify_turn().await
    }
}

pub(super) async fn claim(
    connection: &mut Session,
    (replica, lease): &(String, Duration),
) -> Result<Option<VerifyBudget>, Fail> {
    let row = sqlx::query(
        "UPDATE verify_budget SET version = version + 1, lease_owner = $1, lease_until = clock_timestamp() + make_interval(secs => $2),
                                  updated_at = clock_timestamp()
         WHERE lease_until IS NULL OR lease_until < clock_timestamp() OR lease_owner = $1
         RETURNING *",
    )
    .bind(text(replica))
    .bind(lease.as_secs_f64())
    .fetch_optional(connection)
    .await
    .settling()?;
    row.as_ref().map(budget).transpose()
}

/// By the holder's name and not by the version: a step that is saved meanwhile takes nothing away from it.
pub(super) async fn renew(connection: &mut Session, (replica, lease): &(String, Duration)) -> Result<bool, Fail> {
    let done = sqlx::query(
        "UPDATE verify_budget SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE lease_owner = $1",
    )
    .bind(text(replica))
    .bind(lease.as_secs_f64())
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn save(connection: &mut Session, save: &SaveBudget) -> Result<bool, Fail> {
    let done = sqlx::query(
        "UPDATE verify_budget SET version = version + 1, allowance = $2, under_way = $3,
                                  lease_until = clock_timestamp() + make_interval(secs => $4), updated_at = clock_timestamp()
         WHERE version = $1",
    )
    .bind(bigint(save.budget.version))
    .bind(optional_json(save.budget.allowance.as_ref())?)
    .bind(optional_json(save.budget.under_way.as_ref())?)
    .bind(save.lease.as_secs_f64())
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn turn(connection: &mut Session) -> Result<Option<PipelineId>, Fail> {
    let id: Option<Uuid> = sqlx::query_scalar(concat!(
        "WITH next AS (
             SELECT p.id FROM pipelines p LEFT JOIN verify_turns t ON t.pipeline_id = p.id
             WHERE p.deleted_at IS NULL AND p.claim = 'owned' AND p.fenced_at IS NULL AND p.behind_at IS NULL AND ",
        written_here!("p"),
        "
             ORDER BY t.looked_at NULLS FIRST, p.id LIMIT 1
         )
         INSERT INTO verify_turns (pipeline_id, looked_at) SELECT id, clock_timestamp() FROM next
         ON CONFLICT (pipeline_id) DO UPDATE SET looked_at = excluded.looked_at RETURNING pipeline_id"
    ))
    .fetch_optional(connection)
    .await
    .settling()?;
    Ok(id.map(PipelineId::new))
}

fn budget(row: &PgRow) -> Result<VerifyBudget, Fail> {
    let (allowance, under_way): (Option<Value>, Option<Value>) = (row.try_get("allowance")?, row.try_get("under_way")?);
    Ok(VerifyBudget {
        allowance: allowance.map(|value| from_json("allowance", value)).transpose()?,
        under_way: under_way.map(|value| from_json("under_way", value)).transpose()?,
        version: unsigned("version", row.try_get("version")?)?,
    })
}
