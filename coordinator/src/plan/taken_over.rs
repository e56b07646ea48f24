//! Whether a location is still the one that the database takes it for: whose fence is the newest there.

use lockstep_bucket::Lookup;
use lockstep_protocol::{
    fence::Successor,
    problem::{Problem, Reason},
};

use super::place::Place;
use crate::store::PipelineRow;

/// Fine: no fence follows the row's generation. `FENCED` if another pipeline has taken the location over since, `DATABASE_BEHIND` if this very one has and its row doesn't know
/// it, `TAKE_OVER_IN_PROGRESS` while that is not decided: a fence without a base decides nothing (F4).
pub async fn check_not_taken_over(place: &Place, row: &PipelineRow) -> Result<(), Problem> {
    let (location, generation) = (&row.spec.location, row.generation);
    let about = |reason, what: String| {
        Problem::new(reason, format!("{location} of pipeline {}: {what}", row.spec.name))
            .with("pipeline", &row.spec.name)
            .with("location", location)
            .with("generation", generation)
    };
    match place.successor(generation).await? {
        Successor::Absent => return Ok(()),
        Successor::FenceOnly => {
            let what =
                format!("generation {} has a fence but no base yet: a take-over is under way", generation.next());
            return Err(about(Reason::TakeOverInProgress, what));
        }
        Successor::Base(_) => {}
    }
    let owner = match lockstep_bucket::owner(place.bucket()).await {
        Lookup::Found(owner) => owner,
        Lookup::Absent => {
            let what = format!(
                "base {} stands and no fence does: somebody has deleted them; bring them back, for example from a version of the bucket",
                generation.next()
            );
            return Err(about(Reason::LocationUnsuitable, what));
        }
        Lookup::Unknown(problem) => return Err(problem),
    };
    let newer = owner.generation;
    if owner.pipeline == row.id {
        let what = format!(
            "generation {newer} is of this pipeline, the database knows {generation} only: run `lockstep resync {}`",
            row.spec.name
        );
        return Err(about(Reason::DatabaseBehind, what).with("newer_generation", newer));
    }
    let name = &owner.pipeline_name;
    let what = format!(
        "generation {newer} of pipeline {name} ({}) took it over from generation {generation}: nothing more will be admitted",
        owner.pipeline
    );
    Err(about(Reason::Fenced, what)
        .with("newer_generation", newer)
        .with("owner", owner.pipeline)
        .with("owner_name", name))
}
