//! Who was taken over and comes back, in words of its own: a standby pushes nothing, and what is pushed after its activation goes on from what that has pulled (ADR 31).

use std::collections::BTreeSet;

use lockstep_coordinator::store::{ClaimState, PipelineRow, RoundRecord};
use lockstep_protocol::{
    id::{Generation, LocalCheckpointId},
    round::{self, Kind, Source},
    takeover::{Phase, Purpose, TakeOver, exact_base},
};

use super::{Fences, Place, damage::committed_at};
use crate::{log, world::World};

/// A pipeline that can't push any more in its generation, and what it had admitted in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fenced {
    generation: Generation,
    rounds: usize,
    pushes: usize,
    follows: bool,
}

fn of(row: &PipelineRow, rounds: &[RoundRecord]) -> Option<Fenced> {
    let follows = row.claim == ClaimState::Standby && !row.holds_fence() && row.generation > Generation::NONE;
    let admitted = || rounds.iter().filter(|record| record.round.generation == row.generation);
    let pushes = admitted().filter(|record| matches!(record.round.kind, Kind::Push(_))).count();
    let now = Fenced { generation: row.generation, rounds: admitted().count(), pushes, follows };
    (follows || row.fenced.is_some()).then_some(now)
}

/// F4: who is fenced stays so and admits nothing in that generation, but that it may follow: then it pulls.
pub(super) fn stays_fenced(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    let Some(row) = world.row() else { return Ok(()) };
    let now = of(&row, rounds);
    let Some(before) = world.fenced.replace(now).filter(|before| before.generation == row.generation) else {
        return Ok(());
    };
    let holds = now.is_some_and(|now| {
        let same = if now.follows { now.pushes == before.pushes } else { now.rounds == before.rounds };
        same && now.follows >= before.follows
    });
    if holds { Ok(()) } else { Err(format!("F4: {} was {before:?}, now it is {now:?}", row.spec.name)) }
}

/// Whether what was pushed in a generation that an activation has begun goes on from the checkpoint that it has pulled: no engine made it before its host had that.
pub(super) fn goes_on_from_its_base(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    let done = |one: &&TakeOver| one.purpose == Purpose::Activate && one.phase == Phase::Done;
    for take_over in world.database.take_overs().iter().filter(done) {
        let (Some(generation), Some(base)) = (take_over.generation(), exact_base(take_over)) else { continue };
        let of_generation = || rounds.iter().map(|record| &record.round).filter(|round| round.generation == generation);
        let from_bucket = |round: &&round::Round| match &round.kind {
            Kind::Pull(pull) => pull.resolved.as_ref().is_some_and(|resolved| resolved.source == Source::Location),
            Kind::Push(_) => false,
        };
        // Some may be older, and they are of the location all the same.
        let pulled: BTreeSet<LocalCheckpointId> = of_generation()
            .filter(from_bucket)
            .flat_map(|round| round.participants.iter().filter_map(|participant| participant.local_checkpoint))
            .collect();
        let exact = |round: &&round::Round| match &round.kind {
            Kind::Pull(pull) if round.phase == round::Phase::Installed => {
                pull.resolved.as_ref().and_then(|resolved| resolved.commit) == Some(base)
            }
            _ => false,
        };
        let Some(first) = rounds.iter().find(|record| record.round.generation == generation && exact(&&record.round))
        else {
            continue;
        };
        let since = (first.created_at - (world.time() - log::elapsed())).to_std().unwrap_or_default();
        for push in of_generation().filter(|round| round.phase == round::Phase::Committed) {
            let Kind::Push(cut) = &push.kind else { continue };
            for ((part, installed), agent) in push.participants.iter().zip(&first.round.participants).zip(&world.agents)
            {
                let at = installed.incarnation.zip(installed.local_checkpoint);
                let at = at.and_then(|(incarnation, id)| agent.installed_at(incarnation, id, since));
                let of_engine = part.local_checkpoint.filter(|id| !pulled.contains(id));
                let made = of_engine.and_then(|_| world.made(cut.step?.get()));
                if let (Some(made), Some(at)) = (made, at)
                    && made < at
                {
                    return Err(format!(
                        "S12: push {} is of a checkpoint that host {} made at {made:?}, activation {} brought it {} at {at:?}",
                        push.id, part.host_idx, take_over.id, base.round
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The newest commit, if nothing keeps it from being known.
pub(crate) fn newest(world: &World) -> Option<Option<Place>> {
    Fences::of(&world.buckets).latest(&world.buckets)
}

/// What each host has of the newest commit; empty: there is none; none: nobody knows.
pub(crate) fn newest_parts(world: &World) -> Option<Vec<LocalCheckpointId>> {
    let Some(newest) = newest(world)? else { return Some(Vec::new()) };
    let document = committed_at(world, newest)?;
    Some(document.parts.iter().map(|part| part.local_checkpoint).collect())
}
