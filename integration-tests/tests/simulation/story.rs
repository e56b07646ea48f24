//! One run: users ask for rounds, everything fails, then it stops failing, and all must end well.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use lockstep_bucket::{
    Operation,
    memory::fault::{Fault, FaultRule},
};
use lockstep_coordinator::{
    chance,
    store::{Admission, AdmitPull, AdmitPush, PipelineRow, RoundRecord, StoreError, Trigger},
};
use lockstep_protocol::{
    commit::CommitRef,
    id::{RequestId, RoundId},
    round::{CancelRequest, Kind, PullRequest, RetryPolicy, WantedCut},
    spec::PullSelector,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    check,
    damage::{self, Decay},
    fail_back::{self, WayBack},
    log,
    pins::Keeper,
    restore::{self, Disaster},
    retirer::{self, Retirer},
    rival::Rival,
    schedule,
    told::Told,
    weather::LATEST,
    world::{Chances, Garbage, World, alice},
};

mod ending;

/// L1: every round is terminal this long after the last fault.
const L1: Duration = Duration::from_secs(60);

/// Plays a seed; an error is what was violated.
pub(crate) fn play(seed: u64) -> Result<Told, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    chance::seed(Some(seed));
    let told = runtime.block_on(async {
        log::begin(log::Clock::Since(Instant::now()));
        let story = Box::pin(Story::begin(seed)).await;
        Box::pin(story.run()).await
    });
    chance::seed(None);
    told
}

/// In some seeds what matters most fails most: the create-only PUT of a decision.
fn trouble_the_decision(world: &World, rng: &mut StdRng) {
    const FAULTS: [Fault; 5] =
        [Fault::LoseAnswer, Fault::LandLate, Fault::Duplicate, Fault::Conflict, Fault::FailBefore];
    if rng.random_bool(0.5) {
        for _ in 0..rng.random_range(1..4) {
            let fault = FAULTS[rng.random_range(0..FAULTS.len())];
            let rule = FaultRule::new(fault).operation(Operation::Create).key("/commits/");
            world.buckets.inject(rule.skip(rng.random_range(0..3)).times(rng.random_range(1..4)));
        }
    }
}

/// In a share of the seeds another pipeline wants the location. Drawn apart, so that all other histories are as they were.
pub(crate) fn is_rivalled(seed: u64) -> bool {
    StdRng::seed_from_u64(seed.wrapping_mul(11).wrapping_add(5)).random_bool(0.35)
}

impl Garbage {
    /// In a share of the seeds, drawn apart as well.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(13).wrapping_add(7));
        let mut seconds = |range: std::ops::Range<u64>| Duration::from_secs(rng.random_range(range));
        let (min_age, grace, every) = (seconds(1..6), seconds(1..6), seconds(3..12));
        let min_count = rng.random_range(0..3);
        rng.random_bool(0.4).then_some(Self { min_count, min_age, grace, every })
    }
}

/// Where garbage is collected its tombstones fail most in some of the seeds.
fn trouble_the_tombstones(world: &World, seed: u64) {
    const FAULTS: [Fault; 4] = [Fault::LandLate, Fault::LoseAnswer, Fault::Duplicate, Fault::FailBefore];
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(17).wrapping_add(11));
    if world.garbage.is_none() {
        return;
    }
    for _ in 0..rng.random_range(0..3) {
        let rule =
            FaultRule::new(FAULTS[rng.random_range(0..FAULTS.len())]).operation(Operation::Create).key("/retired/");
        world.buckets.inject(rule.skip(rng.random_range(0..3)).times(rng.random_range(1..4)));
    }
}

fn still_active(record: &RoundRecord) -> String {
    let round = &record.round;
    format!("L1: round {} is still {} a minute after the last fault\n{round:#?}", round.id, round.phase)
}

struct Story {
    world: Rc<World>,
    rival: Option<Rc<Rival>>,
    way_back: Option<WayBack>,
    retirer: Option<Retirer>,
    keeper: Option<Keeper>,
    decay: Option<Decay>,
    disaster: Option<Disaster>,
    rng: StdRng,
    pipeline: PipelineRow,
    /// What each request id was answered with (S14).
    requests: BTreeMap<RequestId, RoundId>,
}

impl Story {
    async fn begin(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let chance = |rng: &mut StdRng, most: f64| if rng.random_bool(0.7) { rng.random_range(0.0..most) } else { 0.0 };
        let chances =
            Chances { database: chance(&mut rng, 0.12), bucket: chance(&mut rng, 0.2), wire: chance(&mut rng, 0.2) };
        let hosts = *[0, 2, 3].get(rng.random_range(0..3_usize)).unwrap();
        info!(seed, hosts, ?chances, "begins");
        let world = Rc::new(
            World::new(seed, hosts, chances)
                .collecting(Garbage::of(seed))
                .scheduled(schedule::interval_of(seed))
                .verified(damage::budget_of(seed)),
        );
        world.start_replica();
        world.start_replica();
        let pipeline = world.create_pipeline().await;
        world.database.random_faults(seed.wrapping_mul(3).wrapping_add(2), chances.database);
        world.buckets.random_faults(seed.wrapping_mul(5).wrapping_add(3), chances.bucket);
        trouble_the_decision(&world, &mut rng);
        trouble_the_tombstones(&world, seed);
        let rival =
            if is_rivalled(seed) { Some(Rc::new(Rival::begin(Rc::clone(&world), seed, chances).await)) } else { None };
        let way_back = WayBack::of(&world, rival.as_ref(), seed);
        let retirer = Retirer::of(&world, rival.as_ref(), seed);
        let (keeper, decay) = (Keeper::of(&world, seed), Decay::of(&world, seed));
        let disaster = Disaster::of(&world, seed);
        world.checkpoint();
        Self { world, rival, way_back, retirer, keeper, decay, disaster, rng, pipeline, requests: BTreeMap::new() }
    }

    async fn run(mut self) -> Result<Told, String> {
        let begun = Instant::now();
        let (over, calm) = (CancellationToken::new(), CancellationToken::new());
        let late = World::land_late_writes(self.world.buckets.clone(), self.world.weather.clone(), calm.clone());
        let late = tokio::spawn(late);
        let (rival, keeper) = (self.rival.clone(), self.keeper.take());
        let (decay, disaster) = (self.decay.take(), self.disaster.take());
        let life = async {
            if let Some(rival) = &rival {
                rival.live(&over).await;
            }
        };
        let (way_back, way) = (self.way_back.take(), &over);
        let going = async move {
            if let Some(way_back) = &way_back {
                way_back.live(way).await;
            }
            way_back
        };
        let retirer = self.retirer.take();
        let retiring = async {
            if let Some(retirer) = &retirer {
                retirer.live(&over).await;
            }
        };
        let keeping = async {
            if let Some(keeper) = &keeper {
                keeper.live(&over).await;
            }
        };
        let decaying = async {
            if let Some(decay) = &decay {
                decay.live(&over).await;
            }
        };
        let striking = async {
            if let Some(disaster) = &disaster {
                disaster.strike(&over).await;
            }
        };
        let trouble = async {
            let outcome = self.trouble().await;
            over.cancel();
            outcome
        };
        let (trouble, way_back, ..) = tokio::join!(trouble, going, retiring, life, keeping, decaying, striking);
        trouble?;
        self.way_back = way_back;
        self.calm_down();
        calm.cancel();
        late.await.unwrap();
        // What is late is a fault until it has arrived.
        let last_fault = Instant::now();
        restore::asks(&self.world).await;
        self.until_idle(last_fault + Duration::from_millis(LATEST) + L1, 250).await?;
        let recovery = last_fault.elapsed();
        info!(?recovery, "every round is terminal");
        tokio::time::sleep(Duration::from_millis(LATEST)).await;
        restore::is_resynced(&self.world).await?;
        self.owns_its_location().await?;
        damage::finds_what_is_damaged(&self.world).await?;
        schedule::pushes_by_itself(&self.world).await?;
        self.until_idle(Instant::now() + L1, 50).await?;
        self.ends_well().await?;
        self.leaves_no_orphans().await?;
        self.check()?;
        self.worlds().for_each(fail_back::count);
        self.worlds().for_each(retirer::count);
        let mut told = Told::of(&self.world, recovery, begun.elapsed());
        if let Some(rival) = &self.rival {
            told.add_rival(&rival.world);
        }
        Ok(told)
    }

    async fn trouble(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.random_range(12..40) {
            let idle = if self.rng.random_bool(0.3) { 8_000 } else { 1_500 };
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..idle))).await;
            self.act().await?;
            self.check()?;
        }
        Ok(())
    }

    fn worlds(&self) -> impl Iterator<Item = &World> {
        std::iter::once(self.world.as_ref()).chain(self.rival.as_ref().map(|rival| &rival.world))
    }

    fn check(&self) -> Result<(), String> {
        self.worlds().try_for_each(check::now)
    }

    /// Until no round and no take-over is active, looked for every so many milliseconds.
    async fn until_idle(&self, deadline: Instant, every: u64) -> Result<(), String> {
        loop {
            let active = self.worlds().find_map(World::active);
            let taking_over = self.worlds().find(|world| world.is_taking_over());
            if active.is_none() && taking_over.is_none() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let taking_over = || format!("L1: {:#?}", taking_over.map(|world| world.database.take_overs()));
                return Err(active.as_ref().map_or_else(taking_over, still_active));
            }
            tokio::time::sleep(Duration::from_millis(every)).await;
            self.check()?;
        }
    }

    async fn act(&mut self) -> Result<(), String> {
        let world = &self.world;
        let replica = self.rng.random_range(0..2_usize);
        let host = self.rng.random_range(0..world.agents.len());
        match self.rng.random_range(0..100) {
            0..15 => drop(world.checkpoint()),
            15..48 => self.push().await?,
            48..60 => self.pull().await?,
            60..66 => self.cancel().await,
            66..72 => {
                world.kill_replica(replica);
                if world.replicas() == 0 || self.rng.random_bool(0.7) {
                    world.start_replica();
                }
            }
            72..80 => world.pause_replica(replica, Duration::from_millis(self.rng.random_range(500..25_000))),
            80..84 => {
                if self.rng.random_bool(0.5) {
                    world.pause_replica(replica, Duration::from_millis(self.rng.random_range(11_000..25_000)));
                }
                world.shut_replica_down(replica);
                world.start_replica();
            }
            84..89 => {
                info!(host, "agent restarts");
                world.weather.count("agent restarted");
                world.agents[host].crash();
                world.agents[host].start();
            }
            89..93 => {
                let down = Duration::from_millis(self.rng.random_range(500..20_000));
                info!(host, ?down, "agent goes down");
                world.weather.count("agent down");
                let agent = world.agents[host].clone();
                agent.crash();
                tokio::spawn(async move {
                    tokio::time::sleep(down).await;
                    agent.start();
                });
            }
            93..97 => {
                info!(host, "disk lost");
                world.weather.count("disk lost");
                world.agents[host].crash();
                world.agents[host].lose_disk();
                world.agents[host].start();
            }
            _ if world.replicas() < 2 => world.start_replica(),
            _ => {}
        }
        Ok(())
    }

    fn request_id(&mut self) -> RequestId {
        let known: Vec<_> = self.requests.keys().copied().collect();
        if !known.is_empty() && self.rng.random_bool(0.1) {
            self.world.weather.count("request repeated");
            return known[self.rng.random_range(0..known.len())];
        }
        RequestId::new(uuid::Builder::from_random_bytes(self.rng.random()).into_uuid())
    }

    fn deadline(&mut self) -> Duration {
        if !self.rng.random_bool(0.2) {
            return Duration::from_secs(3_600);
        }
        self.world.weather.count("deadline of seconds");
        Duration::from_secs(self.rng.random_range(1..20))
    }

    /// A caller asks again, by the same id, until it knows.
    async fn push(&mut self) -> Result<(), String> {
        let push = AdmitPush {
            pipeline: self.pipeline.id.into(),
            wanted: WantedCut::Newest,
            force: true,
            trigger: Trigger::Manual,
            found: None,
            request_id: Some(self.request_id()),
            deadline: self.deadline(),
            retry: RetryPolicy::default(),
        };
        for _ in 0..3 {
            let answer = self.world.store().admit_push(push.clone(), &alice()).await;
            if self.answered(push.request_id, answer)? {
                break;
            }
        }
        Ok(())
    }

    /// Where garbage is collected, something that may go soon is pulled now and then.
    fn older(&mut self) -> Option<CommitRef> {
        self.world.garbage.as_ref()?;
        let committed = |record: RoundRecord| match record.round.kind {
            Kind::Push(push) => push.committed,
            Kind::Pull(_) => None,
        };
        let known: Vec<_> = self.world.database.rounds().into_iter().filter_map(committed).collect();
        known.into_iter().rev().nth(self.rng.random_range(0..6))
    }

    async fn pull(&mut self) -> Result<(), String> {
        let older = self.older();
        let selector = older.map_or(PullSelector::Latest, |commit| PullSelector::Checkpoint(commit.round));
        let request = PullRequest {
            selector,
            standby: self.rng.random_bool(0.5),
            fail_if_none: self.rng.random_bool(0.5),
            allow_fingerprint: false,
            discard_local: self.rng.random_bool(0.2),
        };
        let pull = AdmitPull {
            follows: None,
            pipeline: self.pipeline.id.into(),
            request,
            request_id: Some(self.request_id()),
            deadline: self.deadline(),
            retry: RetryPolicy::default(),
        };
        for _ in 0..3 {
            let answer = self.world.store().admit_pull(pull.clone(), &alice()).await;
            if self.answered(pull.request_id, answer)? {
                break;
            }
        }
        // Somebody else doesn't want it any more.
        if let Some(commit) = older.filter(|_| self.rng.random_bool(0.7)) {
            self.world.weather.count("deleted while pulled");
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..400))).await;
            self.world.delete(commit).await;
        }
        Ok(())
    }

    /// True: known.
    fn answered(&mut self, id: Option<RequestId>, answer: Result<Admission, StoreError>) -> Result<bool, String> {
        match answer {
            Ok(admission) => {
                let round = admission.record().round.id;
                info!(%round, new = matches!(admission, Admission::New(_)), "asked for a round");
                let before = id.and_then(|id| self.requests.insert(id, round));
                let lost =
                    |before: &RoundId| self.world.lost_rounds.borrow().iter().any(|lost| lost.round.id == *before);
                if let Some(before) = before.filter(|before| *before != round && !lost(before)) {
                    return Err(format!("S14: request {id:?} was answered with round {before}, now with {round}"));
                }
                Ok(true)
            }
            Err(StoreError::Problem(problem)) => {
                info!(reason = %problem.reason, "refused");
                Ok(true)
            }
            Err(StoreError::Unavailable(_) | StoreError::UnknownOutcome(_)) => Ok(false),
        }
    }

    async fn cancel(&mut self) {
        let Some(active) = self.world.active() else { return };
        let request = CancelRequest { by: "alice".to_owned(), cause: "a better idea".to_owned() };
        let outcome = self.world.store().request_cancel(active.round.id, request, &alice()).await;
        self.world.weather.count("cancel");
        info!(round = %active.round.id, phase = %active.round.phase, asked = outcome.is_ok(), "cancel");
    }

    /// From here on nothing fails that has not failed yet.
    fn calm_down(&self) {
        info!("calm");
        self.world.weather.calm();
        self.world.database.calm();
        self.world.buckets.calm();
        self.world.wake_replicas();
        while self.world.replicas() < 2 {
            self.world.start_replica();
        }
        self.world.agents.iter().for_each(crate::agent::Agent::start);
        self.rival.iter().for_each(|rival| rival.calm_down());
    }
}
