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
    id::{RequestId, RoundId},
    round::{CancelRequest, Phase, PullRequest, RetryPolicy, WantedCut},
    spec::PullSelector,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    check::{self, Fences},
    log,
    rival::{self, Rival},
    told::Told,
    weather::LATEST,
    world::{self, Chances, World, alice},
};

/// L1: every round is terminal this long after the last fault.
const L1: Duration = Duration::from_secs(60);

/// Plays a seed; an error is what was violated.
pub(crate) fn play(seed: u64) -> Result<Told, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    chance::seed(Some(seed));
    let told = runtime.block_on(async {
        log::begin(log::Clock::Since(Instant::now()));
        Box::pin(Story::begin(seed)).await.run().await
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

fn still_active(record: &RoundRecord) -> String {
    let round = &record.round;
    format!("L1: round {} is still {} a minute after the last fault\n{round:#?}", round.id, round.phase)
}

struct Story {
    world: Rc<World>,
    rival: Option<Rival>,
    rng: StdRng,
    pipeline: PipelineRow,
    step: u64,
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
        let world = Rc::new(World::new(seed, hosts, chances));
        world.start_replica();
        world.start_replica();
        let pipeline = world.create_pipeline().await;
        world.database.random_faults(seed.wrapping_mul(3).wrapping_add(2), chances.database);
        world.buckets.random_faults(seed.wrapping_mul(5).wrapping_add(3), chances.bucket);
        trouble_the_decision(&world, &mut rng);
        let rival = if rng.random_bool(0.4) {
            Some(Rival::begin(Rc::clone(&world), pipeline.id, rng.random(), chances).await)
        } else {
            None
        };
        let mut story = Self { world, rival, rng, pipeline, step: 0, requests: BTreeMap::new() };
        story.checkpoint();
        story
    }

    async fn run(mut self) -> Result<Told, String> {
        let begun = Instant::now();
        let over = CancellationToken::new();
        let late = World::land_late_writes(self.world.buckets.clone(), self.world.weather.clone(), over.clone());
        let late = tokio::spawn(late);
        let rival = self.rival.take();
        let life = async {
            if let Some(rival) = &rival {
                rival.live(&over).await;
            }
        };
        let trouble = async {
            let outcome = self.trouble().await;
            over.cancel();
            outcome
        };
        tokio::join!(trouble, life).0?;
        self.rival = rival;
        self.calm_down();
        late.await.unwrap();
        // What is late is a fault until it has arrived.
        let last_fault = Instant::now();
        let deadline = last_fault + Duration::from_millis(LATEST) + L1;
        self.until_idle(deadline).await?;
        let recovery = last_fault.elapsed();
        info!(?recovery, "every round is terminal");
        tokio::time::sleep(Duration::from_millis(LATEST)).await;
        self.owns_its_location().await?;
        self.ends_well().await?;
        check::now(&self.world)?;
        Ok(Told::of(&self.world, recovery, begun.elapsed()))
    }

    async fn trouble(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.random_range(12..40) {
            let idle = if self.rng.random_bool(0.3) { 8_000 } else { 1_500 };
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..idle))).await;
            self.act().await?;
            check::now(&self.world)?;
        }
        Ok(())
    }

    /// Until no round and no take-over is active.
    async fn until_idle(&self, deadline: Instant) -> Result<(), String> {
        loop {
            let active = self.world.active();
            let rivals = self.rival.as_ref().is_some_and(Rival::is_taking_over);
            if active.is_none() && !rivals && !world::is_taking_over(&self.world.database) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(active.as_ref().map_or_else(|| "L1: a take-over is still active".to_owned(), still_active));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            check::now(&self.world)?;
        }
    }

    async fn act(&mut self) -> Result<(), String> {
        let world = &self.world;
        let replica = self.rng.random_range(0..2_usize);
        let host = self.rng.random_range(0..world.agents.len());
        match self.rng.random_range(0..100) {
            0..15 => self.checkpoint(),
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

    fn checkpoint(&mut self) {
        self.step += 1;
        info!(step = self.step, "checkpoint");
        self.world.agents.iter().for_each(|agent| agent.checkpoint(self.step));
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

    async fn pull(&mut self) -> Result<(), String> {
        let request = PullRequest {
            selector: PullSelector::Latest,
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
        Ok(())
    }

    /// True: known.
    fn answered(&mut self, id: Option<RequestId>, answer: Result<Admission, StoreError>) -> Result<bool, String> {
        match answer {
            Ok(admission) => {
                let round = admission.record().round.id;
                info!(%round, new = matches!(admission, Admission::New(_)), "asked for a round");
                let before = id.and_then(|id| self.requests.insert(id, round));
                if let Some(before) = before.filter(|before| *before != round) {
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
        self.rival.iter().for_each(Rival::calm_down);
    }

    /// Whoever took the location over: the first take-over in calm weather succeeds.
    async fn owns_its_location(&self) -> Result<(), String> {
        let owner = || Fences::of(&self.world.buckets).owner();
        if owner() != Some(self.pipeline.id) {
            info!("takes its location back");
            rival::take_over(self.world.store(), self.pipeline.id).await;
            self.until_idle(Instant::now() + L1).await?;
        }
        if owner() != Some(self.pipeline.id) {
            return Err(format!("L2: a take-over after the last fault: {:#?}", self.world.database.take_overs()));
        }
        Ok(())
    }

    /// L2: a new push succeeds first try; and what it pushed comes back to every host.
    async fn ends_well(&mut self) -> Result<(), String> {
        self.checkpoint();
        self.push_until_known().await?;
        let pushed = self.ended().await?;
        let first_try = pushed.round.participants.iter().all(|participant| participant.attempt.get() == 1);
        if pushed.round.phase != Phase::Committed || !first_try {
            return Err(format!("L2: a push after the last fault: {:#?}", pushed.round));
        }
        self.world.agents.iter().for_each(|agent| {
            agent.crash();
            agent.lose_disk();
            agent.start();
        });
        let request = PullRequest {
            selector: PullSelector::Latest,
            standby: true,
            fail_if_none: true,
            allow_fingerprint: false,
            discard_local: false,
        };
        self.start_pull(request).await?;
        let pulled = self.ended().await?;
        if pulled.round.phase != Phase::Installed {
            return Err(format!("L2: a pull after the last fault: {:#?}", pulled.round));
        }
        for (agent, part) in self.world.agents.iter().zip(&pushed.round.participants) {
            let disk: Vec<_> = agent.disk().into_iter().map(|local| (Some(local.id), local.step.get())).collect();
            if disk != [(part.local_checkpoint, self.step)] {
                return Err(format!("S12: a host that pulled step {} has {disk:?}", self.step));
            }
        }
        Ok(())
    }

    async fn start_pull(&mut self, request: PullRequest) -> Result<(), String> {
        let pull = AdmitPull {
            follows: None,
            pipeline: self.pipeline.id.into(),
            request,
            request_id: None,
            deadline: Duration::from_secs(3_600),
            retry: RetryPolicy::default(),
        };
        let admitted = self.world.store().admit_pull(pull, &alice()).await;
        admitted.map(|_| ()).map_err(|error| format!("L2: a pull after the last fault was not admitted: {error}"))
    }

    async fn push_until_known(&mut self) -> Result<(), String> {
        let push = AdmitPush {
            pipeline: self.pipeline.id.into(),
            wanted: WantedCut::Newest,
            force: false,
            trigger: Trigger::Manual,
            found: None,
            request_id: None,
            deadline: Duration::from_secs(3_600),
            retry: RetryPolicy::default(),
        };
        match self.world.store().admit_push(push, &alice()).await {
            Ok(Admission::New(_)) => Ok(()),
            other => Err(format!("L2: a push after the last fault was not admitted: {other:?}")),
        }
    }

    async fn ended(&self) -> Result<RoundRecord, String> {
        self.until_idle(Instant::now() + L1).await?;
        self.world.database.rounds().pop().ok_or_else(|| "no round".to_owned())
    }
}
