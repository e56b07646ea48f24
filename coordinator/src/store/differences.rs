//! Where a pipeline's bucket and this database differ: the database is behind, or the bucket has lost what it acknowledged.

use lockstep_protocol::{
    id::{Generation, PipelineId},
    problem::{Problem, Reason},
};

use super::{
    Caller, Change, PipelineRow, Store, StoreError,
    audit::event,
    changes::Reach,
    session::Session,
    sqlstate::{Fail, Settling},
    text::{json, text},
};

/// What differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The bucket holds what this database doesn't know: nothing is admitted and nothing collected until a take-over.
    Behind,
    /// The database knows as committed what the bucket has lost: shown, and nothing else.
    Lost,
}

#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) id: PipelineId,
    pub(super) generation: Generation,
    pub(super) difference: Difference,
    pub(super) problem: Problem,
    pub(super) caller: Caller,
}

impl Store {
    /// Notes that bucket and database differ, for everybody who looks at the pipeline. False: it is noted already, or the pipeline is in another generation or gone.
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
}

impl Difference {
    pub(super) const fn event(self) -> &'static str {
        match self {
            Self::Behind => event::PIPELINE_BEHIND,
            Self::Lost => event::CHECKPOINT_LOST,
        }
    }
}

/// `DATABASE_BEHIND` with the way out: what everything that would admit or collect is refused with.
pub fn refuse_behind(row: &PipelineRow) -> Result<(), Problem> {
    let Some(found) = &row.behind else { return Ok(()) };
    let name = &row.spec.name;
    let mut problem = Problem::new(
        Reason::DatabaseBehind,
        format!(
            "the database is behind the bucket of pipeline {name}: {}; run `lockstep resync {name}` (with --dry-run first to see what it does)",
            found.message
        ),
    );
    problem.metadata.clone_from(&found.metadata);
    Err(problem.with("pipeline", name).with("generation", row.generation))
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
        Difference::Lost => {
            "WITH noted AS (
                 UPDATE pipelines SET lost_at = clock_timestamp(), lost_problem = $3, version = version + 1, updated_at = clock_timestamp()
                 WHERE id = $1 AND generation = $2 AND lost_problem IS DISTINCT FROM $3 AND deleted_at IS NULL
                 RETURNING id
             )
             INSERT INTO audit_events (pipeline_id, event, cause, actor, trace_id) SELECT id, $4, $5, $6, $7 FROM noted"
        }
    };
    let done = sqlx::query(statement)
        .bind(note.id.uuid())
        .bind(note.generation.as_i64())
        .bind(json(&note.problem)?)
        .bind(note.difference.event())
        .bind(text(&note.problem.message))
        .bind(text(&note.caller.actor))
        .bind(&note.caller.trace_id)
        .execute(connection)
        .await
        .settling()?;
    Ok(done.rows_affected() == 1)
}
