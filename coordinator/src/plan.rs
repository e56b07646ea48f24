//! What a round would do, found out without changing anything: planning of a push and resolving of a pull (protocol.md, "Push" 2, "Pull" 1).
//!
//! Agents are asked who they are and what they hold, the bucket is compared with the database, one cut or one source is chosen for all hosts. The
//! outcome is a value: dispatch makes an event of it, `validate_only` an answer. Every lookup has three outcomes; only *proven absent* moves on to
//! the next source or to a fresh start, and whatever is unknown is an error with its cause.
//!
//! - [`hosts`]: who is there, and what is on their disks
//! - [`place`]: one location, read with patience; [`known`]: what need not be read again
//! - [`draft`]: a round that nobody admitted
//! - [`push`]: the cut to push
//! - [`pull`]: the source to restore from
//! - [`activate`]: what an activation needs before its fence
//! - [`garbage`]: what may go from a location
//! - [`losses`]: what the database knows as committed and a location has lost

use std::{sync::Arc, time::Duration};

use lockstep_bucket::Connector;
use lockstep_protocol::problem::{Problem, Retryable};
use tokio::time::Instant;

use crate::{agents::AgentReads, chance};

pub mod activate;
pub mod draft;
mod expected;
pub mod garbage;
pub mod hosts;
pub mod known;
pub mod losses;
pub mod place;
pub mod pull;
pub mod push;
pub mod taken_over;

pub use known::Known;
pub use pull::{PullPlan, resolve_pull};
pub use push::{PushPlan, plan_push};

/// How long planning insists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanOptions {
    /// An agent that gave no answer for this long is unreachable. 30 s.
    pub unreachable_after: Duration,
    /// A store that fails in a way that may pass is asked again for this long. 10 s.
    pub store_patience: Duration,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { unreachable_after: Duration::from_secs(30), store_patience: Duration::from_secs(10) }
    }
}

/// Whether planning may finish a fence that has no base yet (F3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// Nothing is written: `validate_only`, and every location that is not the own one.
    Read,
    /// The base of a fence may be written in the pipeline's own location.
    FinishBase,
}

/// What planning works with.
#[derive(Clone, Debug)]
pub struct PlanContext {
    /// Opens locations.
    pub connector: Arc<dyn Connector>,
    /// Asks agents.
    pub agents: Arc<dyn AgentReads>,
    /// How long to insist.
    pub options: PlanOptions,
    /// In the own location.
    pub right: Right,
    /// What was read before and can't change.
    pub known: Arc<Known>,
}

/// Pauses between tries: each twice the last, jittered between half and all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackOff {
    next: Duration,
    max: Duration,
}

impl BackOff {
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// For calls to stores and agents.
    pub(crate) const fn of_calls() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let full = self.next.min(self.max);
        self.next = full.saturating_mul(2);
        full.mul_f64(chance::between(0.5..=1.0))
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

/// Repeats `read` while its failure may pass by itself, for at most `patience`.
pub(crate) async fn patiently<T, F>(patience: Duration, mut read: impl FnMut() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let until = Instant::now() + patience;
    let mut back_off = BackOff::of_calls();
    loop {
        match read().await {
            Err(problem) if problem.retryable() == Retryable::Yes && Instant::now() < until => {
                tracing::debug!(reason = %problem.reason, "trying again: {}", problem.message);
                tokio::time::sleep_until((Instant::now() + back_off.delay()).min(until)).await;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod pull_tests;
#[cfg(test)]
mod push_tests;
