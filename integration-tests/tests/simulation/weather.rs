//! How bad things are: the chances of a seed's faults, and how often each of them happened.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, distr::uniform::SampleRange, rngs::StdRng};

/// Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Weather(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    rng: StdRng,
    /// Of a call between a replica and an agent.
    wire: f64,
    counts: BTreeMap<&'static str, u64>,
}

/// What becomes of a call between a replica and an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Well,
    LoseRequest,
    LoseAnswer,
    /// It arrives, is answered, and arrives once more after this time.
    Twice(Duration),
    /// It arrives after this time; the caller has given up long before.
    Late(Duration),
}

/// Longest delay of a call, in milliseconds: longer than a lease, shorter than what L1 waits for.
pub(crate) const LATEST: u64 = 15_000;

impl Weather {
    pub(crate) fn new(seed: u64, wire: f64) -> Self {
        Self(Arc::new(Mutex::new(Inner { rng: StdRng::seed_from_u64(seed), wire, counts: BTreeMap::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn calm(&self) {
        self.inner().wire = 0.0;
    }

    pub(crate) fn millis(&self, range: impl SampleRange<u64>) -> Duration {
        Duration::from_millis(self.inner().rng.random_range(range))
    }

    pub(crate) fn uuid(&self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.inner().rng.random()).into_uuid()
    }

    /// A way of some milliseconds, in bad weather now and then of seconds.
    pub(crate) fn latency(&self) -> Duration {
        let mut inner = self.inner();
        let slow = inner.rng.random::<f64>() < inner.wire / 4.0;
        let most = if slow { 4_000 } else { 4 };
        if slow {
            *inner.counts.entry("slow").or_default() += 1;
        }
        Duration::from_millis(inner.rng.random_range(0..=most))
    }

    pub(crate) fn fate(&self) -> Fate {
        let mut inner = self.inner();
        let hit = inner.rng.random::<f64>() < inner.wire;
        let (which, after) = (inner.rng.random_range(0..4), Duration::from_millis(inner.rng.random_range(1..=LATEST)));
        if !hit {
            return Fate::Well;
        }
        let (name, fate) = match which {
            0 => ("call: request lost", Fate::LoseRequest),
            1 => ("call: answer lost", Fate::LoseAnswer),
            2 => ("call: twice", Fate::Twice(after)),
            _ => ("call: late", Fate::Late(after)),
        };
        *inner.counts.entry(name).or_default() += 1;
        fate
    }

    pub(crate) fn count(&self, fault: &'static str) {
        *self.inner().counts.entry(fault).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner().counts.clone()
    }
}
