//! How often and how long a request is repeated: by what its failure says, with jitter, and within a budget that all requests of a transfer share, so that a store in trouble
//! isn't buried in repetitions. The coordinator's attempts come on top: these are for hiccups, those for trouble.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lockstep_bucket::error::{StoreError, StoreErrorKind};
use rand::Rng;
use tokio::time::Instant;

use crate::progress::Progress;

/// Repetitions that a transfer may make at once; each answer earns a part of one back.
const BUDGET: f64 = 64.0;
const EARNED: f64 = 0.2;

/// How one class of failures is met.
#[derive(Clone, Copy, Debug)]
struct Class {
    first: Duration,
    longest: Duration,
    tries: u32,
    /// Since the first failure in a row.
    patience: Duration,
    /// Whether a repetition costs of the budget.
    costs: bool,
}

/// The store is well and asks for less: what is lost by waiting is only time, and the window makes requests fewer.
const THROTTLED: Class = Class {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(10),
    tries: u32::MAX,
    patience: Duration::from_secs(300),
    costs: false,
};

/// No answer, or one of trouble.
const UNAVAILABLE: Class = Class {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    tries: 8,
    patience: Duration::from_secs(60),
    costs: true,
};

/// Other bytes than announced: what flips bits once does it seldom twice, and what lies goes on.
const WRONG: Class = Class {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(1),
    tries: 3,
    patience: Duration::from_secs(60),
    costs: true,
};

const fn class(error: &StoreError) -> Option<Class> {
    match error.kind {
        StoreErrorKind::Throttled => Some(THROTTLED),
        StoreErrorKind::Unavailable | StoreErrorKind::Conflict => Some(UNAVAILABLE),
        // The next request is signed by the server's clock.
        StoreErrorKind::Integrity | StoreErrorKind::ClockSkew => Some(WRONG),
        StoreErrorKind::Denied
        | StoreErrorKind::NotFound
        | StoreErrorKind::Precondition
        | StoreErrorKind::BadRequest
        | StoreErrorKind::TooLarge => None,
    }
}

/// Repetitions that a transfer has left.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<f64>);

impl Budget {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(BUDGET)))
    }

    fn take(&self) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }

    /// A request was answered.
    pub(crate) fn earn(&self) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (*left + EARNED).min(BUDGET);
    }
}

/// The failures of one request in a row.
#[derive(Debug)]
pub(crate) struct Patience {
    budget: Arc<Budget>,
    progress: Arc<Progress>,
    failures: u32,
    since: Option<Instant>,
}

impl Patience {
    pub(crate) const fn new(budget: Arc<Budget>, progress: Arc<Progress>) -> Self {
        Self { budget, progress, failures: 0, since: None }
    }

    /// Waits until it is time to try again; gives the error back if it isn't worth it.
    pub(crate) async fn after(&mut self, error: StoreError) -> Result<(), StoreError> {
        let wait = match self.wait(&error, Instant::now()) {
            Some(wait) => wait.mul_f64(rand::rng().random_range(0.5..1.0)),
            None => return Err(error),
        };
        if error.kind == StoreErrorKind::Throttled {
            self.progress.throttled();
        }
        tracing::debug!(%error, ms = wait.as_millis(), failures = self.failures, "trying again");
        metrics::counter!("lockstep_agent_request_retries_total", "kind" => error.kind.as_str()).increment(1);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// None: give up.
    fn wait(&mut self, error: &StoreError, now: Instant) -> Option<Duration> {
        let class = class(error)?;
        let since = *self.since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        let exhausted = self.failures >= class.tries || now.duration_since(since) >= class.patience;
        if exhausted || (class.costs && !self.budget.take()) {
            return None;
        }
        // 2^16 times the first is beyond every longest.
        let doubled = class.first.saturating_mul(1 << (self.failures - 1).min(16));
        Some(doubled.min(class.longest))
    }

    /// It moved: failures from now on are the first ones in a row.
    pub(crate) const fn progressed(&mut self) {
        self.failures = 0;
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use lockstep_bucket::error::Operation;

    use super::*;

    fn error(status: Option<u16>, code: Option<&str>) -> StoreError {
        StoreError::answered(Operation::Put, ("bucket", "key"), status, code, "")
    }

    fn patience(budget: Arc<Budget>) -> Patience {
        Patience::new(budget, Arc::new(Progress::new()))
    }

    #[test]
    fn waits_double_up_to_their_longest_and_tries_end() {
        let mut request = patience(Budget::new());
        let now = Instant::now();
        let waits: Vec<u128> =
            std::iter::from_fn(|| request.wait(&error(Some(500), None), now)).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000]);
    }

    #[test]
    fn a_store_that_asks_to_slow_down_is_waited_for_well_beyond_a_minute() {
        let mut request = patience(Budget::new());
        let mut now = Instant::now();
        let begin = now;
        while let Some(wait) = request.wait(&error(Some(503), Some("SlowDown")), now) {
            now += wait;
        }
        assert!((now - begin) >= Duration::from_secs(300), "{:?}", now - begin);
    }

    #[test]
    fn what_somebody_must_mend_is_not_tried_again() {
        for refusal in [error(Some(403), Some("AccessDenied")), error(Some(404), Some("NoSuchBucket"))] {
            assert_eq!(patience(Budget::new()).wait(&refusal, Instant::now()), None);
        }
    }

    #[test]
    fn progress_makes_the_next_failure_the_first_and_the_budget_is_shared() {
        let budget = Budget::new();
        let now = Instant::now();
        let mut request = patience(Arc::clone(&budget));
        let mut tries = 0;
        while request.wait(&error(None, None), now).is_some() {
            request.progressed();
            tries += 1;
        }
        assert_eq!(tries, 64, "the budget");
        assert_eq!(patience(Arc::clone(&budget)).wait(&error(None, None), now), None, "nobody has any left");
        for _ in 0..5 {
            budget.earn();
        }
        assert!(patience(budget).wait(&error(None, None), now).is_some(), "five answers earn one");
    }
}
