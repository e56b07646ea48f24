//! Drawn operations on upkeep and retirements.

use std::time::Duration;

use lockstep_coordinator::store::AdmitUpkeep;
use lockstep_protocol::{
    commit::CommitRef,
    problem::{Problem, Reason},
    round::RetryPolicy,
    upkeep::{Outcome, Tally, Work},
};
use rand::{Rng as _, rngs::StdRng};

use super::{HOUR, Operation, World, lease, pick, request_id};

impl World {
    /// Of a pipeline that exists; mostly of one that owns its location.
    pub(super) fn upkeep(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let commits: Vec<CommitRef> =
            self.commits().filter(|(of, _)| *of == row.id).map(|(_, commit)| commit).collect();
        let commit = pick(rng, &commits).copied();
        Some(match rng.random_range(0..12) {
            0..=1 => {
                let work = match (rng.random_range(0..4), commit) {
                    (0, Some(commit)) => {
                        Work::Pin { commit, key: "pins/x.json".to_owned(), bytes: "a\0 pin".to_owned() }
                    }
                    (1, Some(commit)) => Work::Retire { commit },
                    (2, _) => Work::Unpin { keys: vec!["pins/x.json".to_owned()], documents: Vec::new() },
                    _ => Work::Collect,
                };
                Operation::AdmitUpkeep(AdmitUpkeep {
                    pipeline: self.selector(rng),
                    work,
                    request_id: request_id(rng),
                    at_least_apart: rng.random_bool(0.5).then_some(HOUR),
                    retry: RetryPolicy::default(),
                })
            }
            2..=3 => Operation::ClaimUpkeep(lease(rng), rng.random_range(1..3)),
            4..=5 if !self.upkeep.is_empty() => Operation::DriveUpkeep {
                nth: rng.random_range(0..1000),
                outcome: match rng.random_range(0..4) {
                    0 => None,
                    1 => {
                        Some(Outcome::Stopped { problem: Problem::new(Reason::StoreThrottled, "slow\0"), jitter: 500 })
                    }
                    2 => Some(Outcome::Stopped { problem: Problem::new(Reason::Fenced, "fenced"), jitter: 0 }),
                    _ => Some(Outcome::Done(None)),
                },
                tally: Tally { objects: rng.random_range(0..9), ..Tally::default() },
                stale: rng.random_bool(0.1),
            },
            6 => Operation::DueCollections(if rng.random_bool(0.5) { HOUR } else { Duration::ZERO }),
            7..=8 => {
                let generation = if rng.random_bool(0.9) { row.generation } else { row.generation.next() };
                Operation::Mark(row.id, generation, commits)
            }
            4 | 5 | 9 | 10 => Operation::SettleRetirement(row.id, commit?, rng.random_bool(0.6)),
            _ => Operation::CollectionView(row.id, self.round(rng).into_iter().collect()),
        })
    }
}
