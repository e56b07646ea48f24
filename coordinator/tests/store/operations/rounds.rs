//! Drawn operations on rounds: which one, its admission, who holds it, what it moves by.

use std::{collections::BTreeMap, time::Duration};

use lockstep_coordinator::store::{AdmitPull, AdmitPush, FoundCut, HostProgress, PipelineRow, Trigger};
use lockstep_protocol::{
    id::{Attempt, RoundId, Step, Term},
    round::{Round, WantedCut},
};
use rand::{Rng as _, rngs::StdRng};

use super::{HOUR, Operation, Snapshot, World, events::Events, pick, request_id, step};
use crate::rig::{FINGERPRINT, local, pull, push};

impl World {
    /// One that may still change, or any.
    pub(super) fn round(&self, rng: &mut StdRng) -> Option<RoundId> {
        let last = |told: &Vec<[Round; 2]>| told.last().map(|pair| pair[1].clone());
        let active: Vec<_> = self
            .rounds
            .iter()
            .filter(|(_, told)| last(told).is_some_and(|round| !round.phase.is_terminal()))
            .map(|(id, _)| *id)
            .collect();
        let all: Vec<_> = self.rounds.keys().copied().collect();
        let from = if active.is_empty() || rng.random_bool(0.05) { &all } else { &active };
        pick(rng, from).copied()
    }

    pub(super) fn held(&self, rng: &mut StdRng) -> Vec<(RoundId, Term)> {
        let mut held = BTreeMap::new();
        for _ in 0..rng.random_range(1..3) {
            if let Some(id) = self.round(rng) {
                let term = self.rounds[&id].last().unwrap()[1].term;
                held.insert(id, if rng.random_bool(0.2) { term.next() } else { term });
            }
        }
        held.into_iter().collect()
    }

    pub(super) fn push(&self, rng: &mut StdRng) -> AdmitPush {
        let wanted = match rng.random_range(0..4) {
            0 => WantedCut::Step(Step::new(step(rng)).unwrap()),
            1 => WantedCut::Local(local(step(rng), 0)),
            _ => WantedCut::Newest,
        };
        let found = rng.random_bool(0.2).then(|| {
            let step = step(rng);
            FoundCut {
                step: Step::new(step).unwrap(),
                fingerprint: Some(FINGERPRINT),
                local_checkpoints: (0..rng.random_range(1..4)).map(|host| local(step, host)).collect(),
            }
        });
        let like = self.any_row(rng).map(push);
        let deadline = if rng.random_bool(0.02) { Duration::MAX } else { HOUR };
        AdmitPush {
            pipeline: self.selector(rng),
            wanted,
            force: rng.random_bool(0.2),
            trigger: if rng.random_bool(0.3) { Trigger::Periodic } else { Trigger::Manual },
            found,
            request_id: request_id(rng),
            deadline,
            retry: like.map_or_else(Default::default, |like| like.retry),
        }
    }

    pub(super) fn pull(&self, rng: &mut StdRng) -> AdmitPull {
        let mut request = self.any_row(rng).map_or(
            lockstep_protocol::round::PullRequest {
                selector: lockstep_protocol::spec::PullSelector::Latest,
                standby: false,
                fail_if_none: false,
                allow_fingerprint: false,
                discard_local: false,
            },
            |row| pull(row).request,
        );
        request.standby = rng.random_bool(0.3);
        AdmitPull {
            follows: rng.random_bool(0.2).then(|| rng.random_range(0..6)),
            pipeline: self.selector(rng),
            request,
            request_id: request_id(rng),
            deadline: HOUR,
            retry: Default::default(),
        }
    }

    pub(super) fn progress(&self, rng: &mut StdRng) -> Option<Operation> {
        let id = self.round(rng)?;
        let term = self.rounds[&id].last()?[1].term;
        let hosts = (0..rng.random_range(1..4)).map(|host_idx| HostProgress {
            host_idx,
            attempt: Attempt::new(rng.random_range(1..3)).unwrap(),
            bytes_done: rng.random_range(0..100),
            bytes_total: rng.random_bool(0.5).then_some(100),
            files_done: 1,
            files_total: None,
            bytes_transferred: 3,
            bytes_per_second: 9,
        });
        let hosts = hosts.collect();
        Some(Operation::Progress(id, if rng.random_bool(0.2) { term.next() } else { term }, hosts))
    }

    pub(super) fn apply(&self, rng: &mut StdRng) -> Option<Operation> {
        let round = self.round(rng)?;
        let told = self.rounds[&round].len();
        let ago = if rng.random_bool(0.1) { rng.random_range(0..told) } else { 0 };
        Some(Operation::Apply {
            snapshot: Snapshot { round, ago },
            events: Events { sort: rng.random_range(0..100), step: step(rng), host: rng.random_range(0..3) },
            stale_version: rng.random_bool(0.05),
            stale_term: rng.random_bool(0.05),
        })
    }

    fn any_row(&self, rng: &mut StdRng) -> Option<&PipelineRow> {
        pick(rng, &self.pipelines)
    }
}
