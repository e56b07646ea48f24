//! One host's row in a round, and how its attempts follow each other.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Kind, Phase, Round, Transition, Work};
use crate::{
    commit::CommitPart,
    id::{Attempt, Incarnation, LocalCheckpointId},
    planted::{self, Bug},
    problem::{Problem, Reason, Retryable},
};

/// Where one host of a round stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParticipantPhase {
    /// Before the plan, or the source of a pull was retired and another one is being chosen: no order stands. Next: `Ordered`, or `Staged` when the local source was chosen.
    Waiting,
    /// The order of this attempt stands for this incarnation. Remains until the agent reports, the attempt fails, or the agent can't be
    /// reached for too long. Next: `Done`, `Staged`, `Installed`, `BackingOff`, `Failed`.
    Ordered,
    /// The attempt failed in a way that a later one may not. Remains until `retry_at`, and until the host was described. Next: `Ordered`.
    BackingOff,
    /// Push: the part is in S3 and reported by the attempt and incarnation of this row (S8).
    Done,
    /// Pull: everything is on the host's disk, not visible to the engine. Next: `Installed`, or `BackingOff` if the host lost it.
    Staged,
    /// Pull: the engine sees exactly this checkpoint.
    Installed,
    /// No further attempt; the round fails with it.
    Failed,
}

impl ParticipantPhase {
    /// Every phase.
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Ordered, Self::BackingOff, Self::Done, Self::Staged, Self::Installed, Self::Failed];

    /// As rows and audit events carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ordered => "ordered",
            Self::BackingOff => "backing_off",
            Self::Done => "done",
            Self::Staged => "staged",
            Self::Installed => "installed",
            Self::Failed => "failed",
        }
    }

    /// Back from [`ParticipantPhase::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text)
    }
}

/// One host's row in one round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Participant {
    /// Its slot.
    pub host_idx: u32,
    /// Where its agent is, frozen at admission.
    pub address: String,
    /// Where it stands.
    pub phase: ParticipantPhase,
    /// Present try. `FIRST` while waiting.
    pub attempt: Attempt,
    /// The process that the present try is for.
    pub incarnation: Option<Incarnation>,
    /// Its share of the cut.
    pub local_checkpoint: Option<LocalCheckpointId>,
    /// Push: what the present try reported.
    pub part: Option<CommitPart>,
    /// While backing off.
    pub retry_at: Option<DateTime<Utc>>,
    /// Last error, also of an attempt that is being retried.
    pub problem: Option<Problem>,
}

impl Participant {
    /// A host that nothing was asked of yet.
    pub const fn waiting(host_idx: u32, address: String) -> Self {
        Self {
            host_idx,
            address,
            phase: ParticipantPhase::Waiting,
            attempt: Attempt::FIRST,
            incarnation: None,
            local_checkpoint: None,
            part: None,
            retry_at: None,
            problem: None,
        }
    }
}

/// How attempts are retried.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts of one host in one round before it fails for good.
    pub max_attempts: u32,
    /// Back-off after the first failure; doubles each time.
    pub base: Duration,
    /// Longest back-off.
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 5, base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

impl RetryPolicy {
    /// Back-off after `failures` failures (from 1): exponential, jittered between half and all of it by `jitter` in 0..=1000, so that hosts which failed
    /// together don't come back together.
    pub fn delay(&self, failures: u32, jitter: u32) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        let full = doubled.min(self.max);
        full.mul_f64(0.5 + 0.5 * f64::from(jitter.min(1000)) / 1000.0)
    }
}

pub(crate) fn later(now: DateTime<Utc>, delay: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(delay).ok().and_then(|delta| now.checked_add_signed(delta)).unwrap_or(now)
}

/// Whether every host of a round stands there.
pub(super) fn all_in(round: &Round, phase: ParticipantPhase) -> bool {
    let mut stands = round.participants.iter().map(|participant| participant.phase == phase);
    if planted::is(Bug::SuccessAtTheFirstHost) {
        return stands.any(|stands| stands);
    }
    stands.all(|stands| stands)
}

fn retired_sources(round: &Round) -> u32 {
    match &round.kind {
        Kind::Pull(pull) => u32::try_from(pull.retired.len()).unwrap_or(u32::MAX),
        Kind::Push(_) => 0,
    }
}

/// Whether a round may still give a host up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Attempts are counted; what can't be retried fails the round.
    Bounded,
    /// Only forward (`Installing`): every failure is retried.
    Forever,
}

impl Work {
    pub(super) fn participant(&mut self, host_idx: u32) -> Option<&mut Participant> {
        self.round.participants.get_mut(usize::try_from(host_idx).ok()?)
    }

    pub(super) fn move_host(&mut self, host_idx: u32, to: ParticipantPhase, cause: impl Into<String>) {
        if let Some(participant) = self.participant(host_idx) {
            let from = participant.phase.as_str();
            participant.phase = to;
            self.transitions.push(Transition { host_idx: Some(host_idx), from, to: to.as_str(), cause: cause.into() });
        }
    }

    pub(super) fn all_in(&self, phase: ParticipantPhase) -> bool {
        all_in(&self.round, phase)
    }

    /// Whether a report speaks for the present try of its host (S8).
    pub(super) fn is_present(&mut self, host_idx: u32, attempt: Attempt, incarnation: Incarnation) -> bool {
        self.participant(host_idx).is_some_and(|p| {
            (p.attempt == attempt || planted::is(Bug::AttemptNotComparedInReports))
                && (p.incarnation == Some(incarnation) || planted::is(Bug::IncarnationNotCompared))
        })
    }

    /// An attempt failed: back off, or give the round up.
    pub(super) fn host_failed(
        &mut self,
        host_idx: u32,
        attempt: Attempt,
        problem: &Problem,
        now: DateTime<Utc>,
        jitter: u32,
        persistence: Persistence,
    ) {
        let policy = self.round.retry;
        // An attempt whose source was retired is none that failed.
        let failures = attempt.get().saturating_sub(retired_sources(&self.round));
        let Some(participant) = self.participant(host_idx) else { return };
        let problem =
            problem.clone().with("host_idx", host_idx).with("attempt", attempt).with("address", &participant.address);
        participant.problem = Some(problem.clone());
        participant.part = None;
        let again = match persistence {
            Persistence::Forever => true,
            Persistence::Bounded => problem.retryable() == Retryable::Yes && failures < policy.max_attempts,
        };
        if again {
            participant.retry_at = Some(later(now, policy.delay(failures, jitter)));
            self.move_host(host_idx, ParticipantPhase::BackingOff, format!("attempt {attempt}: {problem}"));
        } else {
            self.move_host(host_idx, ParticipantPhase::Failed, format!("attempt {attempt}: {problem}"));
            let mut overall = problem;
            overall.message = format!("host {host_idx}, attempt {attempt}: {}", overall.message);
            self.fail(overall);
        }
    }

    /// A host that backed off answered: the next attempt is for its present process.
    pub(super) fn host_ready(&mut self, host_idx: u32, attempt: Attempt, incarnation: Incarnation) {
        let installing = self.round.phase == Phase::Installing;
        let Some(participant) = self.participant(host_idx) else { return };
        if participant.phase != ParticipantPhase::BackingOff || participant.attempt != attempt {
            return;
        }
        participant.attempt = attempt.next();
        participant.incarnation = Some(incarnation);
        participant.retry_at = None;
        let next = participant.attempt;
        let lost = participant.problem.as_ref().is_some_and(|problem| problem.reason == Reason::CheckpointNotFound);
        if installing && (!lost || planted::is(Bug::LostHostIsNotPulledAgain)) {
            // It may well have it still: install is tried first, and says CHECKPOINT_NOT_FOUND where it hasn't.
            self.move_host(
                host_idx,
                ParticipantPhase::Staged,
                format!("attempt {next}: incarnation {incarnation} is asked to install"),
            );
        } else {
            self.move_host(
                host_idx,
                ParticipantPhase::Ordered,
                format!("attempt {next} for incarnation {incarnation}"),
            );
        }
    }
}
