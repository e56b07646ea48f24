//! Pushes that nobody asks for: in a share of the seeds the pipelines of the location have a `push_interval`, beside everything else.

use std::time::Duration;

use lockstep_coordinator::store::Trigger;
use lockstep_protocol::{
    round::{Kind, Phase},
    spec::PipelineSpec,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tracing::info;

use crate::world::{World, alice};

/// The longest back-off after failures is 5 min; a look and the round itself come on top.
const SOON_ENOUGH: u32 = 700;

/// Drawn apart, so that all other histories are as they were.
pub(crate) fn interval_of(seed: u64) -> Option<Duration> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(19).wrapping_add(13));
    let interval = Duration::from_secs(rng.random_range(1..12));
    rng.random_bool(0.25).then_some(interval)
}

/// L2 of a schedule: in calm weather what engines make is pushed, and nobody has asked. Afterwards it is switched off, and nothing is pushed by itself any more.
pub(crate) async fn pushes_by_itself(world: &World) -> Result<(), String> {
    if world.push_interval.is_none() {
        return Ok(());
    }
    let step = world.checkpoint();
    let pushed = || {
        world.database.rounds().into_iter().any(|record| {
            let of_step =
                matches!(&record.round.kind, Kind::Push(push) if push.step.is_some_and(|at| at.get() == step));
            of_step && record.trigger == Trigger::Periodic && record.round.phase == Phase::Committed
        })
    };
    for _ in 0..SOON_ENOUGH {
        if pushed() {
            world.weather.count("pushed by the schedule to the end");
            return switch_off(world).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let row = world.row().map(|row| row.id);
    Err(format!("L2: step {step} of pipeline {row:?} was not pushed by itself: {:#?}", world.database.rounds().pop()))
}

async fn switch_off(world: &World) -> Result<(), String> {
    let Some(row) = world.row() else { return Ok(()) };
    let spec = PipelineSpec { push_interval: None, ..row.spec };
    let updated = world.store().update_pipeline(&row.id.into(), spec, None, &alice()).await;
    updated.map_err(|error| format!("L2: the schedule was not switched off: {error}"))?;
    // A look that began before may still ask for its push.
    tokio::time::sleep(Duration::from_secs(5)).await;
    info!("no more periodic pushes");
    world.scheduled_until.set(Some(world.time()));
    Ok(())
}
