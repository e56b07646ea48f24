//! Faults of an object store in memory: by rule, or drawn from a seed.

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::error::Operation;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// 503; nothing happened.
    FailBefore,
    /// It happened; the answer is lost.
    LoseAnswer,
    /// No answer; a write lands when the test says so (`MemoryBuckets::land`), a read never happens.
    LandLate,
    /// It happened and was answered, and a write lands a second time when the test says so.
    Duplicate,
    /// 403; nothing happened.
    Deny,
    /// 503 `SlowDown`; nothing happened.
    Throttle,
    /// 409; nothing happened.
    Conflict,
    /// The body of an answer breaks off half way.
    Truncate,
}

impl Fault {
    /// Those that random faults are drawn from: all that a well-behaved store and network may do.
    const DRAWN: [Self; 7] = [
        Self::FailBefore,
        Self::LoseAnswer,
        Self::LandLate,
        Self::Duplicate,
        Self::Throttle,
        Self::Conflict,
        Self::Truncate,
    ];

    fn fits(self, operation: Operation, is_write: bool) -> bool {
        match self {
            Self::Truncate => matches!(operation, Operation::Get | Operation::GetRange),
            Self::Duplicate => is_write,
            Self::Conflict => operation == Operation::Create,
            _ => true,
        }
    }
}

/// Which requests a fault hits: every condition that is set must hold.
#[derive(Clone, Debug)]
pub struct FaultRule {
    operation: Option<Operation>,
    key_contains: Option<String>,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl FaultRule {
    /// Hits every request.
    pub const fn new(fault: Fault) -> Self {
        Self { operation: None, key_contains: None, skip: 0, times: u64::MAX, fault }
    }

    /// Only this operation.
    #[must_use]
    pub const fn operation(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only full keys or prefixes that contain this.
    #[must_use]
    pub fn key(mut self, contains: impl Into<String>) -> Self {
        self.key_contains = Some(contains.into());
        self
    }

    /// Spares the first this many.
    #[must_use]
    pub const fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Hits only this many.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn fits(&self, operation: Operation, key: &str) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation)
            && self.key_contains.as_ref().is_none_or(|part| key.contains(part.as_str()))
    }

    /// Counts a request that fits; true: it is hit.
    const fn hit(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times == 0 {
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) rules: Vec<FaultRule>,
    random: Option<(StdRng, f64)>,
    counts: BTreeMap<Fault, u64>,
}

impl Faults {
    pub(super) fn random(&mut self, seed: u64, chance: f64) {
        self.random = Some((StdRng::seed_from_u64(seed), chance));
    }

    pub(super) fn calm(&mut self) {
        self.rules.clear();
        self.random = None;
    }

    pub(super) fn counts(&self) -> Vec<(Fault, u64)> {
        self.counts.iter().map(|(&fault, &count)| (fault, count)).collect()
    }

    /// The fault of one request, if any. Truncation is drawn apart, by [`Faults::truncates`].
    pub(super) fn draw(&mut self, operation: Operation, key: &str, is_write: bool) -> Option<Fault> {
        let fault = self.by_rule(operation, key, |fault| fault != Fault::Truncate).or_else(|| {
            self.by_chance().filter(|fault| *fault != Fault::Truncate && fault.fits(operation, is_write))
        })?;
        *self.counts.entry(fault).or_default() += 1;
        Some(fault)
    }

    /// How often others go first. With random faults now and then a request is much slower than all others.
    pub(super) fn turns(&mut self) -> u32 {
        let Some((rng, _)) = self.random.as_mut() else { return 1 };
        let slow = rng.random_bool(0.1);
        if slow { rng.random_range(10..80) } else { rng.random_range(1..4) }
    }

    pub(super) fn truncates(&mut self, operation: Operation, key: &str) -> bool {
        let hit = self.by_rule(operation, key, |fault| fault == Fault::Truncate).is_some()
            || self.by_chance() == Some(Fault::Truncate);
        if hit {
            *self.counts.entry(Fault::Truncate).or_default() += 1;
        }
        hit
    }

    fn by_rule(&mut self, operation: Operation, key: &str, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        self.rules
            .iter_mut()
            .filter(|rule| wanted(rule.fault) && rule.fits(operation, key))
            .find_map(|rule| rule.hit().then_some(rule.fault))
    }

    fn by_chance(&mut self) -> Option<Fault> {
        let (rng, chance) = self.random.as_mut()?;
        // Two draws in any case: what a request draws doesn't depend on what the one before it drew.
        let (hit, which) = (rng.random::<f64>() < *chance, rng.random_range(0..Fault::DRAWN.len()));
        hit.then(|| Fault::DRAWN.get(which).copied()).flatten()
    }
}
