//! Objects that rot, and verification that finds it, by hand and within a daily budget: in a share of the seeds.

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::Bytes;
use lockstep_bucket::ObjectStore;
use lockstep_coordinator::store::Finding;
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    problem::Problem,
    round::Kind,
    verification::Scope,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    check,
    world::{BUCKET, World, alice, location},
};

/// Of one run. More would leave nothing whole to go on from.
const MOST: usize = 3;

/// The daily budget; none: nothing rots and nothing is verified. Drawn apart, so that all other histories are as they were. The small ones are used up, the large ones
/// read everything.
pub(crate) fn budget_of(seed: u64) -> Option<u64> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(29).wrapping_add(19));
    let bytes_per_day = if rng.random_bool(0.5) { rng.random_range(5_000..40_000) } else { 10_000_000 };
    rng.random_bool(0.25).then_some(bytes_per_day)
}

pub(crate) struct Decay {
    world: Rc<World>,
    rng: RefCell<StdRng>,
}

impl Decay {
    pub(crate) fn of(world: &Rc<World>, seed: u64) -> Option<Self> {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(23));
        world.verify_bytes_per_day.map(|_| Self { world: Rc::clone(world), rng: RefCell::new(rng) })
    }

    fn draw(&self, most: usize) -> usize {
        self.rng.borrow_mut().random_range(0..most)
    }

    /// Until it is over.
    pub(crate) async fn live(&self, over: &CancellationToken) {
        let pause = || Duration::from_millis(self.rng.borrow_mut().random_range(0..8_000));
        while over.run_until_cancelled(tokio::time::sleep(pause())).await.is_some() {
            let Some(commit) = self.one_of_the_newest() else { continue };
            match self.draw(2) {
                0 if self.world.rotten.borrow().len() < MOST => self.rot(commit),
                _ => {
                    self.world.weather.count("verified by hand");
                    let found = verify(&self.world, commit).await;
                    info!(checkpoint = %commit.round, broken = ?found.map(|problems| problems.len()), "verified");
                }
            }
        }
    }

    fn one_of_the_newest(&self) -> Option<CommitRef> {
        let committed = self.world.database.rounds().into_iter().filter_map(|record| match record.round.kind {
            Kind::Push(push) => push.committed,
            Kind::Pull(_) => None,
        });
        let known: Vec<_> = committed.collect();
        known.into_iter().rev().nth(self.draw(3))
    }

    /// What one host has pushed of its state, which no other checkpoint shares.
    fn rot(&self, commit: CommitRef) {
        let Some(document) = check::document(&self.world, &commit) else { return };
        let part = &document.parts[self.draw(document.parts.len())];
        let Some(key) = check::state_of(&self.world, part) else { return };
        let lost = self.draw(2) == 0;
        info!(key, lost, "rots");
        self.world.weather.count(if lost { "object lost" } else { "object altered" });
        let bytes = (!lost).then(|| Bytes::from_static(b"host 9 at step 0"));
        self.world.buckets.tamper(BUCKET, &location().full_key(&key), bytes.clone());
        self.world.rotten.borrow_mut().insert(key, bytes);
    }
}

/// As the API does it for whoever asks. None: nobody knows, or it was not kept.
async fn verify(world: &World, commit: CommitRef) -> Option<Vec<Problem>> {
    let (row, document) = (world.row()?, check::document(world, &commit)?);
    let bucket: std::sync::Arc<dyn ObjectStore> = world.far_store();
    let started_at = world.time();
    let problems = lockstep_bucket::verify_checkpoint(bucket.as_ref(), &document, &|_| ()).await.ok()?;
    if !problems.is_empty() {
        lockstep_bucket::still_stands(bucket.as_ref(), &commit).await.ok()?;
    }
    let (scope, rolling, bytes) = (Scope::All, false, CommitDocument::bytes(&document));
    let finding = Finding { pipeline: row.id, commit, scope, rolling, bytes, problems: problems.clone(), started_at };
    world.store().keep_verification(finding, &alice()).await.ok()?;
    Some(problems)
}

/// L2: in calm weather what is damaged is found by whoever looks, and its mark stands soon.
pub(crate) async fn finds_what_is_damaged(world: &World) -> Result<(), String> {
    for commit in check::damaged_and_unmarked(world) {
        match verify(world, commit).await {
            Some(problems) if !problems.is_empty() => {}
            // Retired meanwhile.
            None if !check::damaged_and_unmarked(world).contains(&commit) => {}
            found => {
                return Err(format!("L2: checkpoint {} is damaged, its verification found {found:?}", commit.round));
            }
        }
    }
    for _ in 0..120 {
        if check::damaged_and_unmarked(world).is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("L2: these are damaged and bear no mark: {:?}", check::damaged_and_unmarked(world)))
}
