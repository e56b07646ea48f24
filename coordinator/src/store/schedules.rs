//! When pipelines are pushed by themselves: rows that any replica may take for a look, one at a time.

use std::time::Duration;

use lockstep_protocol::{
    id::{PipelineId, RoundId},
    problem::Problem,
    schedule::PushSchedule,
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Store, StoreError,
    identity::written_here,
    rows::readable,
    session::Session,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, optional_json},
};

/// A pipeline whose time has come; this replica alone looks at it until its lease is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DuePush {
    /// Which.
    pub pipeline: PipelineId,
    /// As it was remembered.
    pub schedule: PushSchedule,
    /// Of the row; [`Store::save_push_schedule`] repeats it.
    pub version: u64,
}

/// What there is to do for the schedules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DuePushes {
    /// Taken by this call.
    pub due: Vec<DuePush>,
    /// How long until another one is due; none: no pipeline has a `push_interval`.
    pub next: Option<Duration>,
}

/// What came of a look.
#[derive(Clone, Debug)]
pub(super) struct SaveSchedule {
    pub(super) pipeline: PipelineId,
    pub(super) version: u64,
    pub(super) schedule: PushSchedule,
}

impl Store {
    /// Takes up to `at_most` pipelines that are due for a look.
    pub async fn due_pushes(&self, lease: Duration, at_most: u32) -> Result<DuePushes, StoreError> {
        self.database.due_pushes(lease, at_most).await
    }

    /// What came of a look. False: somebody else has looked since; nothing was written.
    pub async fn save_push_schedule(&self, due: &DuePush, schedule: PushSchedule) -> Result<bool, StoreError> {
        let save = SaveSchedule { pipeline: due.pipeline, version: due.version, schedule };
        self.database.save_push_schedule(save).await
    }

    /// For those who look; none: never looked at.
    pub async fn push_schedule(&self, pipeline: PipelineId) -> Result<Option<PushSchedule>, StoreError> {
        self.database.push_schedule(pipeline).await
    }
}

/// Pipelines that have an interval and may push; rows of new ones are made on the way.
const TAKE: &str = concat!("
WITH wanted AS MATERIALIZED (
    SELECT p.id FROM pipelines p
    WHERE p.deleted_at IS NULL AND p.claim = 'owned' AND p.fenced_at IS NULL AND p.spec ->> 'push_interval' IS NOT NULL AND ", written_here!("p"), "
), made AS (
    INSERT INTO push_schedules (pipeline_id, due_at)
    SELECT w.id, clock_timestamp() FROM wanted w WHERE NOT EXISTS (SELECT 1 FROM push_schedules s WHERE s.pipeline_id = w.id)
    ON CONFLICT DO NOTHING RETURNING pipeline_id
), due AS (
    SELECT s.pipeline_id FROM push_schedules s JOIN wanted w ON w.id = s.pipeline_id
    WHERE s.due_at <= clock_timestamp() AND (s.looking_until IS NULL OR s.looking_until <= clock_timestamp())
    ORDER BY s.due_at LIMIT $2 FOR UPDATE OF s SKIP LOCKED
), taken AS (
    UPDATE push_schedules s SET version = s.version + 1, looking_until = clock_timestamp() + make_interval(secs => $1)
    FROM due WHERE s.pipeline_id = due.pipeline_id
    RETURNING s.pipeline_id, s.due_at, s.failures, s.problem, s.seen_round_id, s.version
)
SELECT taken.*, (SELECT CASE WHEN EXISTS (SELECT 1 FROM made) THEN 0
        ELSE extract(epoch FROM min(greatest(s.due_at, coalesce(s.looking_until, s.due_at))) - clock_timestamp())::float8 END
     FROM push_schedules s JOIN wanted w ON w.id = s.pipeline_id
     WHERE s.pipeline_id NOT IN (SELECT pipeline_id FROM due)) AS next
FROM (SELECT 1) AS one LEFT JOIN taken ON true");

pub(super) async fn take(connection: &mut Session, (lease, at_most): &(Duration, u32)) -> Result<DuePushes, Fail> {
    let rows =
        sqlx::query(TAKE).bind(lease.as_secs_f64()).bind(i64::from(*at_most)).fetch_all(connection).await.settling()?;
    let mut found = DuePushes { due: Vec::new(), next: None };
    for row in rows {
        let next: Option<f64> = row.try_get("next")?;
        found.next = next.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        if let Some(pipeline) = row.try_get::<Option<Uuid>, _>("pipeline_id")? {
            let version: i64 = row.try_get("version")?;
            // One that can't be read keeps no other from its time.
            found.due.extend(readable(std::slice::from_ref(&row), schedule).into_iter().map(|schedule| DuePush {
                pipeline: PipelineId::new(pipeline),
                schedule,
                version: version.unsigned_abs(),
            }));
        }
    }
    Ok(found)
}

fn schedule(row: &PgRow) -> Result<PushSchedule, Fail> {
    let failures: i32 = row.try_get("failures")?;
    let problem: Option<Value> = row.try_get("problem")?;
    Ok(PushSchedule {
        due_at: row.try_get("due_at")?,
        failures: failures.unsigned_abs(),
        problem: problem.map(|problem| from_json::<Problem>("problem", problem)).transpose()?,
        seen: row.try_get::<Option<Uuid>, _>("seen_round_id")?.map(RoundId::new),
    })
}

pub(super) async fn save(connection: &mut Session, save: &SaveSchedule) -> Result<bool, Fail> {
    let SaveSchedule { pipeline, version, schedule } = save;
    let done = sqlx::query(
        "UPDATE push_schedules SET due_at = $3, failures = $4, problem = $5, seen_round_id = $6, looking_until = NULL,
                                   updated_at = clock_timestamp()
         WHERE pipeline_id = $1 AND version = $2",
    )
    .bind(pipeline.uuid())
    .bind(bigint(*version))
    .bind(schedule.due_at)
    .bind(i32::try_from(schedule.failures).unwrap_or(i32::MAX))
    .bind(optional_json(schedule.problem.as_ref())?)
    .bind(schedule.seen.map(|round| round.uuid()))
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn read(connection: &mut Session, pipeline: PipelineId) -> Result<Option<PushSchedule>, Fail> {
    let row = sqlx::query("SELECT * FROM push_schedules WHERE pipeline_id = $1")
        .bind(pipeline.uuid())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(schedule).transpose()
}
