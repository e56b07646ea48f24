//! When a pipeline is pushed by itself: `push_interval` after the end of its last push (interfaces.md, scenarios 5, 6 and 9).
//!
//! Remembered is when to look next, and how many periodic pushes have failed since one succeeded. [`look`] folds in what became of the last push and
//! says whether it is time; what came of the look is the next value.
//!
//! Hosts make their checkpoints one after the other, and a look may fall between two of them: [`PushSchedule::apart`].

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::{
    id::RoundId,
    planted::{self, Bug},
    problem::{Problem, Reason},
    round::later,
};

/// Wait after the first failure; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// A pipeline with a shorter interval still backs off this far.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// The part of an interval by which pushes of many pipelines are spread: a twentieth, at most 30 s.
const SPREAD: u32 = 20;
const LONGEST_SPREAD: Duration = Duration::from_secs(30);

/// What is remembered of one pipeline's schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushSchedule {
    /// Nothing is done before this.
    pub due_at: DateTime<Utc>,
    /// Periodic pushes that failed since a push was committed or nothing was to be pushed.
    pub failures: u32,
    /// Why the last of them failed, or why nothing could be pushed at the last look, which alone is no failure.
    pub problem: Option<Problem>,
    /// The ended push that is reckoned in.
    pub seen: Option<RoundId>,
}

/// How a push ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PushEnd {
    /// Its commit stands.
    Committed,
    /// Somebody stopped it.
    Cancelled,
    /// With this cause.
    Failed(Problem),
}

/// The newest push of a pipeline, whoever asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastPush {
    /// Which.
    pub round: RoundId,
    /// Whether the schedule asked for it.
    pub periodic: bool,
    /// When and how it ended; none: it is still driven.
    pub end: Option<(DateTime<Utc>, PushEnd)>,
}

/// What to do at a look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// Ask the hosts, and push what is new.
    Push(PushSchedule),
    /// Not yet.
    Wait(PushSchedule),
}

impl PushSchedule {
    /// Of a pipeline that was never looked at.
    pub const fn new(now: DateTime<Utc>) -> Self {
        Self { due_at: now, failures: 0, problem: None, seen: None }
    }

    /// A push was admitted; how it ends is reckoned in later.
    #[must_use]
    pub fn admitted(self, interval: Duration, now: DateTime<Utc>) -> Self {
        let problem = self.problem.filter(|_| self.failures > 0);
        Self { due_at: later(now, soon(interval)), problem, ..self }
    }

    /// The hosts hold checkpoints, but none in common, as `problem` tells. The first time the look fell between the checkpoints of two hosts as likely as
    /// not: they are asked once more soon. From the second time on it is a failure, with its back-off; a round would only find the same.
    #[must_use]
    pub fn apart(self, problem: Problem, interval: Duration, now: DateTime<Utc>, jitter: u32) -> Self {
        if self.problem.as_ref().is_some_and(|last| last.reason == Reason::NoCommonCheckpoint) {
            return self.refused(problem, interval, now, jitter);
        }
        Self { due_at: later(now, soon(interval)), problem: Some(problem), ..self }
    }

    /// The hosts have nothing that isn't the newest commit already, or nothing at all yet.
    #[must_use]
    pub fn nothing_new(self, interval: Duration, now: DateTime<Utc>) -> Self {
        Self { due_at: later(now, interval), failures: 0, problem: None, ..self }
    }

    /// No push could be admitted. `jitter` is in 0..=1000.
    #[must_use]
    pub fn refused(self, problem: Problem, interval: Duration, now: DateTime<Utc>, jitter: u32) -> Self {
        let failures = self.failures.saturating_add(1);
        Self { due_at: later(now, retry_after(failures, interval, jitter)), failures, problem: Some(problem), ..self }
    }
}

/// Whether it is time, given the newest push. `jitter` is in 0..=1000.
pub fn look(
    schedule: PushSchedule,
    last: Option<&LastPush>,
    interval: Duration,
    now: DateTime<Utc>,
    jitter: u32,
) -> Look {
    let schedule = match last {
        Some(LastPush { end: None, .. }) => {
            return Look::Wait(PushSchedule { due_at: later(now, soon(interval)), ..schedule });
        }
        Some(last) if schedule.seen != Some(last.round) => reckon(schedule, last, interval, jitter),
        _ => schedule,
    };
    if schedule.due_at > now { Look::Wait(schedule) } else { Look::Push(schedule) }
}

fn reckon(schedule: PushSchedule, last: &LastPush, interval: Duration, jitter: u32) -> PushSchedule {
    let seen = Some(last.round);
    match &last.end {
        Some((at, PushEnd::Committed)) => {
            PushSchedule { due_at: later(*at, interval + spread(interval, jitter)), failures: 0, problem: None, seen }
        }
        Some((at, PushEnd::Failed(problem))) if last.periodic => {
            PushSchedule { seen, ..schedule.refused(problem.clone(), interval, *at, jitter) }
        }
        // Who cancels a periodic push wants it gone, not back at once.
        Some((at, PushEnd::Cancelled)) if last.periodic => {
            PushSchedule { due_at: later(*at, interval), seen, ..schedule }
        }
        // A push by hand that came to nothing changes nothing for the schedule.
        _ => PushSchedule { seen, ..schedule },
    }
}

/// How soon to look again at what won't last: a push that is under way, hosts that are not at one step yet.
fn soon(interval: Duration) -> Duration {
    (interval / 10).clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// 5 s after the first failure, then twice as long each time up to the interval or 5 min, whichever is longer; jittered between half and all of it.
fn retry_after(failures: u32, interval: Duration, jitter: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    if planted::is(Bug::ScheduleWithoutBackOff) {
        return Duration::ZERO;
    }
    let full = doubled.min(interval.max(LONGEST_RETRY));
    full.mul_f64(0.5 + 0.5 * f64::from(jitter.min(1000)) / 1000.0)
}

fn spread(interval: Duration, jitter: u32) -> Duration {
    (interval / SPREAD).min(LONGEST_SPREAD).mul_f64(f64::from(jitter.min(1000)) / 1000.0)
}
