//! A checkpoint that the location has damaged and the hosts hold whole: following `latest`, which passes over it, would replace what may be its last copy by an older one.

use lockstep_bucket::{Checkpoint, DecisionFound};
use lockstep_protocol::{
    commit::DecisionObject,
    problem::{Problem, Reason, Retryable},
    selection::LocalCheckpoint,
    standby::{Point, is_held},
};

use super::parts;
use crate::{
    plan::place::{Base, Place},
    store::PipelineRow,
};

/// Why nothing is pulled; none: the hosts hold nothing newer of this place, or it was retired there.
pub(super) async fn kept(
    row: &PipelineRow,
    newest: Option<&(Checkpoint, Place)>,
    held: Option<Point>,
    disks: &[Vec<LocalCheckpoint>],
) -> Result<Option<Problem>, Problem> {
    let (Some((newest, place)), Some(held)) = (newest, held) else { return Ok(None) };
    if !held.commit.is_after(&newest.commit) {
        return Ok(None);
    }
    // Places are compared within one location only: another one has other bytes there, or nothing.
    let document = match place.decision(held.commit.generation, held.commit.seq).await? {
        Some(DecisionFound::Decision(DecisionObject::Commit(document), digest)) if digest == held.commit.digest => {
            document
        }
        // What the hosts hold can't be compared with it any more, and may be the last copy all the same.
        Some(DecisionFound::Unreadable(_, problem)) => return Ok(Some(unreadable(row, &held, newest, &problem))),
        _ => return Ok(None),
    };
    let checkpoint = Checkpoint { commit: held.commit, document: *document, damaged: true };
    if !is_held(parts(&checkpoint), disks) {
        return Ok(None);
    }
    match place.base(&held.commit).await? {
        Base::Unusable(_) => Ok(Some(damaged(row, place, &checkpoint, newest))),
        Base::Usable(_) => Ok(None),
    }
}

fn unreadable(row: &PipelineRow, held: &Point, newest: &Checkpoint, why: &Problem) -> Problem {
    let (name, mine, whole) = (&row.spec.name, held.commit.round, newest.commit.round);
    let mut problem = why.clone();
    problem.message = format!(
        "the hosts of standby {name} hold checkpoint {mine}, of which the commit document can't be read any more: {}; the newest whole one there, {whole}, is of step {}: they \
         keep what they have, until the owner's next push is newer. To go back to the older one: lockstep standby start {name} --checkpoint {whole}",
        why.message, newest.document.step
    );
    problem.with("pipeline", name).with("checkpoint", mine).with("newest", whole).retry(Retryable::AfterFix)
}

fn damaged(row: &PipelineRow, place: &Place, held: &Checkpoint, newest: &Checkpoint) -> Problem {
    // Which may be the read location.
    let (name, location) = (&row.spec.name, place.bucket().location());
    let (mine, whole) = (held.commit.round, newest.commit.round);
    Problem::new(
        Reason::CheckpointDamaged,
        format!(
            "the hosts of standby {name} hold checkpoint {mine} of step {}, which is marked damaged in {location}; the newest whole one there, {whole}, is of step {}: \
             they keep what they have, until the owner's next push is newer. To go back to the older one: lockstep standby start {name} --checkpoint {whole}",
            held.document.step, newest.document.step
        ),
    )
    .with("pipeline", name)
    .with("checkpoint", mine)
    .with("newest", whole)
    .with("location", location)
    .retry(Retryable::AfterFix)
}
