//! Where a pull's bytes come from, in words of its own: one commit for all hosts, and another one only where its owner has retired the first (G5).

use lockstep_coordinator::store::RoundRecord;
use lockstep_protocol::{
    key::Key,
    round::{Kind, Phase, Source},
    spec::PullSelector,
};

use super::{damage::document, object};
use crate::world::World;

pub(super) fn is_one(world: &World, record: &RoundRecord) -> Result<(), String> {
    let round = &record.round;
    let Kind::Pull(pull) = &round.kind else { return Ok(()) };
    for commit in &pull.retired {
        let key = Key::Retired(commit.generation, commit.seq).to_string();
        if object(&world.buckets, &key).is_none() {
            return Err(format!("G5: pull {} was resolved anew, and {key} does not stand", round.id));
        }
        if matches!(pull.request.selector, PullSelector::Checkpoint(_)) {
            return Err(format!("G5: pull {} asked for one checkpoint and was resolved anew", round.id));
        }
    }
    let Some(resolved) = pull.resolved.as_ref().filter(|resolved| resolved.source == Source::Location) else {
        return Ok(());
    };
    let Some(commit) = resolved.commit.filter(|_| round.phase == Phase::Installed) else { return Ok(()) };
    if pull.retired.contains(&commit) {
        return Err(format!(
            "G5: pull {} has installed {}, which was retired while it was pulled",
            round.id, commit.round
        ));
    }
    // It may be swept by now.
    let Some(document) = document(world, &commit) else { return Ok(()) };
    let wanted: Vec<_> = document.parts.iter().map(|part| Some(part.local_checkpoint)).collect();
    let installed: Vec<_> = round.participants.iter().map(|participant| participant.local_checkpoint).collect();
    if installed == wanted {
        return Ok(());
    }
    Err(format!("S12: pull {} has installed {installed:?}, its source {} is of {wanted:?}", round.id, commit.round))
}
