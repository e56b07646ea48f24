//! Words that hosts are owed: written with the end of a pull, taken back before a newer one installs, and any replica tells them until every host has answered.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::{
    id::{PipelineId, RoundId, Term},
    ready::{HostTold, Role, Telling, gives_word, takes_back},
    round::Round,
    takeover::{Phase, Purpose, to_pull},
};
use serde_json::Value;
use sqlx::{Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    Change, Store, StoreError,
    changes::Reach,
    identity::written_here,
    rows::{number, readable, unsigned},
    session::Session,
    sqlstate::{Fail, Settling},
    take_overs::Move,
    text::{bigint, from_json, json},
};

/// What a write to a round does to the word of its pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WordOf {
    /// Nothing.
    Nothing,
    /// Hosts are changed from now on: what they were told holds no more.
    TakesBack,
    /// It is the one that they are owed now.
    Gives,
}

impl WordOf {
    pub(super) fn of(before: &Round, next: &Round) -> Self {
        if gives_word(next) {
            Self::Gives
        } else if takes_back(next) && !takes_back(before) {
            Self::TakesBack
        } else {
            Self::Nothing
        }
    }
}

/// No host of a round was told yet.
pub(super) fn nobody_told(round: &Round) -> Vec<HostTold> {
    vec![HostTold::default(); round.participants.len()]
}

/// Whether a write to a take-over makes a standby's hosts active: they have exactly what was to be pulled, or there is nothing.
pub(super) fn activates(change: &Move) -> bool {
    let next = &change.decision.next;
    next.purpose == Purpose::Activate && next.phase == Phase::Done && change.before.phase != Phase::Done
}

/// The checkpoint that they must have for it; none: whatever they have.
pub(super) fn base_of(change: &Move) -> Option<RoundId> {
    to_pull(&change.decision.next).map(|commit| commit.round)
}

/// What came of one go at telling.
#[derive(Clone, Debug)]
pub(super) struct SaveTelling {
    pub(super) before: Telling,
    pub(super) next: Telling,
}

/// As a row holds times.
pub(super) fn stored(save: &SaveTelling) -> Telling {
    let micros = |at: Option<DateTime<Utc>>| at.map(|at| at.trunc_subsecs(6));
    Telling {
        version: save.before.version.saturating_add(1),
        retry_at: micros(save.next.retry_at),
        told_at: micros(save.next.told_at),
        ..save.next.clone()
    }
}

impl Store {
    /// Takes words that somebody is owed and nobody tells; each gets a new term. Not while a pull of the pipeline is active, which may change what its hosts have, nor
    /// once it is fenced or deleted.
    pub async fn claim_words(&self, lease: Duration) -> Result<Vec<Telling>, StoreError> {
        self.database.claim_words(lease).await
    }

    /// What came of one go. False: another replica tells since, or there is another word; nothing was written.
    pub async fn save_telling(&self, before: &Telling, next: Telling) -> Result<bool, StoreError> {
        let saved = self.database.save_telling(SaveTelling { before: before.clone(), next }).await?;
        self.hints.tell(Change::Pipeline(before.pipeline), Reach::Everywhere);
        Ok(saved)
    }

    /// The word of a pipeline; none: no pull has ended well since the last one began to install.
    pub async fn word_of(&self, pipeline: PipelineId) -> Result<Option<Telling>, StoreError> {
        self.database.word_of(pipeline).await
    }
}

pub(super) async fn claim(connection: &mut Session, lease: &Duration) -> Result<Vec<Telling>, Fail> {
    let rows = sqlx::query(
        concat!("UPDATE ready_words SET term = term + 1, version = version + 1, updated_at = clock_timestamp(),
                                lease_until = clock_timestamp() + make_interval(secs => $1)
         WHERE pipeline_id IN (
             SELECT w.pipeline_id FROM ready_words w JOIN pipelines p ON p.id = w.pipeline_id
             WHERE w.told_at IS NULL AND (w.lease_until IS NULL OR w.lease_until < clock_timestamp())
               AND (w.retry_at IS NULL OR w.retry_at <= clock_timestamp())
               AND p.deleted_at IS NULL AND p.fenced_at IS NULL AND ", written_here!("p"), "
               AND NOT EXISTS (SELECT 1 FROM rounds r WHERE r.pipeline_id = w.pipeline_id AND r.ended_at IS NULL AND r.kind = 'pull')
             ORDER BY w.pipeline_id LIMIT 64 FOR UPDATE OF w SKIP LOCKED)
         RETURNING *"),
    )
    .bind(lease.as_secs_f64())
    .fetch_all(connection)
    .await
    .settling()?;
    Ok(readable(&rows, telling))
}

pub(super) async fn save(connection: &mut Session, save: &SaveTelling) -> Result<bool, Fail> {
    let next = stored(save);
    let done = sqlx::query(
        "UPDATE ready_words SET version = version + 1, hosts = $4, tries = $5, retry_at = $6, told_at = $7, lease_until = NULL,
                                updated_at = clock_timestamp()
         WHERE pipeline_id = $1 AND version = $2 AND term = $3",
    )
    .bind(next.pipeline.uuid())
    .bind(bigint(save.before.version))
    .bind(save.before.term.as_i64())
    .bind(json(&next.hosts)?)
    .bind(i32::try_from(next.tries).unwrap_or(i32::MAX))
    .bind(next.retry_at)
    .bind(next.told_at)
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

/// In the transaction that ends an activation: the same hosts are told once more, in their new role. Not those of a pull that brought something else meanwhile.
pub(super) async fn activate(connection: &mut Session, change: &Move) -> Result<(), Fail> {
    if !activates(change) {
        return Ok(());
    }
    sqlx::query(
        "UPDATE ready_words w SET role = 'active', version = version + 1, tries = 0, retry_at = NULL, told_at = NULL, lease_until = NULL,
                                  hosts = (SELECT jsonb_agg('{}'::jsonb) FROM jsonb_array_elements(w.hosts)), updated_at = clock_timestamp()
         WHERE w.pipeline_id = $1 AND w.role = 'standby'
           AND ($2 IS NULL OR EXISTS (SELECT 1 FROM rounds r WHERE r.id = w.round_id AND r.source_round_id = $2))",
    )
    .bind(change.decision.next.pipeline.uuid())
    .bind(base_of(change).map(RoundId::uuid))
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn read(connection: &mut Session, pipeline: PipelineId) -> Result<Option<Telling>, Fail> {
    let row = sqlx::query("SELECT * FROM ready_words WHERE pipeline_id = $1")
        .bind(pipeline.uuid())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(telling).transpose()
}

fn telling(row: &PgRow) -> Result<Telling, Fail> {
    let pipeline: Uuid = row.try_get("pipeline_id")?;
    let (role, tries): (String, i32) = (row.try_get("role")?, row.try_get("tries")?);
    let role = Role::parse(&role).ok_or_else(|| {
        Fail::Unreadable(format!("role of the word of pipeline {pipeline} is not readable by this version"))
    })?;
    Ok(Telling {
        pipeline: PipelineId::new(pipeline),
        round: RoundId::new(row.try_get("round_id")?),
        role,
        version: unsigned("version", row.try_get("version")?)?,
        term: number::<Term>(row.try_get("term")?)?,
        hosts: from_json("hosts", row.try_get::<Value, _>("hosts")?)?,
        tries: tries.unsigned_abs(),
        retry_at: row.try_get("retry_at")?,
        told_at: row.try_get("told_at")?,
    })
}
