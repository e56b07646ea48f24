//! The checkpoints that a database takes to stand in the bucket: it knows them as committed, and neither as retired nor as given up.

use lockstep_protocol::{
    commit::CommitRef,
    id::{PipelineId, Step},
};
use sqlx::{Row, postgres::PgRow};

use super::{
    Store, StoreError,
    rows::{commit_ref, number, readable},
    session::Session,
    sqlstate::Fail,
};

/// Of one pipeline, as many are looked after at once. Retention keeps far fewer; without it these are the newest.
pub(super) const AT_MOST: u32 = 10_000;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its place and digest.
    pub commit: CommitRef,
    /// Of its cut.
    pub step: Step,
}

impl Store {
    /// Newest first, the newest 10,000. Also such as this database doesn't know any more, or never knew, to be retired: their tombstones say so.
    pub async fn committed(&self, pipeline: PipelineId) -> Result<Vec<Committed>, StoreError> {
        self.database.committed(pipeline).await
    }
}

pub(super) async fn committed(connection: &mut Session, pipeline: PipelineId) -> Result<Vec<Committed>, Fail> {
    let rows = sqlx::query(
        "SELECT r.generation AS at_generation, r.seq AS at_seq, r.id AS at_round_id, r.commit_digest AS at_digest, r.step
         FROM rounds r
         WHERE r.pipeline_id = $1 AND r.kind = 'push' AND r.phase = 'committed'
           AND NOT EXISTS (SELECT 1 FROM retirements t WHERE t.pipeline_id = $1 AND t.generation = r.generation AND t.seq = r.seq)
           AND NOT EXISTS (SELECT 1 FROM accepted_losses a WHERE a.pipeline_id = $1 AND a.lost_round_id = r.id)
         ORDER BY r.generation DESC, r.seq DESC LIMIT $2",
    )
    .bind(pipeline.uuid())
    .bind(i64::from(AT_MOST))
    .fetch_all(connection)
    .await?;
    Ok(readable(&rows, read))
}

fn read(row: &PgRow) -> Result<Committed, Fail> {
    let commit: Option<CommitRef> = commit_ref(row, "at")?;
    let step: Option<i64> = row.try_get("step")?;
    match (commit, step) {
        (Some(commit), Some(step)) => Ok(Committed { commit, step: number(step)? }),
        _ => Err(Fail::Unreadable("a committed round names no commit or no step".to_owned())),
    }
}
