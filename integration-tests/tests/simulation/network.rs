//! The same over real gRPC: coordinators with API and dispatch, agents and a user on turmoil's hosts, whose network is cut, held and whose processes crash.
//!
//! `LOCKSTEP_SEED=17 cargo test --workspace --test simulation network -- --nocapture` replays a seed; `LOCKSTEP_NETWORK_SEEDS` sets how many.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use lockstep_coordinator::{
    agents::{AgentPool, AgentPoolOptions},
    api::{Api, ApiOptions},
    chance,
    dispatch::{DispatchOptions, Dispatcher},
};
use lockstep_proto::v1::{
    self, agent_server::AgentServer, coordinator_client::CoordinatorClient, coordinator_server::CoordinatorServer,
    start_pull_request, start_push_request,
};
use lockstep_protocol::round::Phase;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;
use turmoil::Sim;

use crate::{
    bucket::FarBuckets,
    check,
    figures::{Figures, replayed},
    gate::ReplicaGate,
    log, number_of,
    told::Told,
    world::{Chances, World},
};

mod wiring;

use wiring::{channel, serve};

/// Seeds of one run of the suite; `.ci/run` plays 50.
const SEEDS: u64 = 16;

const FAULTS: [&str; 17] = [
    "agent crashed and started",
    "agent lost its disk",
    "bucket: FailBefore",
    "bucket: LandLate",
    "bucket: LoseAnswer",
    "bucket: Throttle",
    "cancel",
    "database: answer lost",
    "database: request late",
    "database: request lost",
    "database: unavailable",
    "network: cut",
    "network: cut one way",
    "network: held",
    "network: user cut off",
    "replica crashed",
    "replica crashed and started",
];

/// Virtual time in which things fail.
const TROUBLE: Duration = Duration::from_secs(40);

/// From the last fault until every round is terminal and a new push and pull have succeeded.
const RECOVERY: Duration = Duration::from_secs(90);

const REPLICAS: [&str; 2] = ["replica-0", "replica-1"];

/// As in production, with the HTTP/2 pings of its channels; no faults but turmoil's in what carries calls.
fn pool() -> AgentPool {
    AgentPool::over(AgentPoolOptions::default(), |address, options| Ok(channel(address, options)))
}

async fn coordinator(world: Rc<World>) -> turmoil::Result {
    let name = world.next_name();
    info!(replica = name, "starts");
    let store = world.database.store();
    let connector = FarBuckets {
        buckets: world.buckets.clone(),
        gate: Arc::new(ReplicaGate::new()),
        weather: world.weather.clone(),
    };
    let stopping = CancellationToken::new();
    let options = DispatchOptions { replica: name, ..DispatchOptions::default() };
    let dispatcher = Dispatcher::new(store.clone(), Arc::new(connector.clone()), pool(), options);
    tokio::spawn(dispatcher.run(stopping.clone()));
    let api = Api::new(store, Arc::new(pool()), Arc::new(connector), ApiOptions::default(), stopping);
    serve(7400, CoordinatorServer::new(api)).await
}

/// What the user has seen of the end.
#[derive(Default)]
struct Seen {
    calm_at: Cell<Option<Duration>>,
    recovery: Cell<Option<Duration>>,
    violation: RefCell<Option<String>>,
}

struct User {
    world: Rc<World>,
    seen: Rc<Seen>,
    chances: Chances,
    rng: StdRng,
    step: u64,
}

impl User {
    /// Any replica answers.
    fn client(&mut self) -> CoordinatorClient<lockstep_rpc::Carrier> {
        let replica = REPLICAS[self.rng.random_range(0..REPLICAS.len())];
        let options = lockstep_rpc::ChannelOptions {
            request_timeout: Some(Duration::from_secs(5)),
            ..lockstep_rpc::ChannelOptions::default()
        };
        CoordinatorClient::new(channel(&format!("http://{replica}:7400"), &options))
    }

    fn request_id(&mut self) -> String {
        uuid::Builder::from_random_bytes(self.rng.random()).into_uuid().to_string()
    }

    fn checkpoint(&mut self) {
        self.step += 1;
        info!(step = self.step, "checkpoint");
        self.world.agents.iter().for_each(|agent| agent.checkpoint(self.step));
    }

    /// Asks until some replica answers, always by the same id.
    async fn push(&mut self) -> Option<v1::Round> {
        let request = v1::StartPushRequest {
            pipeline: "orders".to_owned(),
            selector: Some(start_push_request::Selector::Latest(true)),
            request_id: self.request_id(),
            force: true,
            ..v1::StartPushRequest::default()
        };
        for _ in 0..4 {
            match self.client().start_push(request.clone()).await {
                Ok(round) => return Some(round.into_inner()),
                Err(status) => info!(code = ?status.code(), "push not started: {}", status.message()),
            }
        }
        None
    }

    async fn pull(&mut self, standby: bool) -> Option<v1::Round> {
        let request = v1::StartPullRequest {
            pipeline: "orders".to_owned(),
            selector: Some(start_pull_request::Selector::Latest(true)),
            standby: Some(standby),
            fail_if_none: Some(true),
            request_id: self.request_id(),
            ..v1::StartPullRequest::default()
        };
        for _ in 0..4 {
            match self.client().start_pull(request.clone()).await {
                Ok(round) => return Some(round.into_inner()),
                Err(status) => info!(code = ?status.code(), "pull not started: {}", status.message()),
            }
        }
        None
    }

    async fn cancel(&mut self) {
        let Some(active) = self.world.active() else { return };
        self.world.weather.count("cancel");
        let request = v1::CancelRoundRequest { round: active.round.id.to_string(), cause: "a better idea".to_owned() };
        let answer = self.client().cancel_round(request).await;
        info!(round = %active.round.id, asked = answer.is_ok(), "cancel");
    }

    async fn live(mut self) -> turmoil::Result {
        self.world.create_pipeline().await;
        let seed = self.rng.random();
        self.world.database.random_faults(seed, self.chances.database);
        self.world.buckets.random_faults(seed, self.chances.bucket);
        self.checkpoint();
        while self.seen.calm_at.get().is_none() {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..3_000))).await;
            match self.rng.random_range(0..10) {
                0..2 => self.checkpoint(),
                2..6 => drop(self.push().await),
                6..8 => {
                    let standby = self.rng.random_bool(0.7);
                    drop(self.pull(standby).await);
                }
                8 => self.cancel().await,
                _ => {}
            }
        }
        self.until_idle().await;
        let now = log::elapsed();
        self.seen.recovery.set(self.seen.calm_at.get().and_then(|calm| now.checked_sub(calm)));
        if let Err(violation) = self.ends_well().await {
            self.seen.violation.replace(Some(violation));
        }
        Ok(())
    }

    async fn until_idle(&self) {
        while self.world.active().is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// L2, and what was pushed comes back to every host.
    async fn ends_well(&mut self) -> Result<(), String> {
        self.checkpoint();
        let pushed = self.push().await.ok_or("L2: no replica admitted a push")?;
        self.until_idle().await;
        let record = self.world.database.rounds().pop().ok_or("no round")?;
        if record.round.phase != Phase::Committed || record.round.id.to_string() != pushed.id {
            return Err(format!("L2: a push after the last fault: {:#?}", record.round));
        }
        self.pull(true).await.ok_or("L2: no replica admitted a pull")?;
        self.until_idle().await;
        let record = self.world.database.rounds().pop().ok_or("no round")?;
        if record.round.phase != Phase::Installed {
            return Err(format!("L2: a pull after the last fault: {:#?}", record.round));
        }
        Ok(())
    }
}

/// One fault of network or process.
fn trouble(sim: &mut Sim<'_>, world: &World, rng: &mut StdRng) {
    let agents: Vec<String> = world.agents.iter().map(|agent| agent.host_name()).collect();
    let host = rng.random_range(0..agents.len());
    let (replica, agent) = (REPLICAS[rng.random_range(0..REPLICAS.len())], agents[host].as_str());
    let what = match rng.random_range(0..9) {
        0 => {
            sim.partition(replica, agent);
            "network: cut"
        }
        1 => {
            sim.partition_oneway(agent, replica);
            "network: cut one way"
        }
        2 => {
            sim.hold(replica, agent);
            "network: held"
        }
        3 => {
            sim.partition("user", replica);
            "network: user cut off"
        }
        4 => {
            sim.crash(replica);
            "replica crashed"
        }
        5 => {
            sim.crash(replica);
            sim.bounce(replica);
            "replica crashed and started"
        }
        6 => {
            world.agents[host].crash();
            sim.crash(agent);
            sim.bounce(agent);
            "agent crashed and started"
        }
        7 => {
            world.agents[host].crash();
            world.agents[host].lose_disk();
            sim.crash(agent);
            sim.bounce(agent);
            "agent lost its disk"
        }
        _ => {
            repair(sim, world);
            "network: repaired"
        }
    };
    world.weather.count(what);
    info!(replica, agent, what, "fault");
}

/// Everything is reachable again; what is down starts.
fn repair(sim: &mut Sim<'_>, world: &World) {
    for replica in REPLICAS {
        sim.repair("user", replica);
        for agent in &world.agents {
            sim.release(replica, agent.host_name());
            sim.repair(replica, agent.host_name());
        }
        if !sim.is_host_running(replica) {
            sim.bounce(replica);
        }
    }
}

/// Plays a seed; an error is what was violated.
fn play(seed: u64) -> Result<Told, String> {
    chance::seed(Some(seed));
    log::begin(log::Clock::Network(Duration::ZERO));
    let told = run(seed);
    chance::seed(None);
    told
}

fn run(seed: u64) -> Result<Told, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let chances = Chances {
        database: if rng.random_bool(0.5) { rng.random_range(0.0..0.06) } else { 0.0 },
        bucket: if rng.random_bool(0.5) { rng.random_range(0.0..0.1) } else { 0.0 },
        wire: 0.0,
    };
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(10))
        .max_message_latency(Duration::from_millis(20))
        .simulation_duration(Duration::from_secs(3_600))
        .build();
    let world = Rc::new(World::new(seed, 3, chances));
    for agent in &world.agents {
        let agent = agent.clone();
        sim.host(agent.host_name(), move || {
            let agent = agent.clone();
            async move {
                agent.start();
                serve(7402, AgentServer::new(agent)).await
            }
        });
    }
    for replica in REPLICAS {
        let world = Rc::clone(&world);
        sim.host(replica, move || coordinator(Rc::clone(&world)));
    }
    let seen = Rc::new(Seen::default());
    let user =
        User { world: Rc::clone(&world), seen: Rc::clone(&seen), chances, rng: StdRng::seed_from_u64(!seed), step: 0 };
    sim.client("user", user.live());
    let mut next = Duration::from_secs(2);
    loop {
        let over = sim.step().map_err(|error| format!("a host ended: {error}"))?;
        let now = sim.elapsed();
        log::begin(log::Clock::Network(now));
        if now >= next && now < TROUBLE {
            next = now + Duration::from_millis(rng.random_range(200..4_000));
            check::now(&world)?;
            trouble(&mut sim, &world, &mut rng);
        }
        if now >= TROUBLE && seen.calm_at.get().is_none() {
            info!("calm");
            repair(&mut sim, &world);
            world.database.calm();
            world.buckets.calm();
            world.buckets.land_all();
            seen.calm_at.set(Some(now));
        }
        if over {
            break;
        }
        if now >= TROUBLE + RECOVERY {
            return Err(format!("L1: still active\n{:#?}", world.active().map(|record| record.round)));
        }
    }
    if let Some(violation) = seen.violation.take() {
        return Err(violation);
    }
    check::now(&world)?;
    Ok(Told::of(&world, seen.recovery.get().unwrap_or_default(), sim.elapsed()))
}

#[test]
fn network_is_replayed_byte_for_byte_by_its_seed() {
    for seed in 0..3 {
        let play = || log::collect(|| play(seed));
        let (first, second) = (play(), play());
        crate::dispatch::assert_same(seed, &first.1, &second.1);
        assert_eq!(first.0, second.0, "seed {seed}");
        let lines = first.1.lines().count();
        assert!(lines > 50, "the log of seed {seed} has {lines} lines");
    }
}

#[test]
fn network_holds_the_invariants_whatever_fails() {
    if replayed(play) {
        return;
    }
    let figures = Figures::of(number_of("LOCKSTEP_NETWORK_SEEDS").unwrap_or(SEEDS), play);
    figures.print();
    figures.assert_met(&FAULTS, 20);
    figures.assert_outcomes(&["push committed", "pull installed"]);
}
