//! Where a pipeline's bucket and this database differ: the database is behind, or the bucket has lost what it acknowledged.

use lockstep_protocol::{
    commit::CommitRef,
    id::{Generation, PipelineId, PipelineName},
    problem::{Problem, Reason},
};

use super::{
    Caller, Change, DatabaseIdentity, Loss, PipelineRow, Store, StoreError, another_database,
    audit::event,
    changes::Reach,
    is_foreign,
    session::Session,
    sqlstate::{Fail, Settling},
    text::{json, text},
};

/// What the columns of a loss hold while nothing is lost.
macro_rules! nothing_is_lost {
    () => {
        "lost_at = NULL, lost_problem = NULL, lost_generation = NULL, lost_seq = NULL, lost_round_id = NULL, lost_digest = NULL, \
         version = version + 1, updated_at = clock_timestamp()"
    };
}
pub(super) use nothing_is_lost;

/// What differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The bucket holds what this database doesn't know: nothing is admitted and nothing collected until a take-over.
    Behind,
    /// The database knows as committed what the bucket has lost: nothing is collected until it is found again or an operator accepts the loss.
    Lost(CommitRef),
}

#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) id: PipelineId,
    pub(super) generation: Generation,
    pub(super) difference: Difference,
    pub(super) problem: Problem,
    pub(super) caller: Caller,
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) id: PipelineId,
    pub(super) generation: Generation,
    pub(super) commit: CommitRef,
    pub(super) caller: Caller,
}

impl Store {
    /// Notes that bucket and database differ, for everybody who looks at the pipeline. False: it is noted already, the pipeline is in another generation or gone, or what is
    /// lost is given up or never was the pipeline's.
    pub async fn note_difference(
        &self,
        row: (PipelineId, Generation),
        difference: Difference,
        problem: Problem,
        caller: &Caller,
    ) -> Result<bool, StoreError> {
        let (id, generation) = row;
        let note = Note { id, generation, difference, problem, caller: caller.clone() };
        let noted = self.database.note_difference(note).await?;
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        Ok(noted)
    }

    /// What was noted as lost stands again. False: it is not the one that is noted, or the pipeline is in another generation or gone.
    pub async fn found_again(
        &self,
        row: (PipelineId, Generation),
        commit: CommitRef,
        caller: &Caller,
    ) -> Result<bool, StoreError> {
        let (id, generation) = row;
        let found = self.database.found_again(Found { id, generation, commit, caller: caller.clone() }).await?;
        self.hints.tell(Change::Pipeline(id), Reach::Everywhere);
        Ok(found)
    }
}

impl Difference {
    pub(super) const fn event(self) -> &'static str {
        match self {
            Self::Behind => event::PIPELINE_BEHIND,
            Self::Lost(_) => event::CHECKPOINT_LOST,
        }
    }
}

/// `DATABASE_BEHIND` with the way out: what everything that would admit or collect is refused with.
pub fn refuse_behind(row: &PipelineRow) -> Result<(), Problem> {
    row.behind.as_ref().map_or(Ok(()), |found| Err(resync_first(row, found)))
}

/// The same for what stops only where another database wrote the row, and not where this one is behind its bucket.
pub(super) fn refuse_elsewhere(row: &PipelineRow, this: &DatabaseIdentity) -> Result<(), Problem> {
    if is_foreign(row, this) { Err(resync_first(row, &another_database(row, this))) } else { Ok(()) }
}

fn resync_first(row: &PipelineRow, found: &Problem) -> Problem {
    let name = &row.spec.name;
    let mut problem = Problem::new(
        Reason::DatabaseBehind,
        format!(
            "the database is behind the bucket of pipeline {name}: {}; run `lockstep resync {name}` (with --dry-run first to see what it does)",
            found.message
        ),
    );
    problem.metadata.clone_from(&found.metadata);
    problem.with("pipeline", name).with("generation", row.generation)
}

/// Why nothing is collected while a checkpoint is lost: its objects are all that brings it back, and no commit reaches them. With both ways out.
pub fn refuse_lost(row: &PipelineRow) -> Result<(), Problem> {
    row.lost.as_ref().map_or(Ok(()), |loss| Err(not_collected(&row.spec.name, loss)))
}

/// Why nothing of it is collected.
pub fn not_collected(name: &PipelineName, loss: &Loss) -> Problem {
    let Loss { commit, problem: found } = loss;
    let mut problem = Problem::new(
        Reason::CheckpointNotFound,
        format!("garbage of pipeline {name} is not collected while a checkpoint is lost: {}", found.message),
    );
    problem.metadata.clone_from(&found.metadata);
    problem.with("pipeline", name).with("checkpoint", commit.round).with("key", commit.key())
}

/// For the audit trail.
pub(super) fn found_because(commit: &CommitRef) -> String {
    format!("checkpoint {} ({}-{}) stands again as it was", commit.round, commit.generation, commit.seq)
}

pub(super) async fn found(connection: &mut Session, found: &Found) -> Result<bool, Fail> {
    let done = sqlx::query(concat!(
        "WITH found AS (
             UPDATE pipelines SET ",
        nothing_is_lost!(),
        " WHERE id = $1 AND generation = $2 AND lost_round_id = $3 AND lost_digest = $4 AND deleted_at IS NULL
             RETURNING id
         )
         INSERT INTO audit_events (pipeline_id, round_id, event, cause, actor, trace_id) SELECT id, $3, $5, $6, $7, $8 FROM found",
    ))
    .bind(found.id.uuid())
    .bind(found.generation.as_i64())
    .bind(found.commit.round.uuid())
    .bind(found.commit.digest.to_string())
    .bind(event::CHECKPOINT_FOUND)
    .bind(found_because(&found.commit))
    .bind(text(&found.caller.actor))
    .bind(&found.caller.trace_id)
    .execute(connection)
    .await
    .settling()?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn note(connection: &mut Session, note: &Note) -> Result<bool, Fail> {
    let statement = match note.difference {
        Difference::Behind => {
            "WITH noted AS (
                 UPDATE pipelines SET behind_at = clock_timestamp(), behind_problem = $3, version = version + 1, updated_at = clock_timestamp()
                 WHERE id = $1 AND generation = $2 AND behind_at IS NULL AND deleted_at IS NULL
                 RETURNING id
             )
             INSERT INTO audit_events (pipeline_id, event, cause, actor, trace_id) SELECT id, $4, $5, $6, $7 FROM noted"
        }
        Difference::Lost(_) => {
            "WITH noted AS (
                 UPDATE pipelines SET lost_at = clock_timestamp(), lost_problem = $3, lost_generation = $10, lost_seq = $11,
                                      lost_round_id = $8, lost_digest = $9, version = version + 1, updated_at = clock_timestamp()
                 WHERE id = $1 AND generation = $2
                   AND (last_round_id = $8 AND last_digest = $9
                        OR EXISTS (SELECT 1 FROM rounds WHERE rounds.id = $8 AND rounds.pipeline_id = $1 AND rounds.commit_digest = $9))
                   AND NOT EXISTS (SELECT 1 FROM accepted_losses WHERE accepted_losses.pipeline_id = $1 AND accepted_losses.lost_round_id = $8)
                   AND (lost_problem IS DISTINCT FROM $3 OR lost_round_id IS DISTINCT FROM $8 OR lost_digest IS DISTINCT FROM $9) AND deleted_at IS NULL
                 RETURNING id
             )
             INSERT INTO audit_events (pipeline_id, event, cause, actor, trace_id) SELECT id, $4, $5, $6, $7 FROM noted"
        }
    };
    let query = sqlx::query(statement)
        .bind(note.id.uuid())
        .bind(note.generation.as_i64())
        .bind(json(&note.problem)?)
        .bind(note.difference.event())
        .bind(text(&note.problem.message))
        .bind(text(&note.caller.actor))
        .bind(&note.caller.trace_id);
    let query = match &note.difference {
        Difference::Behind => query,
        Difference::Lost(commit) => query
            .bind(commit.round.uuid())
            .bind(commit.digest.to_string())
            .bind(commit.generation.as_i64())
            .bind(commit.seq.as_i64()),
    };
    let done = query.execute(connection).await.settling()?;
    Ok(done.rows_affected() == 1)
}
