//! Somebody who keeps checkpoints by hand and lets them go again, in half of the seeds in which garbage is collected.

use std::{cell::RefCell, rc::Rc, time::Duration};

use lockstep_protocol::{pin::Pin, round::Kind, upkeep::Work};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use crate::world::World;

pub(crate) struct Keeper {
    world: Rc<World>,
    rng: RefCell<StdRng>,
}

impl Keeper {
    /// Drawn apart, so that all other histories are as they were.
    pub(crate) fn of(world: &Rc<World>, seed: u64) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(23).wrapping_add(17));
        let keeps = rng.random_bool(0.5) && world.garbage.is_some();
        keeps.then(|| Self { world: Rc::clone(world), rng: RefCell::new(rng) })
    }

    fn draw(&self, most: usize) -> usize {
        self.rng.borrow_mut().random_range(0..most)
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        let pause = || Duration::from_millis(self.rng.borrow_mut().random_range(0..6_000));
        while over.run_until_cancelled(tokio::time::sleep(pause())).await.is_some() {
            match self.draw(3) {
                0 | 1 => self.pin().await,
                _ => self.unpin().await,
            }
        }
    }

    /// One of the newest, which may be on its way out.
    async fn pin(&self) {
        let committed = self.world.database.rounds().into_iter().filter_map(|record| match record.round.kind {
            Kind::Push(push) => push.committed,
            Kind::Pull(_) => None,
        });
        let known: Vec<_> = committed.collect();
        let Some(commit) = known.into_iter().rev().nth(self.draw(5)) else { return };
        let pin = Pin {
            name: "kept".to_owned(),
            id: self.world.weather.uuid(),
            commit,
            pinned_by: "alice".to_owned(),
            pinned_at: self.world.time(),
        };
        let (key, bytes) = (pin.key().to_string(), String::from_utf8(pin.encode()).unwrap());
        self.world.weather.count("pinned by hand");
        self.world.ask_for(Work::Pin { commit, key, bytes }).await;
    }

    async fn unpin(&self) {
        let known: Vec<_> = self.world.pinned.borrow().keys().cloned().collect();
        if known.is_empty() {
            return;
        }
        let key = known[self.draw(known.len())].clone();
        // From here on it may be gone, whatever the answer is.
        self.world.pinned.borrow_mut().remove(&key);
        self.world.unpinned.borrow_mut().insert(key.clone());
        self.world.weather.count("unpinned by hand");
        self.world.ask_for(Work::Unpin { keys: vec![key], documents: Vec::new() }).await;
    }
}
