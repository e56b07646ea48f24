//! What a lost database had told, past all faults: what it called committed counts and is known again after the resync, and what it called failed never counts (S5, S15).

use lockstep_coordinator::store::ClaimState;
use lockstep_protocol::{
    commit::CommitRef,
    id::RoundId,
    round::{Kind, Phase, Round},
};

use super::{
    Fences,
    damage::{committed_at, document},
    garbage::Retired,
};
use crate::{restore::is_behind, world::World};

/// Whether a round is one of those that the lost database knew.
pub(super) fn is_of_before(world: &World, round: RoundId) -> bool {
    world.lost_rounds.borrow().iter().any(|record| record.round.id == round)
}

pub(super) fn nothing_is_forgotten(world: &World, fences: &Fences) -> Result<(), String> {
    let lost = world.lost_rounds.borrow();
    if lost.is_empty() {
        return Ok(());
    }
    let resynced = world.row().is_some_and(|row| row.claim == ClaimState::Owned) && !is_behind(world);
    let known: Vec<_> = world.database.rounds().into_iter().map(|record| record.round).collect();
    for round in lost.iter().map(|record| &record.round) {
        let Kind::Push(push) = &round.kind else { continue };
        let counts = fences.counts((round.generation, push.seq));
        match (round.phase, push.committed) {
            (Phase::Committed, Some(_)) if !counts => {
                return Err(format!(
                    "S15: the lost database told that {} is committed, and it doesn't count",
                    round.id
                ));
            }
            (Phase::Committed, Some(commit)) => stands_and_is_known(world, fences, (round, &commit), resynced, &known)?,
            (Phase::Failed | Phase::Cancelled, _) => {
                let place = (round.generation, push.seq);
                if counts && committed_at(world, place).is_some_and(|found| found.round == round.id) {
                    let phase = round.phase;
                    return Err(format!("S5: the lost database told that {} is {phase}, and it counts", round.id));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn stands_and_is_known(
    world: &World,
    fences: &Fences,
    (round, commit): (&Round, &CommitRef),
    resynced: bool,
    known: &[Round],
) -> Result<(), String> {
    if Retired::of(&world.buckets, fences, (commit.generation, commit.seq)) != Retired::No {
        return Ok(());
    }
    if document(world, commit).is_none() {
        return Err(format!("S4: the lost database told that {} is committed, and no commit stands", round.id));
    }
    let again = known.iter().any(|now| now.id == round.id && now.phase == Phase::Committed);
    // One whose number the restored database has given to another round stays unknown to it (ADR 21).
    let given = known.iter().any(|now| now.round_no == round.round_no && now.id != round.id);
    if resynced && !again && !given {
        return Err(format!("resync: round {} was committed, and isn't known again", round.id));
    }
    Ok(())
}
