//! A whole object store in memory: what it holds, what goes wrong with it, and how tests look at both.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use lockstep_protocol::location::Location;

use super::{
    MemoryStore,
    fault::{Fault, FaultRule, Faults},
    state::State,
};

/// How a server misbehaves, as real ones do (quality.md, "S3 servers differ").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// `If-None-Match` is ignored: a create overwrites and answers 200.
    pub create_overwrites: bool,
    /// `If-None-Match` is looked at before the write, not with it: a race has several winners.
    pub create_races: bool,
    /// Listings leave out what was written since the last one.
    pub stale_listing: bool,
    /// The first read after a write finds nothing.
    pub stale_read: bool,
    /// A missing key is 403: no right to list.
    pub missing_is_denied: bool,
}

/// A whole object store in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryBuckets(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(super) struct Inner {
    pub(super) state: State,
    pub(super) faults: Faults,
    pub(super) flaws: Flaws,
}

impl fmt::Debug for MemoryBuckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBuckets").finish_non_exhaustive()
    }
}

impl MemoryBuckets {
    /// With these buckets.
    pub fn new<'b>(buckets: impl IntoIterator<Item = &'b str>) -> Self {
        let new = Self::default();
        for bucket in buckets {
            new.inner().state.create_bucket(bucket);
        }
        new
    }

    /// Makes it misbehave.
    #[must_use]
    pub fn with_flaws(self, flaws: Flaws) -> Self {
        self.inner().flaws = flaws;
        self
    }

    /// A view of one location.
    pub fn store(&self, location: Location) -> MemoryStore {
        MemoryStore::new(self.clone(), location)
    }

    /// Adds a fault; rules are tried in the order they were added, the first that fits takes part.
    pub fn inject(&self, rule: FaultRule) {
        self.inner().faults.rules.push(rule);
    }

    /// From now on each request fails with this chance, in a way drawn from `seed`.
    pub fn random_faults(&self, seed: u64, chance: f64) {
        self.inner().faults.random(seed, chance);
    }

    /// No more faults. Late writes stay late.
    pub fn calm(&self) {
        self.inner().faults.calm();
    }

    /// How often each fault happened.
    pub fn fault_counts(&self) -> Vec<(Fault, u64)> {
        self.inner().faults.counts()
    }

    /// Writes that have not landed yet.
    pub fn late(&self) -> usize {
        self.inner().state.late.len()
    }

    /// Lands the `index`-th late write now; false: there is none.
    pub fn land(&self, index: usize) -> bool {
        let mut inner = self.inner();
        if index >= inner.state.late.len() {
            return false;
        }
        let change = inner.state.late.remove(index);
        let overwrites = inner.flaws.create_overwrites;
        inner.state.apply(&change, overwrites);
        true
    }

    /// Lands all late writes in the order they were sent.
    pub fn land_all(&self) {
        while self.land(0) {}
    }

    /// Full keys of a bucket that begin with `prefix`, past all faults.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.inner().state.keys(bucket, prefix)
    }

    /// An object's bytes, past all faults.
    pub fn read(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.inner().state.get(bucket, key).cloned()
    }

    /// Writes or removes an object, past all faults: destruction from outside.
    pub fn tamper(&self, bucket: &str, key: &str, bytes: Option<Bytes>) {
        self.inner().state.set(bucket, key, bytes);
    }

    /// Every write that changed a key's content after it had one: for S7. Hints and probes aside this stays empty.
    pub fn overwritten(&self) -> Vec<String> {
        self.inner().state.overwritten.clone()
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
