//! Pushes that nobody asks for, past all faults: not before their time, and none of what is the newest commit already.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_coordinator::store::{Finding, RoundRecord, Trigger};
use lockstep_protocol::{
    id::LocalCheckpointId,
    round::{Kind, Phase},
};

use crate::world::World;

/// Half of the wait after a first failure: the other half is jitter.
const AFTER_A_FAILURE: Duration = Duration::from_millis(2_500);

/// What jitter leaves of the longest wait.
const AFTER_MANY: Duration = Duration::from_secs(150);

/// A look asks hosts for so long at most before it asks for its push.
const LOOK: Duration = Duration::from_secs(60);

pub(super) fn in_time(world: &World, rounds: &[RoundRecord]) -> Result<(), String> {
    let Some(interval) = world.push_interval else { return Ok(()) };
    let pushes: Vec<_> = rounds.iter().filter(|record| matches!(record.round.kind, Kind::Push(_))).collect();
    not_too_soon(world, &pushes, interval)?;
    for (at, push) in pushes.iter().enumerate().filter(|(_, push)| is_periodic(push)) {
        if world.scheduled_until.get().is_some_and(|until| push.created_at > until) {
            return Err(format!("schedule: push {} was admitted, and the interval is gone", push.round.id));
        }
        brings_something_new(world, push, &pushes[..at], rounds)?;
    }
    Ok(())
}

fn is_periodic(record: &RoundRecord) -> bool {
    record.trigger == Trigger::Periodic
}

/// An interval after the end of a push that was committed or cancelled, and longer after each failure. A replica that stands still in the middle of its look may be overtaken by
/// another one's, so seeds that have such are left out.
fn not_too_soon(world: &World, pushes: &[&RoundRecord], interval: Duration) -> Result<(), String> {
    if world.weather.counts().contains_key("replica stopped beyond its lease") {
        return Ok(());
    }
    let mut failures = 0_u32;
    for pair in pushes.windows(2) {
        let [before, push] = pair else { continue };
        let Some(ended) = before.ended_at.filter(|_| is_periodic(before) && is_periodic(push)) else {
            failures = 0;
            continue;
        };
        let least = if before.round.phase == Phase::Failed {
            failures += 1;
            AFTER_A_FAILURE.saturating_mul(2_u32.saturating_pow(failures - 1)).min(AFTER_MANY)
        } else {
            failures = 0;
            interval
        };
        let gap = (push.created_at - ended).to_std().unwrap_or_default();
        if gap < least {
            return Err(format!(
                "schedule: push {} began {gap:?} after {}, which is {} as number {failures}; {least:?} is the least",
                push.round.id, before.round.id, before.round.phase
            ));
        }
        // A look in between may have found nothing new, which ends the count.
        if gap >= interval {
            failures = 0;
        }
    }
    Ok(())
}

fn cut(record: &RoundRecord) -> Vec<Option<LocalCheckpointId>> {
    record.round.participants.iter().map(|participant| participant.local_checkpoint).collect()
}

/// None when the step hasn't moved. A pull that ended meanwhile may have brought the hosts back to it after they were asked.
fn brings_something_new(
    world: &World,
    push: &RoundRecord,
    before: &[&RoundRecord],
    rounds: &[RoundRecord],
) -> Result<(), String> {
    let ended_before = |record: &RoundRecord, at: DateTime<Utc>| record.ended_at.is_some_and(|ended| ended <= at);
    let known =
        |record: &&&RoundRecord| record.round.phase == Phase::Committed && ended_before(record, push.created_at);
    let Some(newest) = before.iter().rev().find(known) else { return Ok(()) };
    // What was found damaged is pushed again.
    let damaged = |found: &Finding| found.commit.round == newest.round.id && !found.problems.is_empty();
    if world.database.verifications().iter().any(|verification| damaged(&verification.finding)) {
        return Ok(());
    }
    let pulled = rounds.iter().any(|record| {
        record.round.phase == Phase::Installed
            && ended_before(record, push.created_at)
            && !ended_before(record, push.created_at - LOOK)
    });
    if push.round.phase == Phase::Committed && cut(push) == cut(newest) && !pulled {
        return Err(format!("schedule: push {} is of the very checkpoints of {}", push.round.id, newest.round.id));
    }
    Ok(())
}
