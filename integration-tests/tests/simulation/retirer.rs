//! An owner that retires and sweeps what another pipeline, which follows its location, is pulling (G5): in the seeds in which a rival is there and garbage is collected. In most of them nobody
//! may pin what is pulled, so that it is gone in the middle, and another checkpoint has to be chosen for all hosts.

use std::{cell::RefCell, rc::Rc, time::Duration};

use lockstep_bucket::{
    Operation,
    memory::fault::{Fault, FaultRule},
};
use lockstep_protocol::{
    commit::CommitRef,
    round::{Kind, Phase, Source},
    upkeep::Work,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    check,
    fail_back::{Stands, stands},
    log,
    rival::Rival,
    world::World,
};

/// Looks at one thing that has to come about, a quarter of a second apart; a host is down for as long at most.
const PATIENCE: u32 = 80;

/// For so long the location stays its first owner's, so that there is something to retire. Later it stays whose it is only in the middle of that.
const UNDISTURBED: Duration = Duration::from_secs(25);

pub(crate) struct Retirer {
    home: Rc<World>,
    rival: Rc<Rival>,
    rng: RefCell<StdRng>,
}

/// What a standby's hosts are fetching.
fn is_pulling(world: &World) -> Option<CommitRef> {
    let round = world.active()?.round;
    let Kind::Pull(pull) = &round.kind else { return None };
    let resolved = pull.resolved.as_ref().filter(|resolved| resolved.source == Source::Location)?;
    resolved.commit.filter(|_| round.phase == Phase::Transferring)
}

impl Retirer {
    /// Drawn apart, so that all other histories are as they were.
    pub(crate) fn of(home: &Rc<World>, rival: Option<&Rc<Rival>>, seed: u64) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(47).wrapping_add(41));
        let retires = rng.random_bool(0.9);
        let rival = rival.filter(|_| retires && home.garbage.is_some())?;
        if rng.random_bool(0.85) {
            home.buckets.inject(FaultRule::new(Fault::Deny).operation(Operation::Create).key("/pins/standby-"));
        }
        Some(Self { home: Rc::clone(home), rival: Rc::clone(rival), rng: RefCell::new(rng) })
    }

    fn draw(&self, most: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..most)
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        let pause = || Duration::from_millis(self.draw(500));
        self.rival.is_left_alone.set(true);
        while over.run_until_cancelled(tokio::time::sleep(pause())).await.is_some() {
            self.rival.is_left_alone.set(log::elapsed() < UNDISTURBED);
            let (home, rival) = (self.home.as_ref(), &self.rival.world);
            let (owner, follower) = match (stands(home), stands(rival)) {
                (Stands::Owner, Stands::Follows) => (home, rival),
                (Stands::Follows, Stands::Owner) => (rival, home),
                _ => continue,
            };
            match is_pulling(follower) {
                Some(commit) => {
                    self.rival.is_left_alone.set(true);
                    self.retire(over, (owner, follower), commit).await;
                }
                None if self.draw(8) == 0 => {
                    owner.checkpoint();
                    let _ = owner.push(true).await;
                }
                None => {}
            }
        }
    }

    /// One of the standby's hosts is down until the owner has pushed something newer, and what is pulled is retired and swept.
    async fn retire(&self, over: &CancellationToken, (owner, follower): (&World, &World), commit: CommitRef) {
        let host = usize::try_from(self.draw(u64::try_from(follower.agents.len()).unwrap())).unwrap();
        info!(host, checkpoint = %commit.round, "goes down in the middle of a pull, whose source its owner retires");
        let agent = follower.agents[host].clone();
        agent.crash();
        let gone = async {
            owner.checkpoint();
            let newest = (commit.generation, commit.seq);
            for _ in 0..PATIENCE {
                if check::newest(owner).flatten().is_some_and(|now| now > newest) {
                    break;
                }
                let _ = owner.push(true).await;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            for tried in 0..PATIENCE {
                if check::document(owner, &commit).is_none() {
                    break;
                }
                // Refused while something else goes on, or not swept while the grace period is not over.
                match tried % 8 {
                    0 => owner.delete(commit).await,
                    4 => owner.ask_for(Work::Collect).await,
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        over.run_until_cancelled(gone).await;
        agent.start();
    }
}

/// Counts what became of it.
pub(crate) fn count(world: &World) {
    for record in world.database.rounds() {
        let Kind::Pull(pull) = &record.round.kind else { continue };
        if !pull.retired.is_empty() {
            world.weather.count("source retired while it was pulled");
            if record.round.phase == Phase::Installed {
                world.weather.count("resolved anew and installed");
            }
        }
    }
}
