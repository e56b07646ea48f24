//! What an activation finds before it puts its fence: whether the newest checkpoint is whole, and what is said where the bucket has lost what it needs. Reads only: dispatch goes on
//! from there, and a dry run says it.

use lockstep_bucket::{Access, Checkpoint, Connector, Entry};
use lockstep_protocol::{
    location::Location,
    problem::{Problem, Reason, Retryable},
};

/// `latest` passes over what is marked damaged, and the base doesn't (F1): an activation that goes by the one would fail at the other, with the location fenced.
pub async fn newest_is_whole(connector: &dyn Connector, location: &Location) -> Result<(), Problem> {
    let bucket = connector.connect(location).await?;
    let newest = lockstep_bucket::list_checkpoints(bucket.as_ref(), Access::Own, 1).await?;
    match newest.into_iter().next() {
        Some(Entry::Unreadable(unreadable)) => Err(unreadable.problem),
        Some(Entry::Whole(newest)) if newest.damaged => Err(newest_is_damaged(location, &newest)),
        _ => Ok(()),
    }
}

fn newest_is_damaged(location: &Location, newest: &Checkpoint) -> Problem {
    let Checkpoint { commit, document, .. } = newest;
    Problem::new(
        Reason::CheckpointDamaged,
        format!(
            "the newest checkpoint of {location}, {} of step {}, which pipeline {} pushed, is marked damaged",
            commit.round, document.step, document.pipeline_name
        ),
    )
    .with("checkpoint", commit.round)
    .with("step", document.step)
    .with("owner", &document.pipeline_name)
}

/// Neither waiting nor another try helps: an operator has to choose.
pub fn with_way_out(
    (name, location): (&impl std::fmt::Display, &Location),
    reason: Reason,
    what: &str,
    cause: &Problem,
) -> Problem {
    let mut problem = Problem::new(
        reason,
        format!(
            "{what}. Restore what is damaged and activate again, or go on from an older checkpoint and give up what came after it: \
             `lockstep checkpoint list {name}`, then `lockstep standby activate {name} --checkpoint UUID`"
        ),
    );
    problem.metadata.clone_from(&cause.metadata);
    problem.with("pipeline", name).with("location", location).retry(Retryable::AfterFix)
}
