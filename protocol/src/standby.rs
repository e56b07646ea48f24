//! What a standby does by itself: it follows its location's newest checkpoint, or the one it is pinned to, by pulls at `pull_interval` (protocol.md, vocabulary and
//! "Pull"; scenarios 24 to 28 and 30).
//!
//! Only what holds a [`Following`] may pull for a standby unasked, and only the standby's state makes one ([`Standing::following`]): of a pipeline that owns its location,
//! was told to stop or is being activated there is none, so no later change of the loop can pull over a running engine. Whatever comes between the value and the pull's
//! admission, admission finds out under the pipeline's row lock.
//!
//! A look says what the location's newest checkpoint is and what every host holds ([`Sighting`]); [`look`] says whether it is time for one. A pull that fails
//! changes nothing on the hosts: they keep the last good checkpoint, and the next try backs off.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    id::{LocalCheckpointId, PipelineId, RoundId},
    problem::Problem,
    round::later,
    selection::LocalCheckpoint,
    spec::PullSelector,
};

mod lag;

pub use lag::{Lag, Point, Sighting};

/// Of a spec without `pull_interval`.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// Wait after the first failure; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// However long pulls have failed, the location may be well again: a standby that waits longer is of no use.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How soon to look again at a pull that is under way.
const WHILE_RUNNING: Duration = Duration::from_secs(1);

/// What a pipeline is, as far as following goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Which.
    pub pipeline: PipelineId,
    /// It owns nothing by design, and was not activated.
    pub standby: bool,
    /// Somebody told it to stop.
    pub stopped: bool,
    /// The take-over that activates it.
    pub activation: Option<Uuid>,
    /// The one checkpoint it was told to stay on; none: the newest.
    pub pinned: Option<RoundId>,
}

/// The right to follow. There is no other way to make one than [`Standing::following`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Following {
    pipeline: PipelineId,
    pinned: Option<RoundId>,
}

impl Standing {
    /// None: it owns its location, was stopped, or is being activated.
    pub fn following(self) -> Option<Following> {
        let follows = self.standby && !self.stopped && self.activation.is_none();
        follows.then_some(Following { pipeline: self.pipeline, pinned: self.pinned })
    }
}

impl Following {
    /// Who follows.
    pub const fn pipeline(&self) -> PipelineId {
        self.pipeline
    }

    /// The checkpoint it stays on.
    pub const fn pinned(&self) -> Option<RoundId> {
        self.pinned
    }

    /// What a pull of it asks for.
    pub fn selector(&self) -> PullSelector {
        self.pinned.map_or(PullSelector::Latest, PullSelector::Checkpoint)
    }
}

/// What is remembered between looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowState {
    /// Nothing is done before this.
    pub due_at: DateTime<Utc>,
    /// Looks and pulls that failed since one succeeded.
    pub failures: u32,
    /// Why the last of them failed.
    pub problem: Option<Problem>,
    /// The ended pull that is reckoned in.
    pub seen: Option<RoundId>,
    /// What the last look saw.
    pub sighting: Sighting,
}

/// How a pull ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PullEnd {
    /// Every host has what was wanted.
    Installed,
    /// Somebody stopped it, or a newer pull took its place.
    GivenUp,
    /// With this cause.
    Failed(Problem),
}

/// The newest pull of a pipeline, whoever asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastPull {
    /// Which.
    pub round: RoundId,
    /// Whether the standby asked for it by itself.
    pub followed: bool,
    /// When and how it ended; none: it is still driven.
    pub end: Option<(DateTime<Utc>, PullEnd)>,
}

/// Whether to look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// Ask location and hosts.
    Now(FollowState),
    /// A pull runs, and how far behind it is was not looked at for an interval: ask the location alone.
    Lag(FollowState),
    /// Not yet.
    Wait(FollowState),
}

impl FollowState {
    /// Of a standby that was never looked at.
    pub fn new(now: DateTime<Utc>) -> Self {
        Self { due_at: now, failures: 0, problem: None, seen: None, sighting: Sighting::default() }
    }

    /// The hosts hold what is wanted, or nothing was ever pushed.
    #[must_use]
    pub fn up_to_date(self, sighting: Sighting, interval: Duration, now: DateTime<Utc>) -> Self {
        Self { due_at: later(now, interval), failures: 0, problem: None, sighting, ..self }
    }

    /// A pull was admitted, or another round is active; how it ends is reckoned in later.
    #[must_use]
    pub fn pulling(self, sighting: Sighting, now: DateTime<Utc>) -> Self {
        Self { due_at: later(now, WHILE_RUNNING), sighting, ..self }
    }

    /// Location or hosts could not be asked, or no pull could be admitted. `jitter` is in 0..=1000.
    #[must_use]
    pub fn failed(self, problem: Problem, now: DateTime<Utc>, jitter: u32) -> Self {
        let failures = self.failures.saturating_add(1);
        Self { due_at: later(now, retry_after(failures, jitter)), failures, problem: Some(problem), ..self }
    }
}

/// Whether it is time, given the newest pull. `jitter` is in 0..=1000.
pub fn look(state: FollowState, last: Option<&LastPull>, interval: Duration, now: DateTime<Utc>, jitter: u32) -> Look {
    let state = match last {
        Some(LastPull { end: None, .. }) => {
            let stale = state.sighting.at.is_none_or(|at| later(at, interval) <= now);
            let state = FollowState { due_at: later(now, WHILE_RUNNING), ..state };
            return if stale { Look::Lag(state) } else { Look::Wait(state) };
        }
        Some(last) if state.seen != Some(last.round) => reckon(state, last, interval, jitter),
        _ => state,
    };
    if state.due_at > now { Look::Wait(state) } else { Look::Now(state) }
}

fn reckon(state: FollowState, last: &LastPull, interval: Duration, jitter: u32) -> FollowState {
    let seen = Some(last.round);
    match &last.end {
        // Looked at again at once: what the hosts hold has changed.
        Some((at, PullEnd::Installed)) => FollowState { due_at: *at, failures: 0, problem: None, seen, ..state },
        Some((at, PullEnd::Failed(problem))) if last.followed => {
            FollowState { seen, ..state.failed(problem.clone(), *at, jitter) }
        }
        // Who cancels it wants it gone, not back at once.
        Some((at, PullEnd::GivenUp)) if last.followed => FollowState { due_at: later(*at, interval), seen, ..state },
        _ => FollowState { seen, ..state },
    }
}

/// 2 s after the first failure, then twice as long each time up to a minute; jittered between half and all of it.
fn retry_after(failures: u32, jitter: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(LONGEST_RETRY).mul_f64(0.5 + 0.5 * f64::from(jitter.min(1000)) / 1000.0)
}

/// What a checkpoint in S3 is made of, host by host, compared with what the hosts' disks hold.
pub fn is_held(parts: impl IntoIterator<Item = LocalCheckpointId>, disks: &[Vec<LocalCheckpoint>]) -> bool {
    let mut parts = parts.into_iter();
    let every = disks.iter().all(|disk| parts.next().is_some_and(|part| disk.iter().any(|local| local.id == part)));
    every && parts.next().is_none()
}
