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
        for (fault, count) in world.buckets.fault_counts() {
            told.faults.insert(format!("bucket: {fault:?}"), count);
        }
        told.add(world, "");
        told
    }

    /// What became of the pipeline that wanted the location too.
    pub(crate) fn add_rival(&mut self, world: &World) {
        self.add(world, "heir: ");
    }

    fn add(&mut self, world: &World, whose: &str) {
        for (fault, count) in world.database.fault_counts() {
            *self.faults.entry(format!("database: {}", name_of(fault))).or_default() += count;
        }
        for record in world.database.rounds() {
            let kind = if matches!(record.round.kind, Kind::Push(_)) { "push" } else { "pull" };
            let reason = |problem: &Problem| problem.reason.to_string();
            let why = record.round.problem.as_ref().map_or_else(|| record.round.phase.to_string(), reason);
            *self.rounds.entry(format!("{whose}{kind} {why}")).or_default() += 1;
        }
        for upkeep in world.database.upkeep() {
            let (what, phase, tally) = (upkeep.work.as_str(), upkeep.phase.as_str(), upkeep.tally);
            *self.rounds.entry(format!("{whose}{what} {phase}")).or_default() += 1;
            for (what, count) in
                [("retired", tally.retired), ("swept", tally.swept), ("deleted objects", tally.objects)]
            {
                *self.rounds.entry(format!("{whose}{what}")).or_default() += count;
            }
        }
        for take_over in world.database.take_overs() {
            let (what, phase) = (take_over.purpose.as_str(), take_over.phase);
            *self.rounds.entry(format!("{whose}{what} {phase}")).or_default() += 1;
        }
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
