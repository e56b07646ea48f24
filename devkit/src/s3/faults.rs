//! Faults on request: rules that say which requests go wrong, and how.
//!
//! Rules are tried in the order they were added, and every rule that matches takes part: delays add up, and the first
//! rule that ends a request ends it. The same rules as JSON go over HTTP (see the module `control`):
//!
//! ```json
//! {"operation": "PutObject", "key_prefix": "orders/", "skip": 1, "times": 2, "action": {"kind": "reset_after_write"}}
//! ```

mod action;
mod rule;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use action::FaultAction;
pub use rule::FaultRule;

use super::operation::Target;

/// A rule and what it did so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FaultStatus {
    /// As [`Faults::add`] returned it.
    pub id: u64,
    pub rule: FaultRule,
    /// Requests that matched, spared ones included.
    pub matched: u64,
    /// Requests that were hit.
    pub hits: u64,
}

/// The fault rules of a server. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    next: u64,
    rules: Vec<Active>,
    random: StdRng,
}

#[derive(Debug)]
struct Active {
    status: FaultStatus,
    first_hit: Option<Instant>,
    removed: CancellationToken,
}

/// A rule that hits the request at hand.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) rule: u64,
    pub(crate) action: FaultAction,
    /// Cancelled when the rule is removed.
    pub(crate) removed: CancellationToken,
}

impl Default for Faults {
    fn default() -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { next: 1, rules: Vec::new(), random: StdRng::seed_from_u64(0) })) }
    }
}

impl Faults {
    /// Adds a rule, for requests that arrive from now on, and returns its id.
    pub fn add(&self, rule: FaultRule) -> u64 {
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let status = FaultStatus { id, rule, matched: 0, hits: 0 };
        inner.rules.push(Active { status, first_hit: None, removed: CancellationToken::new() });
        id
    }

    /// Removes a rule and lets go of the requests that hang on it. `false` if there is none.
    pub fn remove(&self, id: u64) -> bool {
        let mut inner = self.inner();
        let Some(at) = inner.rules.iter().position(|active| active.status.id == id) else { return false };
        inner.rules.remove(at).removed.cancel();
        true
    }

    /// Removes all rules and lets go of the requests that hang.
    pub fn clear(&self) {
        for active in self.inner().rules.drain(..) {
            active.removed.cancel();
        }
    }

    /// What is in force, and what it did.
    pub fn rules(&self) -> Vec<FaultStatus> {
        self.inner().rules.iter().map(|active| active.status.clone()).collect()
    }

    /// How many requests a rule has hit; 0 once it is removed.
    pub fn hits(&self, id: u64) -> u64 {
        self.rules().iter().find(|status| status.id == id).map_or(0, |status| status.hits)
    }

    /// Restarts the random numbers behind `probability`: the same seed and requests give the same faults.
    pub fn seed(&self, seed: u64) {
        self.inner().random = StdRng::seed_from_u64(seed);
    }

    pub(crate) fn hits_on(&self, method: &str, target: &Target) -> Vec<Hit> {
        let mut inner = self.inner();
        let Inner { rules, random, .. } = &mut *inner;
        let mut hits = Vec::new();
        for Active { status, first_hit, removed } in rules {
            if !status.rule.matches(method, target) {
                continue;
            }
            status.matched += 1;
            let lasts = status.rule.lasts_ms.map(Duration::from_millis);
            let over = status.rule.times.is_some_and(|times| status.hits >= times)
                || first_hit.zip(lasts).is_some_and(|(first, lasts)| first.elapsed() > lasts);
            if status.matched <= status.rule.skip || over || random.random::<f64>() >= status.rule.probability {
                continue;
            }
            status.hits += 1;
            first_hit.get_or_insert_with(Instant::now);
            hits.push(Hit { rule: status.id, action: status.rule.action.clone(), removed: removed.clone() });
        }
        hits
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Target {
        Target {
            operation: "PutObject",
            bucket: Some("b".into()),
            key: Some(key.into()),
            access_key: Some("ak".into()),
        }
    }

    #[test]
    fn every_condition_must_hold() {
        let rule = FaultRule::new(FaultAction::SlowDown);
        assert!(rule.matches("PUT", &put("a/b")));
        for (rule, fits) in [
            (rule.clone().operation("PutObject").key_prefix("a/").key_contains("b"), true),
            (rule.clone().operation("GetObject").key_prefix("a/"), false),
            (rule.clone().key_prefix("b"), false),
            (rule.clone().bucket("other"), false),
            (rule.clone().access_key("ak").method("PUT"), true),
            (rule.clone().method("GET"), false),
        ] {
            assert_eq!(rule.matches("PUT", &put("a/b")), fits, "{rule:?}");
        }
    }

    #[test]
    fn nth_hits_exactly_one() {
        let faults = Faults::default();
        let id = faults.add(FaultRule::new(FaultAction::SlowDown).nth(3));
        let hits: Vec<bool> = (0..5).map(|_| !faults.hits_on("PUT", &put("k")).is_empty()).collect();
        assert_eq!(hits, [false, false, true, false, false]);
        assert_eq!(faults.hits(id), 1);
    }

    #[test]
    fn probability_replays_with_its_seed() {
        let faults = Faults::default();
        faults.add(FaultRule::new(FaultAction::SlowDown).probability(0.5));
        let draw = || -> Vec<bool> {
            faults.seed(7);
            (0..64).map(|_| !faults.hits_on("PUT", &put("k")).is_empty()).collect()
        };
        let first = draw();
        assert_eq!(first, draw());
        assert!(first.contains(&true) && first.contains(&false));
    }

    #[test]
    fn json_with_an_unknown_field_is_refused() {
        assert!(serde_json::from_str::<FaultRule>(r#"{"action":{"kind":"slow_down"}}"#).is_ok());
        assert!(
            serde_json::from_str::<FaultRule>(r#"{"operatoin":"PutObject","action":{"kind":"slow_down"}}"#).is_err()
        );
    }
}
