//! An owner whose location was taken over becomes a standby of it: the way back. Its row keeps the generation and loses the fence, so that agents, which obey nothing older than
//! what they have seen, go on obeying it, and nothing takes it for an owner.

use lockstep_protocol::{
    id::PipelineId,
    problem::{Problem, Reason, Retryable},
};
use uuid::Uuid;

use super::{
    Caller, ClaimState, PipelineRow,
    audit::{self, Entry, event},
    ownership::refuse_active,
    pipelines::pipeline,
    refuse_behind,
    session::Session,
    sqlstate::Fail,
    standbys::Follow,
};

/// What is refused while a round of it is active, which was admitted to an owner.
pub(super) const WANTS: &str = "it can't become a standby";

/// Whether a start makes it a standby first. One whose activation has put a fence since is one already by its claim, and has to let go of that fence as well.
pub(super) fn becomes_standby(pipeline: &PipelineRow, follow: Follow) -> bool {
    let had = matches!(pipeline.claim, ClaimState::Owned | ClaimState::Standby);
    had && pipeline.fenced.is_some() && matches!(follow, Follow::From(_))
}

/// `LOCATION_OWNED`, with what it is instead and the way out.
pub fn is_no_standby(pipeline: &PipelineRow) -> Problem {
    let (name, location, generation) = (&pipeline.spec.name, &pipeline.spec.location, pipeline.generation);
    let what = match &pipeline.fenced {
        None => format!(
            "it owns {location} itself, in generation {generation}, and nobody has taken it over since; it can follow another pipeline that has \
             (`lockstep standby activate OTHER`), or another pipeline can follow it (`initial: standby`)"
        ),
        Some(fenced) => format!(
            "it owned {location} until generation {generation} ({}) and follows nothing; `lockstep standby start {name}` makes it one",
            fenced.message
        ),
    };
    Problem::new(Reason::LocationOwned, format!("pipeline {name} is no standby: {what}"))
        .with("pipeline", name)
        .with("location", location)
        .with("generation", generation)
}

/// Upkeep that was admitted to the owner writes into the location.
pub(super) fn upkeep_in_progress(pipeline: &PipelineRow, upkeep: Uuid, work: &str) -> Problem {
    let name = &pipeline.spec.name;
    Problem::new(
        Reason::RoundInProgress,
        format!(
            "pipeline {name}: {WANTS} while {work} {upkeep}, which was admitted when it owned {}, is under way: wait until that has ended",
            pipeline.spec.location
        ),
    )
    .with("pipeline", name)
    .with("upkeep", upkeep)
    .with("work", work)
    .retry(Retryable::Yes)
}

/// For the audit trail.
pub(super) fn because(pipeline: &PipelineRow) -> String {
    let by = pipeline.fenced.as_ref().map_or("", |fenced| fenced.message.as_str());
    format!(
        "follows {} from now on, which it owned until generation {}: {by}",
        pipeline.spec.location, pipeline.generation
    )
}

/// In the transaction of the start, which has locked the row.
pub(super) async fn become_standby(
    connection: &mut Session,
    before: &PipelineRow,
    caller: &Caller,
) -> Result<PipelineRow, Fail> {
    refuse_behind(before)?;
    refuse_active(connection, before, WANTS).await?;
    refuse_upkeep(connection, before).await?;
    let row = sqlx::query(
        "UPDATE pipelines SET claim = 'standby', fence_bytes = NULL, fenced_at = NULL, fenced_problem = NULL, version = version + 1,
                              updated_at = clock_timestamp()
         WHERE id = $1 AND version = $2 RETURNING *",
    )
    .bind(before.id.uuid())
    .bind(super::text::bigint(before.version))
    .fetch_one(&mut *connection)
    .await?;
    forget_owner(connection, before.id).await?;
    let cause = because(before);
    let entry = Entry {
        pipeline: before.id,
        round: None,
        event: event::PIPELINE_CLAIM,
        from: Some(before.claim.as_str()),
        to: Some(ClaimState::Standby.as_str()),
        cause: &cause,
    };
    audit::write(connection, caller, &entry).await?;
    pipeline(&row)
}

async fn refuse_upkeep(connection: &mut Session, pipeline: &PipelineRow) -> Result<(), Fail> {
    let open: Option<(Uuid, String)> =
        sqlx::query_as("SELECT id, kind FROM upkeep WHERE pipeline_id = $1 AND ended_at IS NULL ORDER BY id LIMIT 1")
            .bind(pipeline.id.uuid())
            .fetch_optional(connection)
            .await?;
    open.map_or(Ok(()), |(id, work)| Err(upkeep_in_progress(pipeline, id, &work).into()))
}

/// Hosts are not told any more that their engines may start; what it wanted to retire is the new owner's; what was seen when it was a standby before is long past.
async fn forget_owner(connection: &mut Session, pipeline: PipelineId) -> Result<(), Fail> {
    for statement in [
        "DELETE FROM ready_words WHERE pipeline_id = $1",
        "DELETE FROM retirements WHERE pipeline_id = $1",
        "UPDATE standbys SET sighting = '{}' WHERE pipeline_id = $1",
    ] {
        sqlx::query(statement).bind(pipeline.uuid()).execute(&mut *connection).await?;
    }
    Ok(())
}
