//! Drawn operations on what happens by itself: schedules of pushes, and what standbys follow.

use chrono::DateTime;
use lockstep_coordinator::store::{DuePush, DueStandby, PipelineRow, PipelineSelector};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    id::{Generation, RoundId, Seq, Step},
    problem::{Problem, Reason},
    schedule::PushSchedule,
    standby::{FollowState, Point, Sighting, Standing},
};
use rand::{Rng as _, rngs::StdRng};

use super::{Operation, World, pick, uuid};

impl World {
    /// Of a look that may be long over.
    pub(super) fn save_schedule(&self, rng: &mut StdRng) -> Option<Operation> {
        let row = pick(rng, &self.pipelines)?;
        let due_at = DateTime::from_timestamp(if rng.random_bool(0.5) { 1_000_000_000 } else { 9_000_000_000 }, 0)?;
        let schedule = PushSchedule {
            failures: rng.random_range(0..3),
            problem: rng.random_bool(0.5).then(|| Problem::new(Reason::NoSpace, "full\0").with("k", "v\0")),
            seen: self.round(rng),
            ..PushSchedule::new(due_at)
        };
        let due = DuePush { pipeline: row.id, schedule: schedule.clone(), version: rng.random_range(0..4) };
        Some(Operation::SaveSchedule(due, schedule))
    }

    /// Mostly one that is a standby, or was fenced and may become one.
    pub(super) fn standby(&self, rng: &mut StdRng) -> Option<PipelineSelector> {
        let may_follow = |row: &&PipelineRow| row.claim.as_str() == "standby" || row.fenced.is_some();
        let standbys: Vec<_> = self.pipelines.iter().filter(may_follow).collect();
        let row = pick(rng, &standbys)?;
        Some(if rng.random_bool(0.9) { row.id.into() } else { self.selector(rng) })
    }

    /// Of a look that may be long over.
    pub(super) fn save_follow_state(&self, rng: &mut StdRng) -> Option<Operation> {
        let PipelineSelector::Id(pipeline) = self.standby(rng)? else { return None };
        let due_at = DateTime::from_timestamp(if rng.random_bool(0.5) { 1_000_000_000 } else { 9_000_000_000 }, 0)?;
        let commit = CommitRef {
            generation: Generation::FIRST,
            seq: Seq::FIRST,
            round: RoundId::new(uuid(rng)),
            digest: Digest::of(b"commit"),
        };
        let point = Point { commit, step: Step::new(rng.random_range(0..9)).ok()?, at: due_at };
        let state = FollowState {
            failures: rng.random_range(0..3),
            problem: rng.random_bool(0.5).then(|| Problem::new(Reason::NoSpace, "full\0").with("k", "v\0")),
            seen: self.round(rng),
            sighting: Sighting::default().next(rng.random_bool(0.7).then_some(point), None, 7, due_at),
            ..FollowState::new(due_at)
        };
        let standing = Standing { pipeline, standby: true, stopped: false, activation: None, pinned: None };
        let due =
            DueStandby { following: standing.following()?, state: state.clone(), version: rng.random_range(0..6) };
        Some(Operation::SaveFollowState(Box::new((due, state))))
    }
}
