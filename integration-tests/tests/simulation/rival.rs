//! Another pipeline, with database, hosts and a replica of its own, that takes the location over; and the owner, that takes it back in some of the runs.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use lockstep_bucket::{
    Operation,
    memory::fault::{Fault, FaultRule},
};
use lockstep_coordinator::store::ClaimState;
use lockstep_protocol::{id::LocalCheckpointId, round::Phase, takeover::Purpose};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::world::{Chances, World};

pub(crate) struct Rival {
    /// Where the location's first owner lives.
    home: Rc<World>,
    pub(crate) world: World,
    gives_back: bool,
    /// It stays a standby and never wants the location.
    pub(crate) only_follows: bool,
    /// Somebody is in the middle of something for which the location has to stay whose it is.
    pub(crate) is_left_alone: Cell<bool>,
    rng: RefCell<StdRng>,
}

/// In most of the seeds fences and bases fail most.
fn trouble_the_fences(world: &World, rng: &mut StdRng) {
    const FAULTS: [Fault; 5] =
        [Fault::LoseAnswer, Fault::LandLate, Fault::Duplicate, Fault::Conflict, Fault::FailBefore];
    for _ in 0..rng.random_range(0..4) {
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        let rule = FaultRule::new(fault).operation(Operation::Create).key("/fences/");
        world.buckets.inject(rule.skip(rng.random_range(0..4)).times(rng.random_range(1..4)));
    }
}

impl Rival {
    /// A standby that nobody has asked for anything yet.
    pub(crate) async fn begin(home: Rc<World>, seed: u64, chances: Chances) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = home.beside("heir");
        world.create_standby().await;
        world.database.random_faults(rng.random(), chances.database);
        world.start_replica();
        trouble_the_fences(&world, &mut rng);
        let (gives_back, only_follows) = (rng.random_bool(0.6), rng.random_bool(0.2));
        Self { home, world, gives_back, only_follows, is_left_alone: Cell::default(), rng: RefCell::new(rng) }
    }

    fn draw(&self, most: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..most)
    }

    fn millis(&self, most: u64) -> Duration {
        Duration::from_millis(self.draw(most))
    }

    fn owns(&self) -> bool {
        self.world.row().is_some_and(|row| row.claim == ClaimState::Owned && row.fenced.is_none())
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        while over.run_until_cancelled(tokio::time::sleep(self.millis(8_000))).await.is_some() {
            match self.draw(20) {
                0..5 if !self.owns() && !self.only_follows && !self.is_left_alone.get() => self.take_over().await,
                0..9 => self.push().await,
                9..13 if self.gives_back && !self.is_left_alone.get() => {
                    self.world.weather.count("location taken back");
                    self.home.take_over(Purpose::TakeOver).await;
                }
                13 => self.world.agents.iter().for_each(|agent| {
                    agent.crash();
                    agent.start();
                }),
                14 => self.kill_replica(),
                _ if self.world.replicas() == 0 => self.world.start_replica(),
                _ => {}
            }
        }
    }

    /// While the owner decides about a push, if it does so soon: there most can go wrong.
    async fn at_the_worst_moment(&self) {
        let deciding = || {
            self.home
                .active()
                .is_some_and(|active| matches!(active.round.phase, Phase::Transferring | Phase::Committing))
        };
        for _ in 0..200 {
            if deciding() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(self.millis(3_000)).await;
    }

    /// Of a standby that nothing was ever asked of half of them are activations.
    fn purpose(&self) -> Purpose {
        let standby = self.world.row().is_some_and(|row| row.claim == ClaimState::Standby);
        if standby && self.draw(2) == 0 {
            self.world.weather.count("standby activated");
            return Purpose::Activate;
        }
        Purpose::TakeOver
    }

    async fn take_over(&self) {
        if self.draw(3) > 0 {
            self.at_the_worst_moment().await;
        }
        self.world.weather.count("location taken over");
        // Now and then both want it at once.
        let both = self.gives_back && self.draw(4) == 0;
        let back = async {
            if both {
                self.home.take_over(Purpose::TakeOver).await;
            }
        };
        let purpose = self.purpose();
        tokio::join!(self.world.take_over(purpose), back);
        // In the middle of it, as often as not.
        if self.draw(2) == 0 {
            tokio::time::sleep(self.millis(400)).await;
            self.kill_replica();
        }
    }

    fn kill_replica(&self) {
        if self.world.is_taking_over() && self.world.replicas() > 0 {
            self.world.weather.count("taker killed");
        }
        self.world.kill_replica(0);
    }

    async fn push(&self) {
        self.world.checkpoint();
        let answer = self.world.push(true).await;
        info!(admitted = answer.is_ok(), "the heir pushes");
    }

    /// A standby has what is newest on every host, and nothing else, soon after it was pushed.
    pub(crate) async fn follows(&self, newest: &[LocalCheckpointId]) -> Result<(), String> {
        if !self.world.row().is_some_and(|row| row.claim == ClaimState::Standby && !row.holds_fence()) {
            return Ok(());
        }
        self.world.weather.count("standby followed to the end");
        let disks = || self.world.agents.iter().map(|agent| agent.disk().iter().map(|local| local.id).collect());
        let wanted: Vec<Vec<LocalCheckpointId>> = newest.iter().map(|id| vec![*id]).collect();
        for _ in 0..300 {
            if disks().collect::<Vec<Vec<_>>>() == wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let disks: Vec<Vec<_>> = disks().collect();
        Err(format!(
            "L2: a standby has {disks:?} on its hosts, {wanted:?} is newest: {:#?}",
            self.world.database.rounds()
        ))
    }

    /// From here on nothing fails that has not failed yet.
    pub(crate) fn calm_down(&self) {
        self.world.database.calm();
        if self.world.replicas() == 0 {
            self.world.start_replica();
        }
        self.world.agents.iter().for_each(crate::agent::Agent::start);
    }
}
