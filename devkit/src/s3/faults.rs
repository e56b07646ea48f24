//! Faults on request: rules that say which requests go wrong, and how.
//!
//! Rules are tried in the order they were added, and every rule that matches takes part: delays add up, and the first
//! rule that ends a request ends it. The same rules as JSON go over HTTP (see the module `control`):
//!
//! ```json
//! {"operation": "PutObject", "key_prefix": "orders/", "skip": 1, "times": 2, "action": {"kind": "reset_after_write"}}
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::operation::Target;

/// What happens to a request. "Write" stands for whatever the request does: the same actions fit reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultAction {
    /// 503 `SlowDown`; nothing was done.
    SlowDown,
    /// 500 `InternalError`; nothing was done.
    InternalError,
    /// 403 `AccessDenied`; nothing was done.
    AccessDenied,
    /// Any status and S3 code; nothing was done.
    Error { status: u16, code: String },
    /// Any status and S3 code, but it was done.
    ErrorAfterWrite { status: u16, code: String },
    /// The connection is reset (RST); nothing was done.
    ResetBeforeWrite,
    /// The connection is reset once this many bytes of the request's body came in; nothing was done.
    ResetDuringBody { after_bytes: u64 },
    /// It was done; then the connection is reset instead of an answer.
    ResetAfterWrite,
    /// Waits before anything is done; a client that leaves meanwhile takes its request with it.
    Delay { ms: u64 },
    /// The body is taken in, and the write happens this much later, also if the client has long given up: a late PUT.
    /// For PutObject, UploadPart, CompleteMultipartUpload and DeleteObject.
    DelayWrite { ms: u64 },
    /// Bodies, in and out, move at no more than this.
    Throttle { bytes_per_second: u64 },
    /// The connection is closed after this many bytes of the answer's body.
    Truncate { after_bytes: u64 },
    /// One bit of the answer's body at this offset is wrong.
    Corrupt { at: u64 },
    /// Nothing is done until the rule is removed; then the request goes on as if nothing had been.
    Hang,
    /// It was done; the answer comes when the rule is removed.
    HangAfterWrite,
}

/// Which requests, and what happens to them. Every condition that is set must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// As AWS names it: `PutObject`, `GetObject`, `HeadObject`, `ListObjectsV2`, `UploadPart`, ...
    #[serde(default)]
    pub operation: Option<String>,
    /// `PUT`, `GET`, ...
    #[serde(default)]
    pub method: Option<String>,
    #[serde(default)]
    pub bucket: Option<String>,
    /// Of the key, or of a listing's prefix.
    #[serde(default)]
    pub key_prefix: Option<String>,
    #[serde(default)]
    pub key_contains: Option<String>,
    /// The access key id that the request claims.
    #[serde(default)]
    pub access_key: Option<String>,
    /// The first this many that match are spared.
    #[serde(default)]
    pub skip: u64,
    /// How many are hit after that; unlimited if unset.
    #[serde(default)]
    pub times: Option<u64>,
    /// Of those, this share is hit at random: 0 to 1. See [`Faults::seed`].
    #[serde(default = "always")]
    pub probability: f64,
    pub action: FaultAction,
}

fn always() -> f64 {
    1.0
}

impl FaultRule {
    /// Hits every request.
    pub fn new(action: FaultAction) -> Self {
        Self {
            operation: None,
            method: None,
            bucket: None,
            key_prefix: None,
            key_contains: None,
            access_key: None,
            skip: 0,
            times: None,
            probability: always(),
            action,
        }
    }

    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = Some(method.into());
        self
    }

    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = Some(bucket.into());
        self
    }

    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = Some(prefix.into());
        self
    }

    pub fn key_contains(mut self, part: impl Into<String>) -> Self {
        self.key_contains = Some(part.into());
        self
    }

    pub fn access_key(mut self, access_key: impl Into<String>) -> Self {
        self.access_key = Some(access_key.into());
        self
    }

    /// Spares the first `number` that match.
    pub fn skip(mut self, number: u64) -> Self {
        self.skip = number;
        self
    }

    /// Hits no more than `number`.
    pub fn times(mut self, number: u64) -> Self {
        self.times = Some(number);
        self
    }

    /// Hits only the `number`th that matches, counted from 1.
    pub fn nth(self, number: u64) -> Self {
        self.skip(number.saturating_sub(1)).times(1)
    }

    /// Hits this share, 0 to 1.
    pub fn probability(mut self, share: f64) -> Self {
        self.probability = share;
        self
    }

    fn matches(&self, method: &str, target: &Target) -> bool {
        let equal = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
        let key = target.key.as_deref().unwrap_or_default();
        equal(&self.operation, Some(target.operation))
            && equal(&self.method, Some(method))
            && equal(&self.bucket, target.bucket.as_deref())
            && equal(&self.access_key, target.access_key.as_deref())
            && self.key_prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix))
            && self.key_contains.as_ref().is_none_or(|part| key.contains(part))
    }
}

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
        inner.rules.push(Active { status, removed: CancellationToken::new() });
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
        for Active { status, removed } in rules {
            if !status.rule.matches(method, target) {
                continue;
            }
            status.matched += 1;
            let over = status.rule.times.is_some_and(|times| status.hits >= times);
            if status.matched <= status.rule.skip || over || random.random::<f64>() >= status.rule.probability {
                continue;
            }
            status.hits += 1;
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
