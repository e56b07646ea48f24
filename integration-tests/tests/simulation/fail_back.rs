//! The way back, in a share of the seeds in which two pipelines want one location: whoever was taken over becomes a standby in its generation (ADR 31), follows the other and is
//! activated again, which fences the other in turn.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use lockstep_coordinator::{
    api::{Api, ApiOptions},
    store::{AuditRow, ClaimState, RoundRecord, StoreError, memory::Gate},
};
use lockstep_proto::v1::{self, coordinator_server::Coordinator as _};
use lockstep_protocol::{
    id::{Generation, LocalCheckpointId, RoundId},
    problem::Reason,
    takeover::{Phase, Purpose},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    agent::Agent,
    bucket::FarBuckets,
    check::{self, Fences},
    gate::ReplicaGate,
    rival::Rival,
    wire,
    world::World,
};

/// Looks at what has to come about in calm weather, half a second apart.
const SOON: u32 = 120;

pub(crate) struct WayBack {
    home: Rc<World>,
    rival: Rc<Rival>,
    rng: RefCell<StdRng>,
}

/// What a pipeline is to the location, by bucket and row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stands {
    Owner,
    /// It was the owner, and another one is.
    TakenOver,
    /// A standby without a fence.
    Follows,
    /// In the middle of something, or fenced off for it by an activation that has ended.
    Between,
}

pub(crate) fn stands(world: &World) -> Stands {
    let Some(row) = world.row() else { return Stands::Between };
    let owner = Fences::of(&world.buckets).owner() == Some(row.id);
    match row.claim {
        _ if world.is_taking_over() => Stands::Between,
        ClaimState::Standby if !row.holds_fence() => Stands::Follows,
        ClaimState::Owned | ClaimState::Standby if !owner => Stands::TakenOver,
        ClaimState::Owned if row.fenced.is_none() => Stands::Owner,
        _ => Stands::Between,
    }
}

/// The API as somebody at the first replica would use it.
fn api(world: &World) -> Api {
    let gate: Arc<dyn Gate> = Arc::new(ReplicaGate::new());
    let agents = wire::pool(&world.agents, &gate, &world.weather);
    let connector = FarBuckets { buckets: world.buckets.clone(), gate, weather: world.weather.clone() };
    let stopping = CancellationToken::new();
    Api::new(world.store().clone(), Arc::new(agents), Arc::new(connector), ApiOptions::default(), stopping)
}

/// It shall follow whoever has the location now. The answer may be lost, and it follows all the same.
async fn start_standby(world: &World) {
    let Some(row) = world.row() else { return };
    let request = v1::StartStandbyRequest { pipeline: row.spec.name.to_string(), ..Default::default() };
    let answer = api(world).start_standby(tonic::Request::new(request)).await;
    let refused = answer.err().map(|status| status.message().to_owned());
    info!(pipeline = %row.spec.name, refused, "asked to become a standby");
}

impl WayBack {
    /// Drawn apart, so that all other histories are as they were.
    pub(crate) fn of(home: &Rc<World>, rival: Option<&Rc<Rival>>, seed: u64) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(43).wrapping_add(37));
        let goes = rng.random_bool(0.8);
        let rival = rival.filter(|_| goes)?;
        Some(Self { home: Rc::clone(home), rival: Rc::clone(rival), rng: RefCell::new(rng) })
    }

    fn draw(&self, most: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..most)
    }

    fn only_follows(&self, world: &World) -> bool {
        self.rival.only_follows && std::ptr::eq(world, &self.rival.world)
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        let pause = || Duration::from_millis(self.draw(5_000));
        while over.run_until_cancelled(tokio::time::sleep(pause())).await.is_some() {
            if self.rival.is_left_alone.get() {
                continue;
            }
            let world = if self.draw(3) == 0 { &self.rival.world } else { self.home.as_ref() };
            match stands(world) {
                Stands::TakenOver if self.draw(3) > 0 => start_standby(world).await,
                Stands::Follows if self.draw(2) == 0 && !self.only_follows(world) => {
                    world.take_over(Purpose::Activate).await;
                }
                _ => {}
            }
        }
    }

    /// L2 of the way back, once nothing fails any more: who was taken over may follow, its hosts then have what is newest and nothing else, and its activation succeeds. True: it
    /// owns the location now. What is damaged may keep an activation from its end (ADR 27), and then nothing is asked for.
    pub(crate) async fn brings_home(&self) -> Result<bool, String> {
        let world = &self.home;
        if world.verify_bytes_per_day.is_some() {
            return Ok(false);
        }
        follows_again(world).await?;
        is_no_owner(world).await?;
        has_the_newest_and_waits(world).await?;
        world.take_over(Purpose::Activate).await;
        for _ in 0..SOON {
            if stands(world) == Stands::Owner {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(format!("L2: an activation of who had owned the location: {:#?}", world.database.take_overs()))
    }

    /// L2: the other one, which has lost the location by that, may follow in turn.
    pub(crate) async fn other_follows(&self) -> Result<(), String> {
        match stands(&self.rival.world) {
            Stands::TakenOver => follows_again(&self.rival.world).await,
            _ => Ok(()),
        }
    }
}

async fn follows_again(world: &World) -> Result<(), String> {
    for _ in 0..SOON {
        match stands(world) {
            Stands::Follows => return Ok(()),
            Stands::TakenOver => start_standby(world).await,
            Stands::Owner | Stands::Between => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("L2: {} was taken over and can't follow: {:#?}", world.name, world.row()))
}

/// A standby admits no push, in whatever generation it owned the location.
async fn is_no_owner(world: &World) -> Result<(), String> {
    match world.push(false).await {
        Err(StoreError::Problem(problem)) if problem.reason == Reason::NotOwner => Ok(()),
        other => Err(format!("F4: a push of {}, which follows, was answered with {other:?}", world.name)),
    }
}

/// ADR 31: nothing is left of the branch that it was on, and no host goes by a word that it was told when it was the owner.
async fn has_the_newest_and_waits(world: &World) -> Result<(), String> {
    let mut differ = String::new();
    for _ in 0..SOON {
        let wanted = check::newest_parts(world);
        let disks = world.agents.iter().map(|agent| agent.disk().iter().map(|local| local.id).collect::<Vec<_>>());
        let (disks, stale): (Vec<_>, Vec<_>) = (disks.collect(), told_as_owner(world));
        let same = |wanted: &[LocalCheckpointId]| disks.iter().zip(wanted).all(|(disk, id)| disk == &[*id]);
        // Where nothing was ever pushed there is nothing to have.
        if wanted.as_ref().is_some_and(|wanted| wanted.is_empty() || stale.is_empty() && same(wanted)) {
            return Ok(());
        }
        differ = format!("{disks:?} on its hosts, told of {stale:?}; {wanted:?} is newest");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let rounds = world.database.rounds();
    Err(format!("L2: {}, which follows again, has {differ}: {:#?}", world.name, rounds.last()))
}

/// Pulls of before it became a standby by which hosts go still.
fn told_as_owner(world: &World) -> Vec<RoundId> {
    let became = world.database.audit().into_iter().filter(becomes_standby).map(|row| row.at).max();
    let rounds = world.database.rounds();
    let before = |told: &RoundId| {
        let since = |record: &RoundRecord| record.round.id == *told && Some(record.created_at) > became;
        !rounds.iter().any(since)
    };
    world.agents.iter().filter_map(Agent::told).filter(before).collect()
}

fn becomes_standby(row: &AuditRow) -> bool {
    row.event == "pipeline_claim" && row.to.as_deref() == Some("standby")
}

/// Counts how far the ways back have come.
pub(crate) fn count(world: &World) {
    let (fences, weather) = (Fences::of(&world.buckets), &world.weather);
    for _ in world.database.audit().into_iter().filter(becomes_standby) {
        weather.count("owner became a standby");
    }
    for take_over in world.database.take_overs() {
        let generation = take_over.generation().filter(|_| take_over.holds > Generation::NONE);
        let Some(before) = generation.and_then(|generation| fences.before(generation)) else { continue };
        let back = take_over.purpose == Purpose::Activate && take_over.phase == Phase::Done;
        if back && before.pipeline != take_over.pipeline {
            weather.count("failed back");
            if take_over.base.and_then(|base| base.newest).is_some_and(|newest| newest.generation == before.generation)
            {
                weather.count("failed back to what the other one pushed");
            }
        }
    }
}
