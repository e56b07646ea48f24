//! Faults of a database in memory, drawn from a seed.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::store::pool::Access;

/// What goes wrong with a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StoreFault {
    /// No connection: nothing was written, and that is known.
    Unavailable,
    /// The request was lost: nothing was written, but nobody knows.
    LostBefore,
    /// The answer was lost: it was written, but nobody knows.
    LostAfter,
    /// The answer was lost, and the request reaches the database after this time, whatever was written meanwhile.
    LandsLate(Duration),
}

/// Longest delay of a request that lands late, in milliseconds: longer than a lease.
const LATEST: u64 = 12_000;

#[derive(Debug, Default)]
pub(super) struct Faults {
    random: Option<(StdRng, f64)>,
    /// Late ones count under a delay of zero.
    pub(super) counts: BTreeMap<StoreFault, u64>,
}

impl Faults {
    pub(super) fn random(&mut self, seed: u64, chance: f64) {
        self.random = Some((StdRng::seed_from_u64(seed), chance));
    }

    pub(super) fn calm(&mut self) {
        if let Some((_, chance)) = &mut self.random {
            *chance = 0.0;
        }
    }

    /// The fault of one transaction, and how long it takes before and after the moment that counts.
    pub(super) fn draw(&mut self, access: Access) -> (Option<StoreFault>, Duration, Duration) {
        let Some((rng, chance)) = &mut self.random else { return (None, Duration::ZERO, Duration::ZERO) };
        let slow = rng.random::<f64>() < *chance / 2.0;
        let most = if slow { 6_000 } else { 3 };
        let (before, after) = (rng.random_range(0..=most), rng.random_range(0..=most));
        let (hit, which, late) =
            (rng.random::<f64>() < *chance, rng.random_range(0..4_u8), rng.random_range(1..=LATEST));
        let fault = hit.then(|| match which {
            0 => StoreFault::Unavailable,
            1 => StoreFault::LostBefore,
            2 => StoreFault::LostAfter,
            _ if access == Access::Write => StoreFault::LandsLate(Duration::from_millis(late)),
            _ => StoreFault::LostAfter,
        });
        if let Some(fault) = fault {
            let counted = match fault {
                StoreFault::LandsLate(_) => StoreFault::LandsLate(Duration::ZERO),
                fault => fault,
            };
            *self.counts.entry(counted).or_default() += 1;
        }
        (fault, Duration::from_millis(before), Duration::from_millis(after))
    }
}
