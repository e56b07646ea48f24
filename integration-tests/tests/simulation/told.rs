//! What became of a run.

use std::{collections::BTreeMap, time::Duration};

use lockstep_coordinator::store::memory::StoreFault;
use lockstep_protocol::{problem::Problem, round::Kind};

use crate::world::World;

/// What a run came to.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Told {
    /// How often each fault happened.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Rounds by kind and phase, or by the reason of a failure.
    pub(crate) rounds: BTreeMap<String, u64>,
    /// From the last fault until every round was terminal.
    pub(crate) recovery: Duration,
    /// Virtual.
    pub(crate) took: Duration,
}

impl Told {
    /// What became of a world.
    pub(crate) fn of(world: &World, recovery: Duration, took: Duration) -> Self {
        let mut told = Self { recovery, took, ..Self::default() };
        for (fault, count) in world.weather.counts() {
            told.faults.insert(fault.to_owned(), count);
        }
        for (fault, count) in world.database.fault_counts() {
            told.faults.insert(format!("database: {}", name_of(fault)), count);
        }
        for (fault, count) in world.buckets.fault_counts() {
            told.faults.insert(format!("bucket: {fault:?}"), count);
        }
        for record in world.database.rounds() {
            let kind = if matches!(record.round.kind, Kind::Push(_)) { "push" } else { "pull" };
            let reason = |problem: &Problem| problem.reason.to_string();
            let why = record.round.problem.as_ref().map_or_else(|| record.round.phase.to_string(), reason);
            *told.rounds.entry(format!("{kind} {why}")).or_default() += 1;
        }
        told
    }
}

/// Without how late.
const fn name_of(fault: StoreFault) -> &'static str {
    match fault {
        StoreFault::Unavailable => "unavailable",
        StoreFault::LostBefore => "request lost",
        StoreFault::LostAfter => "answer lost",
        StoreFault::LandsLate(_) => "request late",
    }
}
