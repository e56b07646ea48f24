//! Standbys: rows that any replica may take for a look, one at a time; what each follows, and what was seen of it.

use std::time::Duration;

use lockstep_protocol::{
    id::{PipelineId, PipelineName, RoundId},
    problem::{Problem, Reason, Retryable},
    standby::{FollowState, Following, Sighting, Standing},
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Caller, Change, ClaimState, PipelineRow, PipelineSelector, Store, StoreError,
    ask::Ask,
    audit::{self, Entry, event},
    changes::Reach,
    fail_back::{become_standby, becomes_standby, is_no_standby},
    pipelines::{Lock, find},
    rows::readable,
    session::Session,
    settle_twice,
    sqlstate::{Fail, Settling},
    text::{bigint, from_json, json, optional_json},
};

/// A standby whose time has come; this replica alone looks at it until its lease is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DueStandby {
    /// The right to pull for it.
    pub following: Following,
    /// As it was remembered.
    pub state: FollowState,
    /// Of the row; [`Store::save_follow_state`] and the admission of its pull repeat it.
    pub version: u64,
}

/// What there is to do for standbys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DueStandbys {
    /// Taken by this call.
    pub due: Vec<DueStandby>,
    /// How long until another one is due; none: no pipeline follows.
    pub next: Option<Duration>,
}

/// A standby for those who look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandbyRow {
    /// Of the pipeline.
    pub name: PipelineName,
    /// Whether it follows, and what.
    pub standing: Standing,
    /// None: never looked at.
    pub state: Option<FollowState>,
    /// Why an activation has ended after its fence was put, with the location fenced and nothing started; until it is activated again.
    pub ended_fenced: Option<Problem>,
}

/// What somebody wants of a standby.
#[derive(Clone, Debug)]
pub(super) struct Steer {
    pub(super) pipeline: PipelineSelector,
    pub(super) follow: Follow,
    pub(super) caller: Caller,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Follow {
    /// The newest, or this one.
    From(Option<RoundId>),
    Stop,
}

impl Follow {
    pub(super) const fn event(self) -> &'static str {
        match self {
            Self::From(_) => event::STANDBY_STARTED,
            Self::Stop => event::STANDBY_STOPPED,
        }
    }

    /// Whether a standby that stays on `pinned`, or is `stopped`, is told something else than it does.
    pub(super) fn changes(self, pinned: Option<RoundId>, stopped: bool) -> bool {
        match self {
            Self::From(wanted) => stopped || wanted != pinned,
            Self::Stop => !stopped,
        }
    }

    pub(super) fn cause(self) -> String {
        match self {
            Self::From(None) => "follows the newest checkpoint".to_owned(),
            Self::From(Some(pinned)) => format!("stays on checkpoint {pinned}"),
            Self::Stop => "told to stop; the hosts keep what they have".to_owned(),
        }
    }
}

/// What came of a look.
#[derive(Clone, Debug)]
pub(super) struct SaveFollowState {
    pub(super) pipeline: PipelineId,
    pub(super) version: u64,
    pub(super) state: FollowState,
}

impl Store {
    /// Takes up to `at_most` standbys that are due for a look.
    pub async fn due_standbys(&self, lease: Duration, at_most: u32) -> Result<DueStandbys, StoreError> {
        self.database.due_standbys(lease, at_most).await
    }

    /// What came of a look. False: somebody else has looked since, or it was started or stopped; nothing was written.
    pub async fn save_follow_state(&self, due: &DueStandby, state: FollowState) -> Result<bool, StoreError> {
        let save = SaveFollowState { pipeline: due.following.pipeline(), version: due.version, state };
        self.database.save_follow_state(save).await
    }

    /// The standby follows from now on: the newest checkpoint, or stays on this one. An owner that is fenced becomes a standby by it. `LOCATION_OWNED` of one that is not,
    /// `TAKE_OVER_IN_PROGRESS` while it is activated, `ROUND_IN_PROGRESS` while something goes on that was admitted to the owner.
    pub async fn start_standby(
        &self,
        pipeline: &PipelineSelector,
        pinned: Option<RoundId>,
        caller: &Caller,
    ) -> Result<PipelineRow, StoreError> {
        self.steer(pipeline, Follow::From(pinned), caller).await
    }

    /// The standby follows no more until it is started. `LOCATION_OWNED` if it is none, `TAKE_OVER_IN_PROGRESS` while it is activated.
    pub async fn stop_standby(&self, pipeline: &PipelineSelector, caller: &Caller) -> Result<PipelineRow, StoreError> {
        self.steer(pipeline, Follow::Stop, caller).await
    }

    async fn steer(
        &self,
        pipeline: &PipelineSelector,
        follow: Follow,
        caller: &Caller,
    ) -> Result<PipelineRow, StoreError> {
        let steer = Steer { pipeline: pipeline.clone(), follow, caller: caller.clone() };
        let row = settle_twice(|| self.database.steer_standby(steer.clone())).await?;
        self.hints.tell(Change::Pipeline(row.id), Reach::Everywhere);
        Ok(row)
    }

    /// Every standby, or this one if it is one, by name.
    pub async fn standbys(&self, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, StoreError> {
        self.database.standbys(only).await
    }
}

/// Pipelines that follow; rows of new ones are made on the way.
const TAKE: &str = "
WITH wanted AS MATERIALIZED (
    SELECT p.id FROM pipelines p
    WHERE p.deleted_at IS NULL AND p.claim = 'standby' AND p.fenced_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM standbys s WHERE s.pipeline_id = p.id AND s.stopped_at IS NOT NULL)
      AND NOT EXISTS (SELECT 1 FROM take_overs t WHERE t.pipeline_id = p.id AND t.ended_at IS NULL)
), made AS (
    INSERT INTO standbys (pipeline_id, due_at)
    SELECT w.id, clock_timestamp() FROM wanted w WHERE NOT EXISTS (SELECT 1 FROM standbys s WHERE s.pipeline_id = w.id)
    ON CONFLICT DO NOTHING RETURNING pipeline_id
), due AS (
    SELECT s.pipeline_id FROM standbys s JOIN wanted w ON w.id = s.pipeline_id
    WHERE s.due_at <= clock_timestamp() AND (s.looking_until IS NULL OR s.looking_until <= clock_timestamp())
    ORDER BY s.due_at LIMIT $2 FOR UPDATE OF s SKIP LOCKED
), taken AS (
    UPDATE standbys s SET version = s.version + 1, looking_until = clock_timestamp() + make_interval(secs => $1)
    FROM due WHERE s.pipeline_id = due.pipeline_id
    RETURNING s.*
)
SELECT taken.*, true AS standby, NULL::uuid AS activation,
    (SELECT CASE WHEN EXISTS (SELECT 1 FROM made) THEN 0
        ELSE extract(epoch FROM min(greatest(s.due_at, coalesce(s.looking_until, s.due_at))) - clock_timestamp())::float8 END
     FROM standbys s JOIN wanted w ON w.id = s.pipeline_id
     WHERE s.pipeline_id NOT IN (SELECT pipeline_id FROM due)) AS next
FROM (SELECT 1) AS one LEFT JOIN taken ON true";

pub(super) async fn take(connection: &mut Session, (lease, at_most): &(Duration, u32)) -> Result<DueStandbys, Fail> {
    let rows =
        sqlx::query(TAKE).bind(lease.as_secs_f64()).bind(i64::from(*at_most)).fetch_all(connection).await.settling()?;
    let mut found = DueStandbys { due: Vec::new(), next: None };
    for row in rows {
        let next: Option<f64> = row.try_get("next")?;
        found.next = next.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        if row.try_get::<Option<Uuid>, _>("pipeline_id")?.is_some() {
            // One that can't be read keeps no other from its time.
            found.due.extend(readable(std::slice::from_ref(&row), due).into_iter().flatten());
        }
    }
    Ok(found)
}

fn due(row: &PgRow) -> Result<Option<DueStandby>, Fail> {
    let version: i64 = row.try_get("version")?;
    let following = standing(row, PipelineId::new(row.try_get("pipeline_id")?))?.following();
    let state = state(row)?;
    Ok(following.map(|following| DueStandby { following, state, version: version.unsigned_abs() }))
}

fn standing(row: &PgRow, pipeline: PipelineId) -> Result<Standing, Fail> {
    Ok(Standing {
        pipeline,
        standby: row.try_get("standby")?,
        stopped: row.try_get::<Option<chrono::DateTime<chrono::Utc>>, _>("stopped_at")?.is_some(),
        activation: row.try_get("activation")?,
        pinned: row.try_get::<Option<Uuid>, _>("pinned")?.map(RoundId::new),
    })
}

fn state(row: &PgRow) -> Result<FollowState, Fail> {
    let failures: i32 = row.try_get("failures")?;
    let problem: Option<Value> = row.try_get("problem")?;
    Ok(FollowState {
        due_at: row.try_get("due_at")?,
        failures: failures.unsigned_abs(),
        problem: problem.map(|problem| from_json::<Problem>("problem", problem)).transpose()?,
        seen: row.try_get::<Option<Uuid>, _>("seen_round_id")?.map(RoundId::new),
        sighting: from_json::<Sighting>("sighting", row.try_get("sighting")?)?,
    })
}

pub(super) async fn save(connection: &mut Session, save: &SaveFollowState) -> Result<bool, Fail> {
    let SaveFollowState { pipeline, version, state } = save;
    let done = sqlx::query(
        "UPDATE standbys SET due_at = $3, failures = $4, problem = $5, seen_round_id = $6, sighting = $7, looking_until = NULL,
                             updated_at = clock_timestamp()
         WHERE pipeline_id = $1 AND version = $2",
    )
    .bind(pipeline.uuid())
    .bind(bigint(*version))
    .bind(state.due_at)
    .bind(i32::try_from(state.failures).unwrap_or(i32::MAX))
    .bind(optional_json(state.problem.as_ref())?)
    .bind(state.seen.map(|round| round.uuid()))
    .bind(json(&state.sighting)?)
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn list(connection: &mut Session, only: Option<PipelineId>) -> Result<Vec<StandbyRow>, Fail> {
    let rows = sqlx::query(
        "SELECT p.id, p.name, p.claim = 'standby' AS standby, s.*,
                (SELECT t.id FROM take_overs t WHERE t.pipeline_id = p.id AND t.ended_at IS NULL) AS activation,
                (SELECT t.problem FROM take_overs t
                 WHERE t.pipeline_id = p.id AND t.phase = 'failed' AND t.generation = p.generation AND t.base_bytes IS NOT NULL
                   AND p.fence_bytes IS NOT NULL) AS ended_fenced
         FROM pipelines p LEFT JOIN standbys s ON s.pipeline_id = p.id
         WHERE p.deleted_at IS NULL AND p.claim = 'standby' AND ($1::uuid IS NULL OR p.id = $1)
         ORDER BY p.name",
    )
    .bind(only.map(|id| id.uuid()))
    .fetch_all(connection)
    .await?;
    Ok(readable(&rows, |row| {
        let name: String = row.try_get("name")?;
        let looked_at = row.try_get::<Option<Uuid>, _>("pipeline_id")?.is_some();
        Ok(StandbyRow {
            name: PipelineName::new(name)?,
            standing: standing(row, PipelineId::new(row.try_get("id")?))?,
            state: looked_at.then(|| state(row)).transpose()?,
            ended_fenced: row
                .try_get::<Option<Value>, _>("ended_fenced")?
                .map(|problem| from_json::<Problem>("problem", problem))
                .transpose()?,
        })
    }))
}

/// Only a standby that nobody activates can be told what to follow, and an owner only once another pipeline has taken its location over.
pub(super) fn check_steers(pipeline: &PipelineRow, follow: Follow, take_over: Option<Uuid>) -> Result<(), Problem> {
    let name = &pipeline.spec.name;
    if let Some(active) = take_over {
        return Err(Problem::new(
            Reason::TakeOverInProgress,
            format!("pipeline {name} is being made the owner of {}, as take-over {active}", pipeline.spec.location),
        )
        .with("pipeline", name)
        .with("take_over", active));
    }
    if pipeline.claim == ClaimState::Standby || becomes_standby(pipeline, follow) {
        return Ok(());
    }
    Err(is_no_standby(pipeline))
}

pub(super) async fn steer(connection: &mut Session, steer: &Steer) -> Result<PipelineRow, Fail> {
    let mut transaction = connection.begin().await?;
    let pipeline = find(&mut transaction, &steer.pipeline, Lock::ForUpdate).await?;
    let active: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM take_overs WHERE pipeline_id = $1 AND ended_at IS NULL")
            .bind(pipeline.id.uuid())
            .fetch_optional(&mut *transaction)
            .await?;
    check_steers(&pipeline, steer.follow, active)?;
    let turns = becomes_standby(&pipeline, steer.follow);
    let pipeline = if turns { become_standby(&mut transaction, &pipeline, &steer.caller).await? } else { pipeline };
    let (pinned, stopped) = match steer.follow {
        Follow::From(pinned) => (pinned, false),
        Follow::Stop => (None, true),
    };
    // The first of them is an event, as is what changes something: not the same once more, which may be this very call after a lost answer.
    let says: Option<(Option<Uuid>, bool)> =
        sqlx::query_as("SELECT pinned, stopped_at IS NOT NULL FROM standbys WHERE pipeline_id = $1 FOR UPDATE")
            .bind(pipeline.id.uuid())
            .fetch_optional(&mut *transaction)
            .await?;
    let event = turns || says.is_none_or(|(pinned, stopped)| steer.follow.changes(pinned.map(RoundId::new), stopped));
    // A look that is under way names an older version: neither its pull nor its outcome is taken any more.
    sqlx::query(
        "INSERT INTO standbys (pipeline_id, due_at, pinned, stopped_at)
         VALUES ($1, clock_timestamp(), $2, CASE WHEN $3 THEN clock_timestamp() END)
         ON CONFLICT (pipeline_id) DO UPDATE SET
             due_at = clock_timestamp(), failures = 0, problem = NULL, looking_until = NULL, version = standbys.version + 1,
             pinned = CASE WHEN $3 THEN standbys.pinned ELSE $2 END,
             stopped_at = CASE WHEN $3 THEN coalesce(standbys.stopped_at, clock_timestamp()) END, updated_at = clock_timestamp()",
    )
    .bind(pipeline.id.uuid())
    .bind(pinned.map(|round| round.uuid()))
    .bind(stopped)
    .execute(&mut *transaction)
    .await?;
    if event {
        let (event, cause) = (steer.follow.event(), steer.follow.cause());
        let entry = Entry { pipeline: pipeline.id, round: None, event, from: None, to: None, cause: &cause };
        audit::write(&mut transaction, &steer.caller, &entry).await?;
    }
    transaction.commit().await.settling()?;
    Ok(pipeline)
}

/// Of a pipeline that is made anew in the same transaction: it follows once somebody starts it.
pub(super) async fn insert_stopped(connection: &mut Session, pipeline: PipelineId) -> Result<(), Fail> {
    sqlx::query(
        "INSERT INTO standbys (pipeline_id, due_at, stopped_at) VALUES ($1, clock_timestamp(), clock_timestamp())",
    )
    .bind(pipeline.uuid())
    .execute(connection)
    .await?;
    Ok(())
}

/// What a standby asks for by itself is admitted only while the row is the one that was looked at, and the pipeline is a standby still.
pub(super) async fn still_follows(connection: &mut Session, pipeline: &PipelineRow, ask: &Ask) -> Result<(), Fail> {
    let Ask::Pull(pull) = ask else { return Ok(()) };
    let Some(version) = pull.follows else { return Ok(()) };
    let still: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM standbys WHERE pipeline_id = $1 AND version = $2 AND stopped_at IS NULL)
            AND NOT EXISTS (SELECT 1 FROM take_overs WHERE pipeline_id = $1 AND ended_at IS NULL)",
    )
    .bind(pipeline.id.uuid())
    .bind(bigint(version))
    .fetch_one(connection)
    .await?;
    if still && pipeline.claim == ClaimState::Standby { Ok(()) } else { Err(follows_no_more(pipeline).into()) }
}

pub(super) fn follows_no_more(pipeline: &PipelineRow) -> Problem {
    let name = &pipeline.spec.name;
    Problem::new(Reason::Superseded, format!("pipeline {name} was stopped, pinned, looked at or activated meanwhile"))
        .with("pipeline", name)
        .retry(Retryable::No)
}
