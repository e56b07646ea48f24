//! The database is lost and comes back as it was some time before, in a share of the seeds: as a replica that was promoted, whose resync begins by itself, or from a backup on
//! another server, where somebody has to ask for it.

use std::{cell::RefCell, rc::Rc, time::Duration};

use lockstep_coordinator::store::{ClaimState, DatabaseIdentity};
use lockstep_protocol::takeover::Purpose;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{story::is_rivalled, world::World};

/// A resync is a take-over; it ends as soon as one, and begins within a lease.
const SOON: u32 = 200;

/// Whether it is lost at all. Drawn apart, so that all other histories are as they were; nobody else wants the location then.
pub(crate) fn strikes(seed: u64) -> bool {
    StdRng::seed_from_u64(seed.wrapping_mul(37).wrapping_add(29)).random_bool(0.3) && !is_rivalled(seed)
}

pub(crate) struct Disaster {
    world: Rc<World>,
    rng: RefCell<StdRng>,
}

impl Disaster {
    pub(crate) fn of(world: &Rc<World>, seed: u64) -> Option<Self> {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(41).wrapping_add(31));
        strikes(seed).then(|| Self { world: Rc::clone(world), rng: RefCell::new(rng) })
    }

    fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.borrow_mut().random_range(range))
    }

    /// Once, if it is not over before.
    pub(crate) async fn strike(&self, over: &CancellationToken) {
        let wait = async |millis| over.run_until_cancelled(tokio::time::sleep(self.millis(millis))).await;
        if wait(3_000..20_000).await.is_none() {
            return;
        }
        let backup = self.world.database.backup();
        let open = self.world.active().map(|record| record.round.phase);
        info!(?open, "backed up");
        if wait(500..20_000).await.is_none() {
            return;
        }
        while self.world.replicas() > 0 {
            self.world.kill_replica(0);
        }
        let promoted = self.rng.borrow_mut().random_bool(0.5);
        if open.is_some() {
            self.world.weather.count("round open in the backup");
        }
        self.world.weather.count(if promoted { "replica of the database promoted" } else { "database restored" });
        info!(promoted, "the database is as it was before");
        *self.world.lost_rounds.borrow_mut() = self.world.database.rounds();
        self.world.fenced.set(None);
        self.world.database.restore(&backup, identity(promoted));
        self.world.start_replica();
        self.world.start_replica();
        if !promoted && wait(0..15_000).await.is_some() {
            self.world.take_over(Purpose::Resync).await;
        }
    }
}

/// Of the database that comes back.
fn identity(promoted: bool) -> DatabaseIdentity {
    let before = World::first_identity();
    if promoted {
        DatabaseIdentity { timeline: before.timeline + 1, ..before }
    } else {
        DatabaseIdentity { system_identifier: "another server".to_owned(), ..before }
    }
}

/// Whether its location is still to be taken over, since rows may be missing.
pub(crate) fn is_behind(world: &World) -> bool {
    world.row().is_some_and(|row| row.behind.is_some() || row.database != world.database.identity())
}

/// Whoever runs it asks for the resync where nothing begins one: a round that is open there waits for it.
pub(crate) async fn asks(world: &World) {
    if is_behind(world) && world.database.identity().system_identifier != World::first_identity().system_identifier {
        world.take_over(Purpose::Resync).await;
    }
}

/// L2: a promoted replica of the database resyncs by itself; elsewhere the resync that somebody asks for succeeds.
pub(crate) async fn is_resynced(world: &World) -> Result<(), String> {
    if !is_behind(world) {
        return Ok(());
    }
    asks(world).await;
    for _ in 0..SOON {
        if !is_behind(world) && world.row().is_some_and(|row| row.claim == ClaimState::Owned && row.fenced.is_none()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("L2: the database is still behind: {:#?} {:#?}", world.row(), world.database.take_overs()))
}
