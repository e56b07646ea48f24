//! The audit trail: written in the transaction of what it tells, never changed.

use lockstep_protocol::{
    id::{PipelineId, RoundId},
    problem::{Problem, Reason},
    round::Transition,
};
use sqlx::{Row, postgres::PgRow};

use super::{
    AuditFilter, AuditRow, Caller, Listed, Page,
    rows::unsigned,
    session::Session,
    sqlstate::Fail,
    text::{bigint, text},
};

/// Sorts of events, as the column's CHECK names them; the statements that write others have their names in them.
pub(super) mod event {
    pub(crate) const PIPELINE_CREATED: &str = "pipeline_created";
    pub(crate) const PIPELINE_UPDATED: &str = "pipeline_updated";
    pub(crate) const PIPELINE_DELETED: &str = "pipeline_deleted";
    pub(crate) const PIPELINE_CLAIM: &str = "pipeline_claim";
    pub(crate) const TAKE_OVER_ADMITTED: &str = "take_over_admitted";
    pub(crate) const TAKE_OVER_PHASE: &str = "take_over_phase";
    pub(crate) const UPKEEP_ADMITTED: &str = "upkeep_admitted";
    pub(crate) const UPKEEP_ENDED: &str = "upkeep_ended";
    pub(crate) const CHECKPOINT_RETIRED: &str = "checkpoint_retired";
    pub(crate) const STANDBY_STARTED: &str = "standby_started";
    pub(crate) const STANDBY_STOPPED: &str = "standby_stopped";
    pub(crate) const CHECKPOINT_VERIFIED: &str = "checkpoint_verified";
    pub(crate) const CHECKPOINT_MARKED: &str = "checkpoint_marked";
    pub(crate) const PIPELINE_BEHIND: &str = "pipeline_behind";
    pub(crate) const CHECKPOINT_LOST: &str = "checkpoint_lost";
    pub(crate) const CHECKPOINT_FOUND: &str = "checkpoint_found";
    pub(crate) const LOSS_ACCEPTED: &str = "loss_accepted";
    pub(crate) const ROUND_LEARNT: &str = "round_learnt";
    pub(crate) const CANCEL_REQUESTED: &str = "cancel_requested";
    pub(crate) const ROUND_PHASE: &str = "round_phase";
    pub(crate) const HOST_PHASE: &str = "host_phase";
    /// Something worth a line that changed no phase.
    pub(crate) const ROUND_NOTE: &str = "round_note";
}

/// One event of a pipeline as a whole or of a round's admission.
pub(super) struct Entry<'e> {
    pub(super) pipeline: PipelineId,
    pub(super) round: Option<RoundId>,
    pub(super) event: &'static str,
    pub(super) from: Option<&'e str>,
    pub(super) to: Option<&'e str>,
    pub(super) cause: &'e str,
}

pub(super) async fn write(connection: &mut Session, caller: &Caller, entry: &Entry<'_>) -> Result<(), Fail> {
    sqlx::query(
        "INSERT INTO audit_events (pipeline_id, round_id, event, from_phase, to_phase, cause, actor, trace_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(entry.pipeline.uuid())
    .bind(entry.round.map(RoundId::uuid))
    .bind(entry.event)
    .bind(entry.from)
    .bind(entry.to)
    .bind(text(entry.cause))
    .bind(text(&caller.actor))
    .bind(&caller.trace_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Transitions as columns for one UNNEST, in order.
#[derive(Default)]
pub(super) struct TransitionColumns {
    pub(super) hosts: Vec<Option<i32>>,
    pub(super) events: Vec<&'static str>,
    pub(super) from: Vec<&'static str>,
    pub(super) to: Vec<&'static str>,
    pub(super) causes: Vec<String>,
}

impl TransitionColumns {
    pub(super) fn of(transitions: &[Transition]) -> Self {
        let mut columns = Self::default();
        for transition in transitions {
            columns.hosts.push(transition.host_idx.and_then(|host_idx| i32::try_from(host_idx).ok()));
            columns.events.push(match transition.host_idx {
                Some(_) => event::HOST_PHASE,
                None if transition.from == transition.to => event::ROUND_NOTE,
                None => event::ROUND_PHASE,
            });
            columns.from.push(transition.from);
            columns.to.push(transition.to);
            columns.causes.push(text(&transition.cause));
        }
        columns
    }
}

pub(super) async fn list(
    connection: &mut Session,
    filter: &AuditFilter,
    page: &Page,
) -> Result<Listed<AuditRow>, Fail> {
    let after = match page.token.as_deref() {
        None | Some("") => 0,
        Some(token) => token.parse::<i64>().map_err(|_| bad_token(token))?,
    };
    let rows = sqlx::query(
        "SELECT id, at, pipeline_id, round_id, host_idx, event, from_phase, to_phase, cause, actor, trace_id, term, version
         FROM audit_events
         WHERE id > $1 AND ($2::uuid IS NULL OR pipeline_id = $2) AND ($3::uuid IS NULL OR round_id = $3)
         ORDER BY id LIMIT $4",
    )
    .bind(after)
    .bind(filter.pipeline.map(PipelineId::uuid))
    .bind(filter.round.map(RoundId::uuid))
    .bind(page.limit())
    .fetch_all(connection)
    .await?;
    let items = rows.iter().map(audit_row).collect::<Result<Vec<_>, _>>()?;
    let full = bigint(items.len() as u64) == page.limit();
    let next = items.last().filter(|_| full).map(|row| row.id.to_string());
    Ok(Listed { items, next })
}

pub(super) fn bad_token(token: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("page_token {token:?} is not one that a list has returned"))
        .with("field", "page_token")
        .with("value", token)
}

fn audit_row(row: &PgRow) -> Result<AuditRow, Fail> {
    let host_idx: Option<i32> = row.try_get("host_idx")?;
    let term: Option<i64> = row.try_get("term")?;
    let version: Option<i64> = row.try_get("version")?;
    Ok(AuditRow {
        id: unsigned("id", row.try_get("id")?)?,
        at: row.try_get("at")?,
        pipeline: PipelineId::new(row.try_get("pipeline_id")?),
        round: row.try_get::<Option<uuid::Uuid>, _>("round_id")?.map(RoundId::new),
        host_idx: host_idx.and_then(|host_idx| u32::try_from(host_idx).ok()),
        event: row.try_get("event")?,
        from: row.try_get("from_phase")?,
        to: row.try_get("to_phase")?,
        cause: row.try_get("cause")?,
        actor: row.try_get("actor")?,
        trace_id: row.try_get("trace_id")?,
        term: term.and_then(|term| u64::try_from(term).ok()),
        version: version.and_then(|version| u64::try_from(version).ok()),
    })
}
